"""Networks in both frameworks with the same weights, and a small backbone that both know by name."""

from functools import partial

import pytest
import torch
from flax import nnx

import convert
import lma_jax.registry
import lma_torch.registry
from tests.helpers.shapes import jax_shapes, torch_shapes
from tests.helpers.weights import golden_weights


def register_resnet10(patch: pytest.MonkeyPatch) -> None:
    """Makes resnet10 known to create_model in both frameworks: one block per stage, and an eighth of the channels.

    For tests of checkpoints and commands, which know a network only by its name.
    """
    for package in (lma_jax, lma_torch):
        registry = package.registry
        build = partial(package.ResNet, package.BasicBlock, (1, 1, 1, 1), width=8)
        patch.setitem(registry.BACKBONES, "resnet10", registry.Backbone(build, registry.in_resnet))


def know_resnet10() -> None:
    """The same in a process that ends with its command."""
    register_resnet10(pytest.MonkeyPatch())


def golden_pair(name: str, **options) -> tuple[nnx.Module, torch.nn.Module]:
    """A network in float32, with the weights of `golden_weights` in both frameworks."""
    weights = {key: as_float32(value) for key, value in golden_weights(torch_shapes(name, **options)).items()}
    torch_model = torch_shapes(name, **options)
    torch_model.load_state_dict(weights, assign=True)
    return convert.to_jax(weights, jax_shapes(name, **options)), torch_model


def as_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
