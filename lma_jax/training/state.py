"""The state of a training run, and the network and the optimizer that it belongs to."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from lma_jax.definition import Definition, Tree, split
from lma_jax.layers import BatchNorm
from lma_jax.registry import create_model
from lma_jax.sharding import DATA_AXIS
from lma_jax.training.selection import is_frozen, map_named, matches, trained

# Decay rates of the moments, where a recipe leaves them to the optimizer: PyTorch's of AdamW, the papers' of others.
BETAS = {"adamw": (0.9, 0.999), "lamb": (0.9, 0.999), "lion": (0.9, 0.99)}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that changes in training.

    Attributes:
        step: number of steps taken, int32.
        params, batch_stats: nested dictionaries of arrays, named as the attributes of the model.
        opt_state: state of the optax optimizer; it has no leaves for frozen parameters.
        ema: moving average of {"params": ..., "batch_stats": ...}, or None if the run keeps none.
    """

    step: jax.Array
    params: Tree
    batch_stats: Tree
    opt_state: Tree
    ema: Tree = None

    @property
    def evaluated(self) -> tuple[Tree, Tree]:
        """The params and batch_stats to evaluate and export: the moving average if there is one."""
        return (self.ema["params"], self.ema["batch_stats"]) if self.ema else (self.params, self.batch_stats)


def build_model(
    name: str, *, num_classes: int, dtype: str, batch_norm: str, seed: int, freeze: Sequence[str] = (), **options: Any
) -> nnx.Module:
    """A network to train, initialised from `seed`, with float32 parameters or wider.

    Args:
        name: one of `list_models()`.
        num_classes: number of classes.
        dtype: computation dtype.
        batch_norm: "local" for batch statistics of each device, "sync" for those over all devices.
        seed: seed of the weights and of dropout.
        freeze: patterns of frozen parameters. A BatchNorm that is frozen normalises by its running statistics in
            training too, and they stay as they are (as Keras, timm's `freeze` and torchvision's FrozenBatchNorm2d).
        **options: further options of `create_model`.
    """
    model = create_model(
        name,
        num_classes=num_classes,
        dtype=jnp.dtype(dtype),
        param_dtype=jnp.promote_types(dtype, jnp.float32),
        rngs=nnx.Rngs(params=seed, dropout=seed),
        **options,
    )
    for path, module in nnx.iter_modules(model):
        if isinstance(module, BatchNorm):
            module.axis_name = DATA_AXIS if batch_norm == "sync" else None
            module.use_running_average = is_frozen(".".join(map(str, (*path, "mean"))), freeze)
    return model


def build_optimizer(
    schedule: optax.Schedule,
    *,
    optimizer: str = "sgd",
    momentum: float = 0.9,
    betas: Sequence[float] = (),
    weight_decay: float = 1e-4,
    decay_norm_and_bias: bool = True,
    clip_norm: float = 0.0,
    lr_scales: Sequence[tuple[str, float]] = (),
) -> optax.GradientTransformation:
    """The optimizer of a recipe; the options are the config keys of the same names.

    `sgd` is PyTorch's: weight decay is added to the gradient, then momentum and the learning rate are applied. `adamw`
    is PyTorch's too (Loshchilov and Hutter, ICLR 2019), `lion` that of Chen et al. (NeurIPS 2023). `lamb` (You et al.,
    ICLR 2020) adapts the rate of a layer only if weight decay acts on it, as in "ResNet strikes back".
    """

    def decayed(params: Tree) -> Tree:
        return jax.tree.map(lambda leaf: decay_norm_and_bias or leaf.ndim > 1, params)

    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    decay = optax.add_decayed_weights(weight_decay, mask=decayed)
    scale = [_scale_by_name(lr_scales)] if lr_scales else []
    if optimizer == "sgd":
        return optax.chain(*clip, decay, optax.sgd(schedule, momentum=momentum), *scale)
    b1, b2 = betas or BETAS[optimizer]
    rules = {
        "adamw": [optax.scale_by_adam(b1, b2), decay],
        "lion": [optax.scale_by_lion(b1, b2), decay],
        "lamb": [optax.scale_by_adam(b1, b2, eps=1e-6), decay, optax.masked(optax.scale_by_trust_ratio(), decayed)],
    }
    return optax.chain(*clip, *rules[optimizer], optax.scale_by_learning_rate(schedule), *scale)


def _scale_by_name(scales: Sequence[tuple[str, float]]) -> optax.GradientTransformation:
    """Multiplies the update of a parameter by the factor of the first pattern that its name matches, if any."""

    def factor(name: str) -> float:
        return next((factor for pattern, factor in scales if matches(name, [pattern])), 1.0)

    def update(updates: Tree, params: Tree = None) -> Tree:
        return map_named(lambda name, leaf: factor(name) * leaf, updates)

    return optax.stateless(update)


def optimizer_from(values: Mapping[str, Any], schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimizer that the `values` of a training config describe."""
    names = ("optimizer", "momentum", "betas", "weight_decay", "decay_norm_and_bias", "clip_norm", "lr_scales")
    return build_optimizer(schedule, **{name: values[name] for name in names})


def create_state(
    build: Callable[[], nnx.Module],
    optimizer: optax.GradientTransformation,
    *,
    freeze: Sequence[str] = (),
    keep_ema: bool = False,
    sharding: jax.sharding.Sharding,
) -> tuple[Definition, TrainState]:
    """The definition of a network, and the state before the first step.

    Args:
        build: returns the initialised network.
        optimizer: its state is part of the result.
        freeze: patterns of frozen parameters, which get no state of the optimizer.
        keep_ema: whether the state has a moving average of weights and statistics.
        sharding: sharding of the state.
    """

    def init() -> tuple[nnx.GraphDef, Tree, TrainState]:
        definition, params, batch_stats = split(build())
        ema = {"params": params, "batch_stats": batch_stats} if keep_ema else None
        state = TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(trained(params, freeze)), ema)
        return definition.graphdef, definition.rng_state, state

    graphdef, rng_state, state = jax.jit(init, out_shardings=sharding)()
    return Definition(graphdef, rng_state), state
