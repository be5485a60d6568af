"""The training step and the evaluation step: one jitted program each, over a mesh with the axis "data"."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from lma_jax.definition import Definition, Tree
from lma_jax.layers import widened
from lma_jax.preprocessing import Preprocessing, normalize
from lma_jax.sharding import DATA_AXIS, REPLICATED, SHARDED
from lma_jax.training.erasing import random_erasing
from lma_jax.training.objective import Objective
from lma_jax.training.selection import joined, trained
from lma_jax.training.state import TrainState

# What is folded into the key of a part of a batch, beside the 0 and 1 by which it is split.
ERASING = 2

Metrics = dict[str, jax.Array]
# (params, batch_stats, batch, key) -> gradients, None for frozen parameters, new batch_stats, metrics
Gradients = Callable[[Tree, Tree, Any, jax.Array], tuple[Tree, Tree, Metrics]]


def make_train_step(
    definition: Definition,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    preprocessing: Preprocessing,
    objective: Objective,
    seed: int,
    accumulate: int = 1,
    ema_decay: float = 0.0,
    remat: bool = False,
    skip_nonfinite: bool = False,
    freeze: Sequence[str] = (),
    erasing: float = 0.0,
) -> jax.stages.Wrapped:
    """`step(state, batch) -> state, metrics`; it donates `state`, and the metrics are sums over the global batch.

    Each device works on its share of the batch. Gradients and running statistics are averaged over the devices;
    batch statistics are shared only if the network's BatchNorm says so. Dropout, erasing and mixing are functions of
    (seed, step, device, part).

    Args:
        definition: the network without its weights.
        optimizer: its state is part of the TrainState.
        mesh: the devices.
        preprocessing: how images are normalised.
        objective: what is minimised.
        seed: seed of dropout, erasing and mixing.
        accumulate: number of parts in which a device computes its share. The gradient is the mean of theirs, and
            batch statistics are those of a part, as in PyTorch's loop of backward() calls.
        ema_decay: weight of the past in the moving average of weights and statistics, if the state has one.
        remat: keep only the outputs of convolutions and matrix products for the backward pass and recompute
            normalisation, activation and attention: less memory for a little time.
        skip_nonfinite: leave the state as it is if the loss or a gradient is not finite, and count "skipped_updates".
        freeze: patterns of frozen parameters, which keep their bits, as do the statistics of a frozen BatchNorm. They
            have no gradient, and so no part in its norm. The network is one of `build_model` with the same patterns.
        erasing: probability with which a rectangle of an image is erased, before images are mixed.
    """
    gradients = make_gradients(definition, objective, preprocessing, remat=remat, freeze=freeze, erasing=erasing)
    compute = gradients if accumulate == 1 else accumulated(gradients, accumulate)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), state.step), jax.lax.axis_index(DATA_AXIS))
        grads, batch_stats, metrics = compute(state.params, state.batch_stats, batch, key)
        grads, batch_stats = jax.lax.pmean((grads, batch_stats), DATA_AXIS)
        metrics = jax.lax.psum(metrics, DATA_AXIS)
        old = {"params": state.params, "batch_stats": state.batch_stats}
        trained_params = trained(state.params, freeze)
        updates, opt_state = optimizer.update(grads, state.opt_state, trained_params)
        moved = {
            "params": optax.apply_updates(trained_params, updates),
            "batch_stats": trained(batch_stats, freeze),
        }
        ema = state.ema and joined(optax.incremental_update(moved, state.ema, 1 - ema_decay), state.ema)
        new = TrainState(state.step + 1, opt_state=opt_state, ema=ema, **joined(moved, old))
        return _skip_nonfinite(state, new, grads, metrics) if skip_nonfinite else (new, metrics)

    sharded = jax.shard_map(
        step, mesh=mesh, in_specs=(REPLICATED, SHARDED), out_specs=(REPLICATED, REPLICATED), check_vma=False
    )
    return jax.jit(sharded, donate_argnums=0)


def make_gradients(
    definition: Definition,
    objective: Objective,
    preprocessing: Preprocessing,
    *,
    remat: bool,
    freeze: Sequence[str],
    erasing: float,
) -> Gradients:
    """The gradients of the objective on one device; arguments as in `make_train_step`."""

    def gradients(params: Tree, batch_stats: Tree, batch: Any, key: jax.Array) -> tuple[Tree, Tree, Metrics]:
        mix_key, dropout_key = jax.random.split(key)
        images = normalize(batch["image"], preprocessing)
        if erasing:
            images = random_erasing(jax.random.fold_in(key, ERASING), images, erasing)
        images, targets = objective.mix(mix_key, images, batch["label"])

        def loss_fn(changing: Tree) -> tuple[jax.Array, tuple[Tree, Metrics]]:
            model = definition.bind(joined(changing, params), batch_stats)
            nnx.reseed(model, dropout=dropout_key)
            logits = widened(model(images))
            losses = objective.losses(logits, targets)
            new_stats = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
            return losses.mean(), (new_stats, metric_sums(logits, batch, loss=losses))

        function = jax.checkpoint(loss_fn, policy=is_product) if remat else loss_fn
        grads, (batch_stats, metrics) = jax.grad(function, has_aux=True)(trained(params, freeze))
        return grads, batch_stats, metrics

    return gradients


def accumulated(gradients: Gradients, number: int) -> Gradients:
    """The mean of the gradients of `number` parts of the batch, which are computed one after the other."""

    def total(params: Tree, batch_stats: Tree, batch: Any, key: jax.Array) -> tuple[Tree, Tree, Metrics]:
        parts = jax.tree.map(lambda leaf: leaf.reshape(number, -1, *leaf.shape[1:]), batch)
        keys = jax.random.split(key, number)

        def add(carry: Any, part: Any) -> tuple[Any, None]:
            batch_stats, sums = carry
            grads, batch_stats, metrics = gradients(params, batch_stats, *part)
            return (batch_stats, jax.tree.map(jnp.add, sums, (grads, metrics))), None

        first = jax.tree.map(lambda leaf: leaf[0], (parts, keys))
        grads, _, metrics = jax.eval_shape(gradients, params, batch_stats, *first)
        zeros = jax.tree.map(jnp.zeros_like, (grads, metrics))
        (batch_stats, (grads, metrics)), _ = jax.lax.scan(add, (batch_stats, zeros), (parts, keys))
        return jax.tree.map(lambda leaf: leaf / number, grads), batch_stats, metrics

    return total


def make_eval_step(
    definition: Definition, mesh: Mesh, *, preprocessing: Preprocessing, loss_name: str = "loss"
) -> jax.stages.Wrapped:
    """`step(params, batch_stats, batch) -> metrics`, sums over the masked examples of the global batch.

    The loss is the softmax cross-entropy of the labels; `loss_name` is what the metrics call it.
    """

    def step(params: Tree, batch_stats: Tree, batch: Any) -> Metrics:
        model = definition.bind(params, batch_stats)
        model.eval()
        logits = widened(model(normalize(batch["image"], preprocessing)))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return jax.lax.psum(metric_sums(logits, batch, **{loss_name: losses}), DATA_AXIS)

    sharded = jax.shard_map(
        step, mesh=mesh, in_specs=(REPLICATED, REPLICATED, SHARDED), out_specs=REPLICATED, check_vma=False
    )
    return jax.jit(sharded)


def metric_sums(logits: jax.Array, batch: Any, **losses: jax.Array) -> Metrics:
    """Sums over the masked examples: the losses, "top1" and "top5" hits and their "count"; and "skipped_images"."""
    _, ranked = jax.lax.top_k(logits, min(5, logits.shape[-1]))
    hits = ranked == batch["label"][:, None]
    values = {**losses, "top1": hits[:, 0], "top5": hits.any(1), "count": jnp.ones(len(logits), logits.dtype)}
    sums = {name: jnp.where(batch["mask"], value, 0).sum() for name, value in values.items()}
    return {**sums, "skipped_images": batch["skipped"].sum()}


def is_product(primitive: Any, *_: Any, **__: Any) -> bool:
    """The policy of rematerialisation: the outputs of convolutions and matrix products are kept."""
    return primitive.name in ("conv_general_dilated", "dot_general")


def _skip_nonfinite(old: TrainState, new: TrainState, grads: Tree, metrics: Metrics) -> tuple[TrainState, Metrics]:
    """The new state and metrics; if something is not finite, the old state one step further and no metrics."""
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(optax.tree.norm(grads))
    kept = jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, replace(old, step=new.step))
    counted = {name: jnp.where(finite, value, jnp.zeros_like(value)) for name, value in metrics.items()}
    return kept, {**counted, "skipped_updates": jnp.where(finite, 0, 1)}
