"""Multiply-accumulates of a network or of each of its layers, counted in the operations that it calls."""

import copy
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lma_torch.lma import LMA


def count_macs(model: nn.Module, *inputs: Tensor) -> int:
    """The sum of `macs_by_layer`: the multiply-accumulates of a call in evaluation mode."""
    return sum(macs_by_layer(model, *inputs).values())


def macs_by_layer(model: nn.Module, *inputs: Tensor) -> dict[str, int]:
    """Multiply-accumulates of every layer in a call in evaluation mode, by its dotted path ("" is the network itself).

    Convolutions, padding included, and matrix products count, in functional form too, and biases do not. Each belongs
    to the innermost layer whose call contains it; a layer without any is left out. LMA counts as published: its
    correlations are convolutions. `lma_jax.flops.macs_by_layer` gives the same.

    Args:
        model: any network, on any device; it is left as it is.
        inputs: tensors on any device, of which only the shapes matter. Nothing is computed.
    """
    model = as_published(copy.deepcopy(model).to("meta").eval())
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), torch.device("meta"), counter:
        model(*(x.to("meta") for x in inputs))
    # It counts two operations for each, under the names of all modules around it.
    totals = {name: sum(count.values()) // 2 for name, count in counter.get_flop_counts().items()}
    macs = {}
    for path, module in model.named_modules():
        name = ".".join(filter(None, (type(model).__name__, path)))
        macs[path] = totals.get(name, 0) - sum(totals.get(f"{name}.{child}", 0) for child, _ in module.named_children())
    return {layer: number for layer, number in macs.items() if number}


def as_published(model: nn.Module) -> nn.Module:
    """Makes every LMA of a network call its convolutions, so that counters of operations see them; returns the network.

    It computes the same, slower.
    """
    for module in model.modules():
        if isinstance(module, LMA):
            module.forward = partial(lma_as_published, module)  # type: ignore[method-assign]
    return model


def lma_as_published(layer: LMA, x: Tensor) -> Tensor:
    """LMA's function by calls of its two convolutions; slower than `layer(x)`."""
    half = layer.kernel_size // 2
    profile_h, profile_w = x.mean(3), x.mean(2)
    gate_h = layer.conv_h(F.pad(profile_h.mT[:, None], (half, half)))[:, 0].mT.sigmoid()
    gate_w = layer.conv_w(F.pad(profile_w.mT[:, None], (half, half)))[:, 0].mT.sigmoid()
    return x * gate_w[:, :, None] * gate_h[:, :, :, None]
