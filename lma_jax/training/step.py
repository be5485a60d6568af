"""The training and the evaluation step, each one jitted program over a mesh with the axis "data"."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from lma_jax.definition import Definition, Tree
from lma_jax.preprocessing import normalize
from lma_jax.sharding import DATA_AXIS, REPLICATED, SHARDED
from lma_jax.training.objective import Objective
from lma_jax.training.state import TrainState

if TYPE_CHECKING:
    from lma_jax.preprocessing import Preprocessing

Metrics = dict[str, jax.Array]


def widened(logits: jax.Array) -> jax.Array:
    """Logits in float32 or wider, for losses and metrics."""
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def metric_sums(losses: jax.Array, logits: jax.Array, batch: Any) -> Metrics:
    """Sums over the examples where the mask is: "loss", "top1" and "top5" hits, their "count", and skipped images."""
    _, ranked = jax.lax.top_k(logits, min(5, logits.shape[-1]))
    hits = ranked == batch["label"][:, None]
    values = {"loss": losses, "top1": hits[:, 0], "top5": hits.any(1), "count": jnp.ones_like(losses)}
    sums = {name: jnp.where(batch["mask"], value, 0).sum() for name, value in values.items()}
    return {**sums, "skipped_images": batch["skipped"].sum()}


def make_train_step(
    network: Definition,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    preprocessing: "Preprocessing",
    objective: Objective,
    seed: int,
    accumulate: int = 1,
    ema_decay: float = 0.0,
    remat: bool = False,
    skip_nonfinite: bool = False,
) -> jax.stages.Wrapped:
    """`step(state, batch) -> state, metrics`; it donates `state`, and the metrics are sums over the global batch.

    Each device works on its share of the batch: gradients and running statistics are averaged over the devices,
    batch statistics only where the network's BatchNorm says so. Dropout and mixing are a function of (seed, step,
    device, part).

    Args:
        network: the structure of the model.
        optimizer: its state is part of the TrainState.
        mesh: the devices.
        preprocessing: how images are normalised.
        objective: what is minimised.
        seed: of dropout and mixing.
        accumulate: parts that a device's share is computed in; the gradient is the mean of theirs, and batch
            statistics are those of a part, as in PyTorch's loop of backward() calls.
        ema_decay: weight of the past in the moving average of weights and statistics, if the state has one.
        remat: keep only the outputs of convolutions and matrix products for the backward pass, and compute the rest
            (normalisation, activation, attention) again: less memory for a little time.
        skip_nonfinite: leave the state as it is where loss or gradients are not finite, and count "skipped_updates".
    """

    def gradients(params: Tree, batch_stats: Tree, batch: Any, key: jax.Array) -> tuple[Tree, Tree, Metrics]:
        mix_key, dropout_key = jax.random.split(key)
        images, targets = objective.mix(mix_key, normalize(batch["image"], preprocessing), batch["label"])

        def loss_fn(params: Tree) -> tuple[jax.Array, tuple[Tree, Metrics]]:
            model = network.bind(params, batch_stats)
            nnx.reseed(model, dropout=dropout_key)
            logits = widened(model(images))
            losses = objective.losses(logits, targets)
            new_stats = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
            return losses.mean(), (new_stats, metric_sums(losses, logits, batch))

        function = jax.checkpoint(loss_fn, policy=is_product) if remat else loss_fn
        grads, (batch_stats, metrics) = jax.grad(function, has_aux=True)(params)
        return grads, batch_stats, metrics

    def accumulated(params: Tree, batch_stats: Tree, batch: Any, key: jax.Array) -> tuple[Tree, Tree, Metrics]:
        parts = jax.tree.map(lambda leaf: leaf.reshape(accumulate, -1, *leaf.shape[1:]), batch)
        keys = jax.random.split(key, accumulate)

        def add(carry: Any, part: Any) -> tuple[Any, None]:
            batch_stats, sums = carry
            grads, batch_stats, metrics = gradients(params, batch_stats, *part)
            return (batch_stats, jax.tree.map(jnp.add, sums, (grads, metrics))), None

        first = jax.tree.map(lambda leaf: leaf[0], (parts, keys))
        grads, _, metrics = jax.eval_shape(gradients, params, batch_stats, *first)
        zeros = jax.tree.map(jnp.zeros_like, (grads, metrics))
        (batch_stats, (grads, metrics)), _ = jax.lax.scan(add, (batch_stats, zeros), (parts, keys))
        return jax.tree.map(lambda leaf: leaf / accumulate, grads), batch_stats, metrics

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), state.step), jax.lax.axis_index(DATA_AXIS))
        compute = gradients if accumulate == 1 else accumulated
        grads, batch_stats, metrics = compute(state.params, state.batch_stats, batch, key)
        grads, batch_stats = jax.lax.pmean((grads, batch_stats), DATA_AXIS)
        metrics = jax.lax.psum(metrics, DATA_AXIS)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema and optax.incremental_update(
            {"params": params, "batch_stats": batch_stats}, state.ema, 1 - ema_decay
        )
        new = TrainState(state.step + 1, params, batch_stats, opt_state, ema)
        return _skip_nonfinite(state, new, grads, metrics) if skip_nonfinite else (new, metrics)

    sharded = jax.shard_map(
        step, mesh=mesh, in_specs=(REPLICATED, SHARDED), out_specs=(REPLICATED, REPLICATED), check_vma=False
    )
    return jax.jit(sharded, donate_argnums=0)


def is_product(primitive: Any, *_: Any, **__: Any) -> bool:
    """The policy of rematerialisation: what convolutions and matrix products give is kept."""
    return primitive.name in ("conv_general_dilated", "dot_general")


def _skip_nonfinite(old: TrainState, new: TrainState, grads: Tree, metrics: Metrics) -> tuple[TrainState, Metrics]:
    """The new state and metrics, or the old state one step further and no metrics where something is not finite."""
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(optax.tree.norm(grads))
    kept = jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, replace(old, step=new.step))
    counted = {name: jnp.where(finite, value, jnp.zeros_like(value)) for name, value in metrics.items()}
    return kept, {**counted, "skipped_updates": jnp.where(finite, 0, 1)}


def make_eval_step(network: Definition, mesh: Mesh, *, preprocessing: "Preprocessing") -> jax.stages.Wrapped:
    """`step(params, batch_stats, batch) -> metrics`, sums over the examples of the global batch where its mask is."""

    def step(params: Tree, batch_stats: Tree, batch: Any) -> Metrics:
        model = network.bind(params, batch_stats)
        model.eval()
        logits = widened(model(normalize(batch["image"], preprocessing)))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return jax.lax.psum(metric_sums(losses, logits, batch), DATA_AXIS)

    sharded = jax.shard_map(
        step, mesh=mesh, in_specs=(REPLICATED, REPLICATED, SHARDED), out_specs=REPLICATED, check_vma=False
    )
    return jax.jit(sharded)
