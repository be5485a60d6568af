"""What the formats of whole programs share: a check of the program as it was serialised.

A program takes a float32 batch of any size of normalised images of one height and width, and returns logits. It runs
without this package.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from convert.export.verified import VerifiedPair

# Largest difference between the logits of a program and of the network, relative to the largest logit.
TOLERANCE = 1e-5

Program = Callable[[np.ndarray], np.ndarray]


def checked_metadata(pair: VerifiedPair, program: Program, *, fold: bool) -> dict[str, Any]:
    """The metadata of a program, with its difference from the network.

    The program is run on one image, a batch size that it has not seen before.

    Args:
        pair: the network.
        program: maps (N, H, W, 3) float32 to logits, by what was serialised.
        fold: whether batch normalisation is folded in the program.

    Raises:
        ArithmeticError: the difference exceeds the tolerance, which is a bug of the exporter.
    """
    image = pair.images[:1].astype(np.float32)
    with torch.inference_mode():
        wanted = pair.torch_model.eval()(nchw(image)).numpy()
    relative = float(np.abs(program(image) - wanted).max() / np.abs(wanted).max())
    if not relative <= TOLERANCE:
        raise ArithmeticError(f"the program differs from the network by {relative:.1e}, {TOLERANCE:.0e} are allowed")
    result: Mapping[str, Any] = {"relative": relative, "tolerance": TOLERANCE}
    return {**pair.metadata, "batch_norm_folded": fold, "program": result}


def nchw(images: np.ndarray) -> torch.Tensor:
    """(N, H, W, 3) -> (N, 3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
