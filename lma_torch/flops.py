"""Multiply-accumulates of a network or of each of its layers, counted in the operations that it calls."""

import copy

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def count_macs(model: nn.Module, *inputs: Tensor) -> int:
    """The sum of `macs_by_layer`: the multiply-accumulates of a call in evaluation mode."""
    return sum(macs_by_layer(model, *inputs).values())


def macs_by_layer(model: nn.Module, *inputs: Tensor) -> dict[str, int]:
    """Multiply-accumulates of every layer in a call in evaluation mode, by its dotted path ("" is the network itself).

    Convolutions, padding included, and matrix products count, in functional form too, and biases do not. Each belongs
    to the innermost layer whose call contains it; a layer without any is left out. LMA counts as published, as it does
    for every counter of operations: its correlations are convolutions. `lma_jax.flops.macs_by_layer` gives the same.

    Args:
        model: any network, on any device; it is left as it is.
        inputs: tensors on any device, of which only the shapes matter. Nothing is computed.
    """
    model = copy.deepcopy(model).to("meta").eval()
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
