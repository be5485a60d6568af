"""Weights for `create_model`, of a run or of a file, in both frameworks. Only runs need JAX, and only .pth PyTorch."""

import math
from pathlib import Path

import numpy as np

from lma_jax.weight_files import SUFFIXES, StateDict, read_weights

# The first convolution and the bias of the last linear layer of the backbones, by PyTorch's names.
INPUTS = ("conv1.weight", "features.0.0.weight")
HEADS = ("fc.bias", "classifier.1.bias")


def read_pretrained(source: str | Path, *, in_chans: int) -> tuple[StateDict, int]:
    """The weights, by PyTorch's names, of a run folder (its newest checkpoint) or of a file, for images of `in_chans`.

    Returns:
        The weights, and the number of their classes, 0 if they have no classifier.

    Raises:
        UserError: they are missing or damaged, or a package is missing.
    """
    path = Path(source)
    weights = read_weights(path)[0] if path.suffix in SUFFIXES else _of_run(path)
    adapted = {key: adapt_input(weights[key], in_chans) for key in INPUTS if key in weights}
    return {**weights, **adapted}, next((len(weights[key]) for key in HEADS if key in weights), 0)


def adapt_input(kernel: np.ndarray, in_chans: int) -> np.ndarray:
    """The weights (out, in, k, k) of the first convolution for images of `in_chans` channels, as timm adapts them.

    They are summed for one channel, and else repeated and scaled to the same total.
    """
    channels = kernel.shape[1]
    if in_chans == channels:
        return kernel
    if in_chans == 1:
        return kernel.sum(1, keepdims=True)
    repeated = np.tile(kernel, (1, math.ceil(in_chans / channels), 1, 1))[:, :in_chans]
    return repeated * np.asarray(channels / in_chans, kernel.dtype)


def _of_run(workdir: Path) -> StateDict:
    from lma_jax.checkpoint.format import load_checkpoint
    from lma_jax.checkpoint.restore import restore_model
    from lma_jax.state_dict import to_state_dict

    return to_state_dict(restore_model(load_checkpoint(workdir)))
