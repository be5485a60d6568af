"""The training state and the network's structure, apart from each other."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from ml_collections import ConfigDict

from lma_jax.layers import BatchNorm
from lma_jax.registry import create_model

DATA_AXIS = "data"

Tree = Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that changes in training.

    Attributes:
        step: number of steps taken, int32.
        params, batch_stats: nested dictionaries of arrays, named as the attributes of the model.
        opt_state: state of the optax optimizer.
    """

    step: jax.Array
    params: Tree
    batch_stats: Tree
    opt_state: Tree


@dataclass(frozen=True)
class Network:
    """The structure of a model without its weights."""

    graphdef: nnx.GraphDef
    rng_state: Tree

    def bind(self, params: Tree, batch_stats: Tree) -> nnx.Module:
        """The model with these weights, in training mode."""
        return nnx.merge(self.graphdef, params, batch_stats, self.rng_state)


def split(model: nnx.Module) -> tuple[Network, Tree, Tree]:
    """A model's structure, its parameters and its batch statistics; the inverse of `Network.bind`."""
    graphdef, *states = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    params, batch_stats, rng_state = map(nnx.to_pure_dict, states)
    return Network(graphdef, rng_state), params, batch_stats


def build_model(config: ConfigDict, num_classes: int) -> nnx.Module:
    """The model that `config` describes, initialised from `config.seed`."""

    def norm_layer(num_features: int, **dd: Any) -> BatchNorm:
        axis_name = DATA_AXIS if config.batch_norm == "sync" else None
        return BatchNorm(num_features, axis_name=axis_name, **dd)

    return create_model(
        config.model,
        num_classes=num_classes,
        norm_layer=norm_layer,
        dtype=jnp.dtype(config.dtype),
        rngs=nnx.Rngs(params=config.seed, dropout=config.seed),
    )


def build_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """SGD as in PyTorch: weight decay joins the gradient of every parameter, then momentum, then the learning rate."""
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(schedule, momentum=config.momentum),
    )


def create_state(
    config: ConfigDict,
    num_classes: int,
    optimizer: optax.GradientTransformation,
    sharding: jax.sharding.Sharding,
) -> tuple[Network, TrainState]:
    """The network's structure and the state before the first step, placed by `sharding`."""

    def init() -> tuple[Tree, TrainState]:
        network, params, batch_stats = split(build_model(config, num_classes))
        return network.rng_state, TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params))

    abstract, _, _ = split(nnx.eval_shape(lambda: build_model(config, num_classes)))
    rng_state, state = jax.jit(init, out_shardings=sharding)()
    return Network(abstract.graphdef, rng_state), state
