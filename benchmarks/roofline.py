"""What the LMA layer must move, what it does move, and how near it comes to the memory's speed.

    python benchmarks/roofline.py [--batch 8] [--dtype float32] [--device cpu] [--rounds 10] [--json roofline.json]

LMA cannot gate a map before it has seen all of it: it needs two reads and one write, for two sums and two products
a value, so that memory bounds it everywhere. "passes" are XLA's count of the bytes of the compiled layer, in
maps; the floor is three passes at the speed of a plain copy of the same map, which is two. Copy and layer take turns.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import common
import lma_jax
import lma_layer


def passes(channels: int, side: int, options: argparse.Namespace) -> float:
    """Bytes that the compiled layer reads and writes, in maps."""
    graphdef, state = nnx.split(lma_jax.LMA(channels, rngs=nnx.Rngs(0)))
    x = jax.ShapeDtypeStruct((options.batch, side, side, channels), options.dtype)
    with jax.default_device(jax.devices(options.device)[0]):
        analysis = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x)).lower(state, x).compile().cost_analysis()
    return analysis["bytes accessed"] / (x.size * x.dtype.itemsize)


def copy_of(source: torch.Tensor) -> Callable[[], object]:
    """A call that copies `source` to memory that is there already."""
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        if source.is_cuda:
            torch.cuda.synchronize()

    return copy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=common.count, default=8)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "gpu"])
    parser.add_argument("--rounds", type=common.count, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    print(f"{'map':>12}{'MiB':>8}{'copy GB/s':>11}{'passes':>8}   speed in parts of the floor's")
    for channels, side in lma_layer.SHAPES:
        size = options.batch * side * side * channels * jnp.dtype(options.dtype).itemsize
        source = torch.ones(options.batch, side, side, channels, dtype=getattr(torch, options.dtype))
        source = source.to("cuda" if options.device == "gpu" else "cpu")
        names = ("torch", "torch channels_last", "jax")
        calls = {name: pair[False] for name, pair in lma_layer.variants(channels, side, options).items()}
        turns = {"copy": copy_of(source), **{name: calls[name] for name in names}}
        seconds = lma_layer.timed(turns, options.rounds, time.perf_counter)
        speed = {name: float(np.median(1.5 * seconds["copy"] / seconds[name])) for name in names}
        gigabytes = float(2e-9 * size / np.median(seconds["copy"]))
        row = dict(channels=channels, side=side, copy=gigabytes, passes=passes(channels, side, options), **speed)
        rows.append(row)
        parts = "  ".join(f"{name} {speed[name]:.2f}" for name in names)
        print(
            f"{f'{channels} x {side}':>12}{size / 2**20:8.1f}{gigabytes:11.1f}{row['passes']:8.2f}   {parts}",
            flush=True,
        )
    common.write_json(options, rows=rows)


if __name__ == "__main__":
    main()
