"""The momentum of SGD between optax and PyTorch, so that a run can continue in the other framework.

Both define it alike: momentum = gradient + weight decay * weight + mu * momentum.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import torch
from flax import nnx

from convert.weights import to_jax, to_torch
from lma_jax.definition import split
from lma_jax.weight_files import unwrap

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def momentum_to_torch(trace: Any, jax_model: nnx.Module, *, names: str | None = None) -> dict[str, torch.Tensor]:
    """Momentum by PyTorch's parameter names.

    Args:
        trace: optax's momentum (`trace` of optax.TraceState), with the structure of the parameters of `jax_model`;
            None, which stands for a frozen parameter in a run, becomes 0.
        jax_model: the network; its weights do not matter.
        names: as in `to_torch`.
    """
    definition, params, batch_stats = split(jax_model)
    trace = jax.tree.map(_or_zero, trace, params, is_leaf=lambda leaf: leaf is None)
    buffers = to_torch(definition.bind(trace, batch_stats), names=names)
    return {name: buffer for name, buffer in buffers.items() if not name.endswith(STATISTICS)}


def _or_zero(buffer: Any, parameter: jax.Array) -> Any:
    return jnp.zeros_like(parameter) if buffer is None else buffer


def momentum_to_jax(buffers: Mapping[str, torch.Tensor], jax_model: nnx.Module) -> Any:
    """The inverse of `momentum_to_torch`, in the names that `to_jax` takes.

    Raises:
        ValueError: entries are missing, unexpected or of another shape; all are named.
    """
    statistics = {name: value for name, value in to_torch(jax_model).items() if name.endswith(STATISTICS)}
    _, trace, _ = split(to_jax({**unwrap(buffers), **statistics}, nnx.clone(jax_model)))
    return trace


def set_momentum(optimizer: torch.optim.SGD, torch_model: torch.nn.Module, buffers: Mapping[str, torch.Tensor]) -> None:
    """Gives an optimizer its momentum.

    Args:
        optimizer: SGD over `torch_model.parameters()`.
        torch_model: the network.
        buffers: momentum by parameter name.

    Raises:
        KeyError: a parameter has no momentum.
    """
    for name, parameter in torch_model.named_parameters():
        optimizer.state[parameter]["momentum_buffer"] = buffers[name].to(parameter).clone()


def get_momentum(optimizer: torch.optim.SGD, torch_model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """An optimizer's momentum by parameter name; zero before its first step."""
    return {
        name: optimizer.state[parameter].get("momentum_buffer", torch.zeros_like(parameter)).detach().clone()
        for name, parameter in torch_model.named_parameters()
    }
