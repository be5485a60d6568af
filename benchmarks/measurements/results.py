"""The results of a command: timings by variant, variants that could not be run, and the JSON file."""

import argparse
import json
import sys
from collections.abc import Iterable
from typing import Any

import jax
import torch

from convert.measure.timing import Timing
from lma_jax import files


def require_all(timings: Iterable[Timing[str]]) -> dict[str, Timing[str]]:
    """The timings by variant; exits with an error if one could not be run."""
    timings = list(timings)
    exit_on(failures(timings))
    return finished(timings)


def finished(timings: Iterable[Timing[str]]) -> dict[str, Timing[str]]:
    """The timings of the variants that could be run."""
    return {timing.variant: timing for timing in timings if timing.error is None}


def failures(timings: Iterable[Timing[str]]) -> list[str]:
    """The variants that could not be run, each with its reason."""
    return [f"{timing.variant}: {timing.error}" for timing in timings if timing.error]


def exit_on(failed: list[str]) -> None:
    """Exits with an error that lists `failed`, unless it is empty."""
    if failed:
        sys.exit("error: " + "; ".join(failed))


def write_json(options: argparse.Namespace, **results: Any) -> None:
    """Writes `results` to options.json, if it is given, with the options, the versions and the GPU."""
    if options.json is None:
        return
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    settings = {**vars(options), "json": None, "jax": jax.__version__, "torch": torch.__version__, "gpu": gpu}
    files.write(options.json, json.dumps({"settings": settings, **results}, indent=1) + "\n")
