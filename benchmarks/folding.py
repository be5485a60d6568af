"""What folded batch normalisation saves in inference, in both frameworks.

    python benchmarks/folding.py [--model resnet50_lma] [--batch 8] [--image_size 224] [--rounds 10] [--device cpu]

Images/s of the folded network over those of the live one, taken in turns; both have the same random weights. It
needs jax, flax, torch, numpy and absl alone.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import common
import lma_jax
import lma_torch
from convert.fps import Run, jax_run, measure, torch_run


def build(name: str, options: argparse.Namespace) -> Run:
    """The network of a variant "<framework>[ folded]" on random images."""
    framework, _, folded = name.partition(" ")
    pixels = np.random.default_rng(0).standard_normal((options.batch, *2 * (options.image_size,), 3), np.float32)
    if framework == "jax":
        model = nnx.jit(lambda: lma_jax.create_model(options.model, rngs=nnx.Rngs(0)))()
        images = jax.device_put(jnp.asarray(pixels), jax.devices(options.device)[0])
        return jax_run(lma_jax.fold_batch_norm(model) if folded else model, images)
    device = "cuda" if options.device == "gpu" else "cpu"
    torch.manual_seed(0)
    network = lma_torch.create_model(options.model).to(device).eval()
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device)
    return torch_run(lma_torch.fold_batch_norm(network) if folded else network, images, "channels_last")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50_lma")
    parser.add_argument("--batch", type=common.count, default=8)
    parser.add_argument("--image_size", type=common.count, default=224)
    parser.add_argument("--rounds", type=common.count, default=10)
    parser.add_argument("--device", default="cpu", choices=["cpu", "gpu"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    names = ("jax", "jax folded", "torch", "torch folded")
    timings = measure({name: lambda name=name: build(name, options) for name in names}, rounds=options.rounds)
    seconds = common.seconds_of(timings)
    rows = {name: common.quartiles(seconds[name] / seconds[f"{name} folded"]) for name in ("jax", "torch")}
    for name, (low, median, high) in rows.items():
        print(f"{options.model} {name}: folded / live {median:.3f} ({low:.3f} to {high:.3f})")
    common.write_json(options, **rows)


if __name__ == "__main__":
    main()
