"""The training and the evaluation step, each one jitted program over a mesh with the axis "data"."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AxisType, Mesh, PartitionSpec

from lma_jax.data.transforms import Preprocessing
from lma_jax.training.state import DATA_AXIS, Network, TrainState, Tree

Metrics = dict[str, jax.Array]

SHARDED = PartitionSpec(DATA_AXIS)
REPLICATED = PartitionSpec()


def data_mesh() -> Mesh:
    """All devices of all processes on one axis."""
    return jax.make_mesh((jax.device_count(),), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def normalize(images: jax.Array, preprocessing: Preprocessing) -> jax.Array:
    """uint8 (N, H, W, 3) -> float32 with the data set's mean and standard deviation taken out."""
    mean, std = jnp.asarray(preprocessing.mean), jnp.asarray(preprocessing.std)
    return (images / jnp.float32(255) - mean) / std


def metric_sums(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> Metrics:
    """Sums over the examples where `mask`: cross-entropy "loss", "top1" and "top5" hits, and their "count"."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    _, ranked = jax.lax.top_k(logits, min(5, logits.shape[-1]))
    hits = ranked == labels[:, None]
    values = {"loss": losses, "top1": hits[:, 0], "top5": hits.any(1), "count": jnp.ones_like(losses)}
    return {name: jnp.where(mask, value, 0).sum() for name, value in values.items()}


def make_train_step(
    network: Network,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    preprocessing: Preprocessing,
    seed: int,
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """`step(state, batch) -> state, metrics`; it donates `state`, and the metrics are sums over the global batch.

    Each device works on its share of the batch: gradients and running statistics are averaged over the devices,
    batch statistics only where the network's BatchNorm says so. Dropout is a function of (seed, step, device).
    """

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        images = normalize(batch["image"], preprocessing)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), state.step), jax.lax.axis_index(DATA_AXIS))

        def loss_fn(params: Tree) -> tuple[jax.Array, tuple[jax.Array, Tree]]:
            model = network.bind(params, state.batch_stats)
            nnx.reseed(model, dropout=key)
            logits = model(images).astype(jnp.float32)
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
            return loss, (logits, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

        grads, (logits, batch_stats) = jax.grad(loss_fn, has_aux=True)(state.params)
        grads, batch_stats = jax.lax.pmean((grads, batch_stats), DATA_AXIS)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = metric_sums(logits, batch["label"], jnp.ones_like(batch["label"], bool))
        return TrainState(state.step + 1, params, batch_stats, opt_state), jax.lax.psum(metrics, DATA_AXIS)

    sharded = jax.shard_map(
        step, mesh=mesh, in_specs=(REPLICATED, SHARDED), out_specs=(REPLICATED, REPLICATED), check_vma=False
    )
    return jax.jit(sharded, donate_argnums=0)


def make_eval_step(
    network: Network, mesh: Mesh, *, preprocessing: Preprocessing
) -> Callable[[Tree, Tree, Any], Metrics]:
    """`step(params, batch_stats, batch) -> metrics`, sums over the examples of the global batch where its mask is."""

    def step(params: Tree, batch_stats: Tree, batch: Any) -> Metrics:
        model = network.bind(params, batch_stats)
        model.eval()
        logits = model(normalize(batch["image"], preprocessing)).astype(jnp.float32)
        return jax.lax.psum(metric_sums(logits, batch["label"], batch["mask"]), DATA_AXIS)

    sharded = jax.shard_map(
        step, mesh=mesh, in_specs=(REPLICATED, REPLICATED, SHARDED), out_specs=REPLICATED, check_vma=False
    )
    return jax.jit(sharded)
