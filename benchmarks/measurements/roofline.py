"""The LMA layer against the speed of memory.

LMA cannot gate a map before it has read all of it. It needs two reads and one write for two sums and two products per
value, so that memory bounds it everywhere.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx

import lma_jax
from measurements.lma_layer import FeatureMap, call_seconds, variants

# Reads and writes of the map: what LMA needs, over those of a copy.
NEEDED_OVER_COPY = 3 / 2


def passes(feature_map: FeatureMap) -> float:
    """Bytes that the compiled JAX layer reads and writes by XLA's count, over the size of the map."""
    graphdef, state = nnx.split(lma_jax.LMA(feature_map.channels, rngs=nnx.Rngs(0)))
    x = jax.ShapeDtypeStruct(feature_map.nhwc, feature_map.dtype)
    with jax.default_device(jax.devices(feature_map.device)[0]):
        analysis = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x)).lower(state, x).compile().cost_analysis()
    assert analysis is not None, "XLA counts no bytes for this device"
    return analysis["bytes accessed"] / feature_map.size


def copy_of(source: torch.Tensor) -> Callable[[], None]:
    """A call that copies `source` into memory that is already allocated."""
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        if source.is_cuda:
            torch.cuda.synchronize()

    return copy


def measured(feature_map: FeatureMap, *, steps: int) -> dict[str, Any]:
    """The medians over the rounds, in which a copy of the map and the layer take turns.

    Returns:
        "copy": speed of the copy in GB/s, read and written; "passes"; and "speeds": by variant the speed of the
        forward pass relative to three passes over the map at the speed of the copy.
    """
    calls = {name: pair.forward for name, pair in variants(feature_map).items() if not name.startswith("textbook")}
    source = torch.ones(feature_map.nhwc, **feature_map.torch_options)
    seconds = call_seconds({"copy": copy_of(source), **calls}, steps, time.perf_counter)
    return {
        "copy": float(2e-9 * feature_map.size / np.median(seconds["copy"])),
        "passes": passes(feature_map),
        "speeds": {name: float(np.median(NEEDED_OVER_COPY * seconds["copy"] / seconds[name])) for name in calls},
    }
