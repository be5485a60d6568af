"""The weights of lma_jax as tensors, and back: lma_jax.state_dict in PyTorch's types and other libraries' names."""

from collections.abc import Mapping
from typing import TypeVar

import torch
from flax import nnx

from lma_jax.errors import UserError
from lma_jax.layers import Network
from lma_jax.naming import to_names
from lma_jax.state_dict import from_state_dict, to_state_dict
from lma_jax.weight_files import to_array, to_tensor, unwrap

Model = TypeVar("Model", bound=nnx.Module)


def to_torch(jax_model: nnx.Module, *, names: str | None = None) -> dict[str, torch.Tensor]:
    """The weights of `jax_model` as a state_dict for `lma_torch.create_model` of the same name, or for another library.

    The tensors own their memory and keep their dtypes.

    Args:
        jax_model: a network of lma_jax; without `names`, any module.
        names: "timm", "torchvision" or "paper", whose network is to load the weights; by default this project's.

    Raises:
        ValueError: the table of layers does not cover some variables of the model; all are named.
        UserError: the other library has no such network.
    """
    arrays = to_state_dict(jax_model)
    if names is not None:
        arrays = to_names(arrays, names, position=position_of(jax_model))
    return {key: to_tensor(array) for key, array in arrays.items()}


def to_jax(state_dict: Mapping[str, torch.Tensor], jax_model: Model) -> Model:
    """Fills `jax_model` with the weights of a PyTorch `state_dict` and returns it.

    Values are cast to the dtypes of the model. An error leaves the model unchanged.

    Args:
        state_dict: in the names of this project, of the paper's authors, of torchvision or of timm, or within a
            dictionary of a training script, as weight files are read.
        jax_model: any module.

    Raises:
        ValueError: entries are missing, unexpected or of another shape; all are named.
        UserError: it is no state_dict, or a layer has two names.
    """
    own = unwrap(state_dict) if state_dict else {}  # some modules have no weights
    return from_state_dict(jax_model, {key: to_array(tensor) for key, tensor in own.items()})


def position_of(model: nnx.Module) -> str:
    """The position of a network's attention module, see `Placement`.

    Raises:
        UserError: it is none of the networks here.
    """
    if not isinstance(model, Network):
        raise UserError(
            f"other libraries have no names for a {type(model).__name__}, only for networks of create_model"
        )
    return model.position
