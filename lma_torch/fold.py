"""Batch normalisation folded into the convolutions before it, for inference."""

import copy
import itertools

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """An equivalent copy in evaluation mode, with batch normalisation folded into the preceding convolutions.

    Folded are neighbours in an nn.Sequential, and in any other module each convolution `conv<x>` with its normalisation
    `bn<x>`: such a module must call one directly after the other, as those of this project do.
    """
    model = copy.deepcopy(model).eval()
    for module in list(model.modules()):
        for conv, norm in neighbours(module):
            setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
            setattr(module, norm, nn.Identity())
    return model


def neighbours(module: nn.Module) -> list[tuple[str, str]]:
    """The names of the convolutions of a module, each with that of the BatchNorm directly after it."""
    names = [name for name, _ in module.named_children()]
    pairs = [(name, name.replace("conv", "bn", 1)) for name in names if name.startswith("conv")]
    if isinstance(module, nn.Sequential):
        pairs = list(itertools.pairwise(names))
    between = ("conv2", "bn2") if getattr(module, "position", None) == "conv" else None  # an attention module
    found = [(conv, norm) for conv, norm in pairs if norm in names and (conv, norm) != between]
    kinds = nn.Conv2d, nn.BatchNorm2d
    return [pair for pair in found if all(isinstance(getattr(module, name), kind) for name, kind in zip(pair, kinds))]
