"""Ways to run a network in evaluation mode on a batch of random images, in both frameworks."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from convert.measure.timing import Run
from lma_jax.errors import UserError

if TYPE_CHECKING:
    import jax
    import torch
    from flax import nnx

MODES = {"jax": ("jit",), "torch": ("eager", "channels_last", "compile", "compile_channels_last")}
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Variant:
    """One way to run a network.

    Attributes:
        model: name of the network.
        framework: "jax" or "torch".
        mode: one of MODES[framework].
        dtype: of weights, images and computation, one of DTYPES.
        batch_size: images per call.
    """

    model: str
    framework: str
    mode: str
    dtype: str
    batch_size: int

    def __str__(self) -> str:
        return f"{self.model} {self.framework} {self.mode} {self.dtype} batch {self.batch_size}"


def build(variant: Variant, size: int, device: str) -> Run:
    """The network of a variant with random weights, on random images.

    Args:
        variant: what to run.
        size: height and width of the images in pixels.
        device: "cpu" or "gpu".
    """
    shape = (variant.batch_size, size, size, 3)
    pixels = np.random.default_rng(0).standard_normal(shape, np.float32)
    if variant.framework == "jax":
        import jax
        import jax.numpy as jnp
        from flax import nnx

        import lma_jax

        jax_device = jax.devices(device)[0]
        dtype = jnp.dtype(variant.dtype)
        with jax.default_device(jax_device):
            jax_model = nnx.jit(
                lambda: lma_jax.create_model(variant.model, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))
            )()
        return jax_run(jax_model, jax.device_put(jnp.asarray(pixels, dtype), jax_device))
    import torch

    import lma_torch

    options = dict(device="cuda" if device == "gpu" else "cpu", dtype=getattr(torch, variant.dtype))
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(**options)
    return torch_run(lma_torch.create_model(variant.model).to(**options), images, variant.mode)


def jax_run(model: "nnx.Module", images: "jax.Array") -> Run:
    """Runs a batch by jax.jit.

    Args:
        model: a network; it is put into evaluation mode.
        images: (N, H, W, 3), on the device to use.
    """
    import jax
    from flax import nnx

    model.eval()
    graphdef, state = nnx.split(model)
    # As a list: flattening the state in each call takes longer than a small network.
    leaves, structure = jax.tree.flatten(jax.device_put(state, images.device))
    forward = jax.jit(lambda leaves, images: nnx.merge(graphdef, jax.tree.unflatten(structure, leaves))(images))
    return lambda: jax.block_until_ready(forward(leaves, images))


def torch_run(model: "torch.nn.Module", images: "torch.Tensor", mode: str) -> Run:
    """Runs a batch in PyTorch.

    Args:
        model: a network; it is put into evaluation mode.
        images: (N, 3, H, W), on the device of the model.
        mode: one of MODES["torch"].
    """
    import torch

    model.eval()
    if mode.endswith("channels_last"):
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = images.contiguous(memory_format=torch.channels_last)
    # fullgraph: beyond its limit of variants, torch.compile would silently fall back to eager mode.
    forward = torch.compile(model, fullgraph=True, dynamic=False) if mode.startswith("compile") else model

    def run() -> object:
        with torch.inference_mode():
            logits = forward(images)
        if images.is_cuda:
            torch.cuda.synchronize()
        return logits

    return run


def choose_device(wanted: str, frameworks: Sequence[str]) -> tuple[str, str]:
    """The device that all `frameworks` can use, "cpu" or "gpu", and its name.

    Args:
        wanted: "cpu", "gpu", or "auto" for a GPU if there is one.
        frameworks: "jax", "torch" or both.

    Raises:
        UserError: a GPU is wanted, and one of the frameworks cannot use one.
    """
    import jax
    import torch

    present = {"jax": jax.default_backend() == "gpu", "torch": torch.cuda.is_available()}
    missing = [framework for framework in frameworks if not present[framework]]
    if wanted == "gpu" and missing:
        raise UserError(f"{' and '.join(missing)} cannot use a GPU here: choose --device=cpu or another --framework")
    if wanted == "cpu" or missing:
        return "cpu", f"{platform.machine()} CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads of PyTorch"
    return "gpu", torch.cuda.get_device_name() if present["torch"] else jax.devices("gpu")[0].device_kind
