"""The weights of lma_jax as tensors for lma_torch, and back: lma_jax.state_dict in PyTorch's types."""

from collections.abc import Mapping
from typing import TypeVar

import torch
from flax import nnx

from lma_jax.state_dict import from_state_dict, to_state_dict
from lma_jax.weight_files import to_array, to_tensor

Model = TypeVar("Model", bound=nnx.Module)


def to_torch(jax_model: nnx.Module) -> dict[str, torch.Tensor]:
    """The weights of `jax_model` as a state_dict for `lma_torch.create_model` of the same name.

    The tensors own their memory and keep their dtypes.

    Raises:
        ValueError: the table of layers does not cover some variables of the model; all are named.
    """
    return {key: to_tensor(array) for key, array in to_state_dict(jax_model).items()}


def to_jax(state_dict: Mapping[str, torch.Tensor], jax_model: Model) -> Model:
    """Fills `jax_model` with the weights of a PyTorch `state_dict` and returns it.

    Values are cast to the dtypes of the model. An error leaves the model unchanged.

    Raises:
        ValueError: entries are missing, unexpected or of another shape; all are named.
    """
    return from_state_dict(jax_model, {key: to_array(tensor) for key, tensor in state_dict.items()})
