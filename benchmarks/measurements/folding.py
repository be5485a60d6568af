"""Networks with and without folded batch normalisation, in both frameworks."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import lma_jax
import lma_torch
from convert.measure.runs import jax_run, torch_run
from convert.measure.timing import Quartiles, Run, measure, speedup
from measurements import results


def build(variant: str, model: str, *, batch_size: int, image_size: int, device: str) -> Run:
    """The network of a variant "<framework>[ folded]" on random images; weights are random, the same for a framework.

    Args:
        variant: such as "jax" or "torch folded".
        model: name of the network.
        batch_size: images per call.
        image_size: height and width of the images in pixels.
        device: "cpu" or "gpu".
    """
    framework, _, folded = variant.partition(" ")
    pixels = np.random.default_rng(0).standard_normal((batch_size, image_size, image_size, 3), np.float32)
    if framework == "jax":
        network = nnx.jit(lambda: lma_jax.create_model(model, rngs=nnx.Rngs(0)))()
        images = jax.device_put(jnp.asarray(pixels), jax.devices(device)[0])
        return jax_run(lma_jax.fold_batch_norm(network) if folded else network, images)
    torch_device = "cuda" if device == "gpu" else "cpu"
    torch.manual_seed(0)
    torch_network = lma_torch.create_model(model).to(torch_device).eval()
    torch_images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch_device)
    return torch_run(
        lma_torch.fold_batch_norm(torch_network) if folded else torch_network, torch_images, "channels_last"
    )


def speedups(model: str, *, batch_size: int, image_size: int, device: str, steps: int) -> dict[str, Quartiles]:
    """Quartiles of the folded network's images/s over the unfolded one's, by framework."""
    shape = dict(batch_size=batch_size, image_size=image_size)
    variants = ("jax", "jax folded", "torch", "torch folded")
    builders = {variant: lambda variant=variant: build(variant, model, **shape, device=device) for variant in variants}
    timings = results.require_all(measure(builders, rounds=steps))
    return {name: speedup(timings[f"{name} folded"], timings[name]) for name in ("jax", "torch")}
