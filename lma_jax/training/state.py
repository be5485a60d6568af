"""The training state and the network's structure, apart from each other."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from lma_jax.definition import Definition, Tree, split
from lma_jax.layers import BatchNorm
from lma_jax.registry import create_model
from lma_jax.sharding import DATA_AXIS

if TYPE_CHECKING:
    from ml_collections import ConfigDict


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that changes in training.

    Attributes:
        step: number of steps taken, int32.
        params, batch_stats: nested dictionaries of arrays, named as the attributes of the model.
        opt_state: state of the optax optimizer.
        ema: moving average of {"params": ..., "batch_stats": ...}, or None where the run keeps none.
    """

    step: jax.Array
    params: Tree
    batch_stats: Tree
    opt_state: Tree
    ema: Tree = None

    @property
    def evaluated(self) -> tuple[Tree, Tree]:
        """The params and batch_stats to evaluate and export: the moving average where there is one."""
        return (self.ema["params"], self.ema["batch_stats"]) if self.ema else (self.params, self.batch_stats)


def build_model(config: "ConfigDict", num_classes: int) -> nnx.Module:
    """The model that `config` describes, initialised from `config.seed`."""
    dtype = jnp.dtype(config.dtype)
    model = create_model(
        config.model,
        num_classes=num_classes,
        dtype=dtype,
        param_dtype=jnp.promote_types(dtype, jnp.float32),
        rngs=nnx.Rngs(params=config.seed, dropout=config.seed),
    )
    for _, module in nnx.iter_modules(model):
        if isinstance(module, BatchNorm):
            module.axis_name = DATA_AXIS if config.batch_norm == "sync" else None
    return model


def build_optimizer(config: "ConfigDict", schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimizer that `config` describes.

    `sgd` is PyTorch's: weight decay joins the gradient, then momentum, then the learning rate. `lamb` (You et al.,
    ICLR 2020) adapts the rate of a layer only where weight decay acts on it, as in "ResNet strikes back".
    """

    def decayed(params: Tree) -> Tree:
        return jax.tree.map(lambda leaf: config.decay_norm_and_bias or leaf.ndim > 1, params)

    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    decay = optax.add_decayed_weights(config.weight_decay, mask=decayed)
    if config.optimizer == "lamb":
        adapt = optax.masked(optax.scale_by_trust_ratio(), decayed)
        return optax.chain(*clip, optax.scale_by_adam(eps=1e-6), decay, adapt, optax.scale_by_learning_rate(schedule))
    return optax.chain(*clip, decay, optax.sgd(schedule, momentum=config.momentum))


def create_state(
    config: "ConfigDict",
    num_classes: int,
    optimizer: optax.GradientTransformation,
    sharding: jax.sharding.Sharding,
) -> tuple[Definition, TrainState]:
    """The network's structure and the state before the first step, placed by `sharding`."""

    def init() -> tuple[nnx.GraphDef, Tree, TrainState]:
        network, params, batch_stats = split(build_model(config, num_classes))
        ema = {"params": params, "batch_stats": batch_stats} if config.ema_decay else None
        step = jnp.zeros((), jnp.int32)
        state = TrainState(step, params, batch_stats, optimizer.init(params), ema)
        return network.graphdef, network.rng_state, state

    graphdef, rng_state, state = jax.jit(init, out_shardings=sharding)()
    return Definition(graphdef, rng_state), state
