"""The LMA layer of both frameworks against its textbook form in PyTorch, and the memory traffic that it needs."""

import time
import timeit
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn

import convert
import lma_jax
import lma_torch
from convert.measure.timing import Quartiles, measure, quartiles
from measurements import results

# Channels and side of the map: the four stages of ResNet-50, and hidden maps of MobileNetV2.
SHAPES = ((256, 56), (512, 28), (1024, 14), (2048, 7), (96, 112), (144, 56), (192, 28), (384, 14), (576, 14), (960, 7))


class Target(NamedTuple):
    """The form that a variant is compared with, and the speed-ups to reach without and with the backward pass."""

    reference: str
    forward: float
    backward: float


TARGETS = {
    "torch": Target("textbook", 3.5, 2.0),
    "torch channels_last": Target("textbook", 3.5, 2.0),
    "torch channels_last / same": Target("textbook channels_last", 2.5, 2.0),
    "jax": Target("textbook", 6.0, 3.0),
}


@dataclass(frozen=True)
class FeatureMap:
    """The input of a layer: `batch_size` maps of `side` x `side` pixels.

    Attributes:
        channels: C.
        side: H and W.
        batch_size: N.
        dtype: of the map and of the layer's computation, such as "float32".
        device: "cpu" or "gpu".
    """

    channels: int
    side: int
    batch_size: int = 8
    dtype: str = "float32"
    device: str = "cpu"

    @property
    def nhwc(self) -> tuple[int, int, int, int]:
        return self.batch_size, self.side, self.side, self.channels

    @property
    def size(self) -> int:
        """Bytes."""
        return int(np.prod(self.nhwc)) * jnp.dtype(self.dtype).itemsize

    @property
    def torch_options(self) -> dict[str, Any]:
        """Device and dtype of PyTorch."""
        return dict(device="cuda" if self.device == "gpu" else "cpu", dtype=getattr(torch, self.dtype))


class Calls(NamedTuple):
    """A layer on a fixed input. Each call returns when its result is there.

    Attributes:
        forward: returns the output.
        backward: forward and backward pass. It returns the gradients of the input and of the kernels.
    """

    forward: Callable[[], Any]
    backward: Callable[[], Any]


class Textbook(nn.Module):
    """LMA as the formulas read: adaptive pools, a convolution over one channel, expansion and two products."""

    def __init__(self, channels: int):
        super().__init__()
        size = lma_torch.kernel_size_for(channels)
        self.pool_h, self.pool_w = nn.AdaptiveAvgPool2d((None, 1)), nn.AdaptiveAvgPool2d((1, None))
        self.conv_h = nn.Conv2d(1, 1, (1, size), padding=(0, size // 2), bias=False)
        self.conv_w = nn.Conv2d(1, 1, (1, size), padding=(0, size // 2), bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # (N, C, H, 1) and (N, C, 1, W) -> one-channel images (N, 1, H, C) and (N, 1, W, C)
        profile_h = self.pool_h(x).squeeze(3).permute(0, 2, 1).unsqueeze(1)
        profile_w = self.pool_w(x).squeeze(2).permute(0, 2, 1).unsqueeze(1)
        gate_h = torch.sigmoid(self.conv_h(profile_h)).squeeze(1).permute(0, 2, 1).unsqueeze(3).expand_as(x)
        gate_w = torch.sigmoid(self.conv_w(profile_w)).squeeze(1).permute(0, 2, 1).unsqueeze(2).expand_as(x)
        return x * gate_h * gate_w


def variants(feature_map: FeatureMap) -> dict[str, Calls]:
    """The layer and its textbook form by name; all have the same kernels and the same random input."""
    layer = lma_torch.LMA(feature_map.channels)
    textbook = Textbook(feature_map.channels)
    textbook.load_state_dict(layer.state_dict())
    jax_layer = convert.to_jax(layer.state_dict(), lma_jax.LMA(feature_map.channels, rngs=nnx.Rngs(0)))
    pixels = np.random.default_rng(0).standard_normal(feature_map.nhwc, np.float32)
    last = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(**feature_map.torch_options)
    x = last.contiguous()
    layer, textbook = layer.to(**feature_map.torch_options), textbook.to(**feature_map.torch_options)
    return {
        "textbook": torch_calls(textbook, x),
        "textbook channels_last": torch_calls(textbook, last),
        "torch": torch_calls(layer, x),
        "torch channels_last": torch_calls(layer, last),
        "jax": jax_calls(jax_layer, jnp.asarray(pixels, feature_map.dtype), feature_map.device),
    }


def torch_calls(layer: nn.Module, x: torch.Tensor) -> Calls:
    """The calls of a PyTorch layer."""
    leaf, gradient = x.clone().requires_grad_(), torch.ones_like(x)

    def forward() -> torch.Tensor:
        with torch.inference_mode():
            return layer(x)

    def backward() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(layer(leaf), [leaf, *layer.parameters()], gradient)

    def synchronized(call: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            result = call()
            torch.cuda.synchronize()
            return result

        return run if x.is_cuda else call

    return Calls(synchronized(forward), synchronized(backward))


def jax_calls(layer: nnx.Module, x: jax.Array, device: str) -> Calls:
    """The calls of a JAX layer."""
    graphdef, state = nnx.split(layer)
    state, x = jax.device_put((state, x), jax.devices(device)[0])
    forward = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))

    @jax.jit
    def backward(state: nnx.State, x: jax.Array, gradient: jax.Array) -> Any:
        # The output is a result as well, so that the compiler cannot leave it out.
        output, pullback = jax.vjp(lambda x, state: nnx.merge(graphdef, state)(x), x, state)
        return output, pullback(gradient)

    ones = jnp.ones_like(x)
    return Calls(
        forward=lambda: jax.block_until_ready(forward(state, x)),
        backward=lambda: jax.block_until_ready(backward(state, x, ones))[1],
    )


def call_seconds(calls: dict[str, Callable[[], Any]], steps: int, clock: Callable[[], float]) -> dict[str, np.ndarray]:
    """Seconds per call, by round. The variants take turns of at most about 50 ms."""
    slowest = max(min(timeit.repeat(call, number=1, repeat=3)) for call in calls.values())
    repeats = round(max(1, 0.05 / slowest))
    builders = {name: lambda call=call: lambda: [call() for _ in range(repeats)] for name, call in calls.items()}
    timings = results.require_all(measure(builders, rounds=steps, clock=clock, say=lambda line: None))
    return {name: np.array(timing.seconds) / repeats for name, timing in timings.items()}


def speedups(feature_map: FeatureMap, *, with_backward: bool, steps: int) -> dict[str, Quartiles]:
    """Quartiles of the textbook form's time over that of each variant in TARGETS.

    On a CPU the clock counts the processor time of all threads, which other users of the machine do not change. A GPU
    has only wall-clock time.
    """
    found = variants(feature_map)
    calls = {name: pair.backward if with_backward else pair.forward for name, pair in found.items()}
    seconds = call_seconds(calls, steps, time.process_time if feature_map.device == "cpu" else time.perf_counter)
    return {
        name: quartiles(seconds[target.reference] / seconds[name.partition(" /")[0]])
        for name, target in TARGETS.items()
    }
