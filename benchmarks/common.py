"""What the benchmarks share."""

import argparse
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # both frameworks share a GPU
sys.path.insert(0, str(Path(__file__).parent.parent))

import jax
import numpy as np
import torch

from convert.fps import Timing


def count(text: str) -> int:
    """An option that is a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"takes a whole number above 0, not {text!r}")
    return int(text)


def quartiles(ratios: np.ndarray) -> list[float]:
    """Lower quartile, median and upper quartile."""
    return np.percentile(ratios, (25, 50, 75)).tolist()


def seconds_of(timings: Iterable[Timing]) -> dict[str, np.ndarray]:
    """Seconds by round of each variant; ends the program where one could not be run."""
    timings = list(timings)
    require(failures(timings))
    return finished(timings)


def finished(timings: Iterable[Timing]) -> dict[str, np.ndarray]:
    """Seconds by round of each variant that could be run."""
    return {timing.variant: np.array(timing.seconds) for timing in timings if timing.error is None}


def failures(timings: Iterable[Timing]) -> list[str]:
    """The variants that could not be run, with the reason."""
    return [f"{timing.variant}: {timing.error}" for timing in timings if timing.error]


def require(failed: list[str]) -> None:
    """Ends the program with these failures, if there are any."""
    if failed:
        sys.exit("error: " + "; ".join(failed))


def write_json(options: argparse.Namespace, **results: Any) -> None:
    """Writes results to options.json, if it is given, with the settings, versions and the GPU."""
    if options.json is None:
        return
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    settings = {**vars(options), "json": None, "jax": jax.__version__, "torch": torch.__version__, "gpu": gpu}
    options.json.write_text(json.dumps({"settings": settings, **results}, indent=1) + "\n")
