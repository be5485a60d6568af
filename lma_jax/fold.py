"""Batch normalisation folded into the convolutions before it, for inference."""

import itertools
from typing import Any

import jax
from flax import nnx

from lma_jax.layers import BatchNorm, Identity, Sequential


def fold_batch_norm(model: nnx.Module) -> nnx.Module:
    """An equivalent copy in evaluation mode, with batch normalisation folded into the preceding convolutions.

    Folded are neighbours in a Sequential, and in any other module each convolution `conv<x>` with its normalisation
    `bn<x>`: such a module must call one directly after the other, as those of this project do.
    """
    model = nnx.clone(model)
    model.eval()
    for _, module in list(nnx.iter_modules(model)):
        for conv, norm in neighbours(module):
            fuse(child(module, conv), child(module, norm))
            if isinstance(module, Sequential):
                module[norm] = Identity()
            else:
                setattr(module, norm, Identity())
    return model


def fuse(conv: nnx.Conv, norm: BatchNorm) -> None:
    """Gives a convolution the scale and shift of a BatchNorm in evaluation mode."""
    scale = norm.scale[...] * jax.lax.rsqrt(norm.var[...] + norm.epsilon)
    bias = norm.bias[...] - norm.mean[...] * scale
    if conv.bias is not None:
        bias = bias + conv.bias[...] * scale
    dtype = conv.kernel.dtype
    conv.kernel.set_value((conv.kernel[...] * scale).astype(dtype))
    conv.bias = nnx.Param(bias.astype(dtype))
    conv.use_bias = True


def neighbours(module: nnx.Module) -> list[tuple[Any, Any]]:
    """The names of the convolutions of a module, each with that of the BatchNorm directly after it."""
    names: list[Any]
    if isinstance(module, Sequential):
        names = list(range(len(module)))
        pairs = list(itertools.pairwise(names))
    else:
        names = list(vars(module))
        pairs = [(name, name.replace("conv", "bn", 1)) for name in names if name.startswith("conv")]
    between = ("conv2", "bn2") if getattr(module, "position", None) == "conv" else None  # an attention module
    found = [(conv, norm) for conv, norm in pairs if norm in names and (conv, norm) != between]
    kinds = nnx.Conv, BatchNorm
    return [pair for pair in found if all(isinstance(child(module, name), kind) for name, kind in zip(pair, kinds))]


def child(module: Any, name: Any) -> Any:
    """A member of a Sequential by its number, or an attribute."""
    return module[name] if isinstance(module, Sequential) else getattr(module, name)
