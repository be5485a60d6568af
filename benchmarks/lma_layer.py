"""The LMA layer of both frameworks against its textbook form in PyTorch, forward and with the backward pass.

    python benchmarks/lma_layer.py [--json lma_layer.json] [--rounds 30] [--batch 8] [--dtype float32]
        [--device cpu]

Everything takes turns in an order drawn anew each round; ratios are taken within a round, on the shapes of ResNet-50
and MobileNetV2 at 224 x 224. Each timed call follows an untimed one and ends when its result is there. Above 1 is
faster than the textbook form. On a CPU the clock counts the time of both cores, which other users of the machine do
not move; a GPU has only the wall's. It needs jax, flax, torch, numpy and absl alone.
"""

import argparse
import time
import timeit
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn

import common
import convert
import lma_jax
import lma_torch
from convert.fps import measure

# Channels and side of the map: the four stages of ResNet-50, and hidden maps of MobileNetV2.
SHAPES = ((256, 56), (512, 28), (1024, 14), (2048, 7), (96, 112), (144, 56), (192, 28), (384, 14), (576, 14), (960, 7))
# By what is compared: with which form, and the speed-ups aimed at, without and with the backward pass.
TARGETS = {
    "torch": ("textbook", 3.5, 2.0),
    "torch channels_last": ("textbook", 3.5, 2.0),
    "torch channels_last / same": ("textbook channels_last", 2.5, 2.0),
    "jax": ("textbook", 6.0, 3.0),
}


class Textbook(nn.Module):
    """LMA as the formulas read: adaptive pools, a convolution over one channel, expansion and two products."""

    def __init__(self, channels: int):
        super().__init__()
        taps = lma_torch.kernel_size_for(channels)
        self.pool_h, self.pool_w = nn.AdaptiveAvgPool2d((None, 1)), nn.AdaptiveAvgPool2d((1, None))
        self.conv_h = nn.Conv2d(1, 1, (1, taps), padding=(0, taps // 2), bias=False)
        self.conv_w = nn.Conv2d(1, 1, (1, taps), padding=(0, taps // 2), bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # (N, C, H, 1) and (N, C, 1, W) -> one-channel images (N, 1, H, C) and (N, 1, W, C)
        profile_h = self.pool_h(x).squeeze(3).permute(0, 2, 1).unsqueeze(1)
        profile_w = self.pool_w(x).squeeze(2).permute(0, 2, 1).unsqueeze(1)
        gate_h = torch.sigmoid(self.conv_h(profile_h)).squeeze(1).permute(0, 2, 1).unsqueeze(3).expand_as(x)
        gate_w = torch.sigmoid(self.conv_w(profile_w)).squeeze(1).permute(0, 2, 1).unsqueeze(2).expand_as(x)
        return x * gate_h * gate_w


def variants(channels: int, side: int, options: argparse.Namespace) -> dict[str, dict[bool, Callable[[], object]]]:
    """By name, the layer as a call without and with the backward pass; all hold the same taps and input."""
    device = torch.device("cuda" if options.device == "gpu" else "cpu")
    dtype = getattr(torch, options.dtype)
    layer = lma_torch.LMA(channels)
    textbook = Textbook(channels)
    textbook.load_state_dict(layer.state_dict())
    jax_layer = convert.to_jax(layer.state_dict(), lma_jax.LMA(channels, rngs=nnx.Rngs(0)))
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((options.batch, channels, side, side), np.float32))
    last = dict(memory_format=torch.channels_last)
    return {
        "textbook": of_torch(textbook.to(device, dtype), x.to(device, dtype)),
        "textbook channels_last": of_torch(textbook.to(device, dtype), x.to(device, dtype).contiguous(**last)),
        "torch": of_torch(layer.to(device, dtype), x.to(device, dtype)),
        "torch channels_last": of_torch(layer.to(device, dtype), x.to(device, dtype).contiguous(**last)),
        "jax": of_jax(jax_layer, jnp.asarray(x.permute(0, 2, 3, 1).numpy(), options.dtype), options.device),
    }


def of_torch(layer: nn.Module, x: torch.Tensor) -> dict[bool, Callable[[], object]]:
    """The calls of a PyTorch layer."""
    leaf, gradient = x.clone().requires_grad_(), torch.ones_like(x)

    def forward() -> object:
        with torch.inference_mode():
            return layer(x)

    def backward() -> object:
        return torch.autograd.grad(layer(leaf), [leaf, *layer.parameters()], gradient)

    def waited(call: Callable[[], object]) -> Callable[[], object]:
        return (lambda: (call(), torch.cuda.synchronize())) if x.is_cuda else call

    return {False: waited(forward), True: waited(backward)}


def of_jax(layer: nnx.Module, x: jax.Array, device: str) -> dict[bool, Callable[[], object]]:
    """The calls of a JAX layer."""
    graphdef, state = nnx.split(layer)
    state, x = jax.device_put((state, x), jax.devices(device)[0])
    forward = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))

    @jax.jit
    def backward(state: nnx.State, x: jax.Array, gradient: jax.Array) -> object:
        output, pullback = jax.vjp(lambda state, x: nnx.merge(graphdef, state)(x), state, x)
        return output, pullback(gradient)

    ones = jnp.ones_like(x)
    return {
        False: lambda: jax.block_until_ready(forward(state, x)),
        True: lambda: jax.block_until_ready(backward(state, x, ones)),
    }


def timed(calls: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float]) -> dict[str, np.ndarray]:
    """Seconds of a call by round, the calls taking turns of at most about 50 ms."""
    slowest = max(min(timeit.repeat(call, number=1, repeat=3)) for call in calls.values())
    repeats = round(max(1, 0.05 / slowest))
    builders = {name: lambda call=call: lambda: [call() for _ in range(repeats)] for name, call in calls.items()}
    seconds = common.seconds_of(measure(builders, rounds=rounds, clock=clock, say=lambda _: None))
    return {name: values / repeats for name, values in seconds.items()}


def speedups(channels: int, side: int, with_backward: bool, options: argparse.Namespace) -> dict[str, list[float]]:
    """Quartiles of the textbook form's seconds over those of each variant in TARGETS."""
    calls = {name: pair[with_backward] for name, pair in variants(channels, side, options).items()}
    seconds = timed(calls, options.rounds, time.process_time if options.device == "cpu" else time.perf_counter)
    return {
        name: common.quartiles(seconds[reference] / seconds[name.partition(" /")[0]])
        for name, (reference, *_) in TARGETS.items()
    }


def arguments() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=common.count, default=30)
    parser.add_argument("--batch", type=common.count, default=8)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "gpu"])
    return parser


def main() -> None:
    options = arguments().parse_args()
    aimed_at = (options.device, options.dtype) == ("cpu", "float32")
    rows = []
    print(f"{'':14}{'map':>12}" + "".join(f"{name:>32}" for name in TARGETS) + "   times the textbook form's speed")
    for with_backward in (False, True):
        title = "with backward" if with_backward else "forward"
        own = []
        for channels, side in SHAPES:
            found = speedups(channels, side, with_backward, options)
            own.append([median for _, median, _ in found.values()])
            rows.append({"pass": title, "channels": channels, "side": side, **found})
            cells = "".join(f"{f'{median:.2f} ({low:.2f} to {high:.2f})':>32}" for low, median, high in found.values())
            print(f"{title:14}{f'{channels} x {side}':>12}{cells}", flush=True)
        for (name, target), mean in zip(TARGETS.items(), np.exp(np.log(own).mean(0))):
            aim = f", target {target[1 + with_backward]}" if aimed_at else ""
            print(f"{title:14}{name:>32}: geometric mean {mean:.2f}{aim}")
    common.write_json(options, rows=rows)


if __name__ == "__main__":
    main()
