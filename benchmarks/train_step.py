"""The training step of LMA networks against their plain hosts, in JAX and in PyTorch: speed, memory and host time.

    python benchmarks/train_step.py [--model resnet50_lma] [--batch 8] [--image_size 224] [--dtype float32]
        [--modes jax,jax_remat,torch,torch_compile] [--rounds 10] [--device cpu] [--json train_step.json]

The step is the trainer's own, on GPUs that with --nodeterministic: uint8 images in, normalised on the device,
cross-entropy, SGD with momentum and weight decay; PyTorch's does the same, channels_last and with autocast in bfloat16.
The variants take turns, in an order drawn anew each round, and ratios are taken within a round. It needs jax, flax,
optax, torch, numpy and absl alone.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from jax.sharding import NamedSharding

import common
import lma_torch
from convert.fps import Run, measure
from lma_jax.definition import Definition
from lma_jax.preprocessing import normalize
from lma_jax.registry import problem_with
from lma_jax.sharding import REPLICATED, SHARDED, data_mesh
from lma_jax.training.meter import Meter
from lma_jax.training.objective import Objective
from lma_jax.training.state import TrainState, build_optimizer, create_state
from lma_jax.training.step import is_product, make_train_step, widened

CLASSES = 1000
LMA_OVER_PLAIN = "LMA over plain"
PREPROCESSING = SimpleNamespace(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
# Of configs/common.py, which needs ml_collections.
RECIPE = dict(optimizer="sgd", momentum=0.9, weight_decay=1e-4, decay_norm_and_bias=True, clip_norm=0.0)


def random_batch(batch: int, side: int) -> dict[str, np.ndarray]:
    """What the loader gives, with random pixels."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (batch, side, side, 3), np.uint8),
        "label": rng.integers(0, CLASSES, batch, np.int32),
        "mask": np.ones(batch, bool),
        "skipped": np.zeros(batch, np.int32),
    }


class JaxStep:
    """The trainer's step, compiled; a call runs it once and waits.

    Attributes:
        memory: bytes that XLA plans for the step beyond its input, for its input, and those that automatic
            differentiation keeps for the backward pass.
    """

    def __init__(self, model: str, options: argparse.Namespace, *, remat: bool):
        config: Any = SimpleNamespace(
            **RECIPE, model=model, seed=0, dtype=options.dtype, batch_norm="local", ema_decay=0.0
        )
        self.mesh = mesh = data_mesh(jax.devices(options.device)[:1])  # one, as PyTorch's
        optimizer = build_optimizer(config, optax.constant_schedule(0.01))
        self.network, self.state = create_state(config, CLASSES, optimizer, NamedSharding(mesh, REPLICATED))
        step = make_train_step(
            self.network,
            optimizer,
            mesh,
            preprocessing=PREPROCESSING,
            objective=Objective(CLASSES),
            seed=0,
            remat=remat,
        )
        self.batch = jax.device_put(random_batch(options.batch, options.image_size), NamedSharding(mesh, SHARDED))
        self.step = step.lower(self.state, self.batch).compile()
        analysis = self.step.memory_analysis()
        self.memory = {
            "temporary": analysis.temp_size_in_bytes,
            "arguments": analysis.argument_size_in_bytes,
            "kept": kept_bytes(self.network, self.state, self.batch["image"], remat=remat),
        }

    def __call__(self) -> None:
        self.state, metrics = self.step(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))

    def host_seconds(self) -> float:
        """Processor time of the calling thread a step: dispatch and metrics, the median of 50.

        A CPU computes in the calling thread as well. So the arrays shrink to one element each.
        """
        place = NamedSharding(self.mesh, REPLICATED)
        hollow = jax.device_put(jax.tree.map(lambda _: np.zeros(1, np.float32), self.state), place)
        names = ("loss", "top1", "top5", "count", "skipped_images")
        step = jax.jit(
            lambda state, batch: (jax.tree.map(lambda leaf: leaf + 1, state), dict.fromkeys(names, jnp.float32(1))),
            donate_argnums=0,
            out_shardings=place,
        )
        meter, seconds = Meter(), []
        for number in range(60):
            start = time.thread_time()
            hollow, metrics = step(hollow, self.batch)
            meter.add(number, metrics)
            seconds.append(time.thread_time() - start)
            jax.block_until_ready(hollow)
        return float(np.median(seconds[10:]))


def kept_bytes(network: Definition, state: TrainState, images: jax.Array, *, remat: bool) -> int:
    """The feature maps that differentiating the loss keeps, before the compiler shares or drops any of them."""

    def loss(params: Any, images: jax.Array) -> jax.Array:
        logits = network.bind(params, state.batch_stats)(normalize(images, PREPROCESSING))
        return widened(logits).mean()

    function = jax.checkpoint(loss, policy=is_product) if remat else loss
    pullback = jax.eval_shape(lambda params: jax.vjp(lambda p: function(p, images), params)[1], state.params)
    maps = [leaf for leaf in jax.tree.leaves(pullback) if leaf.ndim == 4 and leaf.shape[0] == len(images)]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in maps)


def torch_step(model: str, options: argparse.Namespace, *, compiled: bool) -> Run:
    """The same step in PyTorch."""
    device = torch.device("cuda" if options.device == "gpu" else "cpu")
    network = lma_torch.create_model(model).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    batch = random_batch(options.batch, options.image_size)
    pixels = torch.from_numpy(batch["image"]).to(device).permute(0, 3, 1, 2)  # lies in memory as channels_last
    labels = torch.from_numpy(batch["label"]).long().to(device)
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in vars(PREPROCESSING).values())

    def loss_of(pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=options.dtype == "bfloat16"):
            logits = network((pixels / 255 - mean) / std)
        return torch.nn.functional.cross_entropy(logits.float(), labels)

    if compiled:
        loss_of = torch.compile(loss_of, fullgraph=True, dynamic=False)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(pixels, labels)
        loss.backward()
        optimizer.step()
        loss.item()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


MODES: dict[str, Callable[[str, argparse.Namespace], Run]] = {
    "jax": lambda model, options: JaxStep(model, options, remat=False),
    "jax_remat": lambda model, options: JaxStep(model, options, remat=True),
    "torch": lambda model, options: torch_step(model, options, compiled=False),
    "torch_compile": lambda model, options: torch_step(model, options, compiled=True),
}


def compared(names: list[str]) -> list[tuple[str, str, str]]:
    """Pairs of variants "<model> <mode>" whose speeds are compared, and what the ratio shows."""
    pairs = []
    for name in names:
        model, mode = name.split()
        others = [(f"{model.partition('_')[0]} {mode}", LMA_OVER_PLAIN)]
        if mode == "jax_remat":
            others.append((f"{model} jax", "with over without rematerialisation"))
        if mode == "jax":
            others += [(f"{model} {other}", f"JAX over {other}") for other in ("torch", "torch_compile")]
        pairs += [(name, other, shows) for other, shows in others if other in names and other != name]
    return pairs


def compare(
    options: argparse.Namespace, *, say: Callable[[str], object]
) -> tuple[dict[str, Any], list[Any], list[str]]:
    """Runs all variants: images/s and memory of each by name, the ratios between them, and what could not be run."""
    built: dict[str, Run] = {}

    def builder(name: str) -> Callable[[], Run]:
        model, mode = name.split()
        return lambda: built.setdefault(name, MODES[mode](model, options))

    models = dict.fromkeys(m for name in options.model.split(",") for m in (name, name.partition("_")[0]))
    names = [f"{model} {mode}" for model in models for mode in options.modes.split(",")]
    timings = measure({name: builder(name) for name in names}, rounds=options.rounds, say=say)
    done = common.finished(timings)
    steps: dict[str, Any] = {}
    for name, seconds in done.items():
        steps[name] = {"images_per_second": options.batch / float(np.median(seconds))}
        if isinstance(run := built[name], JaxStep):
            steps[name] |= {"host_ms": 1e3 * run.host_seconds(), **run.memory}
    ratios = [
        {"of": a, "over": b, "shows": shows, "quartiles": common.quartiles(done[b] / done[a])}
        for a, b, shows in compared([*done])
    ]
    return steps, ratios, common.failures(timings)


def arguments() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50_lma", help="networks with their hosts, separated by commas")
    parser.add_argument("--batch", type=common.count, default=8)
    parser.add_argument("--image_size", type=common.count, default=224)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--modes", default="jax,torch")
    parser.add_argument("--rounds", type=common.count, default=10)
    parser.add_argument("--device", default="cpu", choices=["cpu", "gpu"])
    parser.add_argument("--json", type=Path)
    return parser


def main() -> None:
    options = arguments().parse_args()
    if unknown := {*options.modes.split(",")} - {*MODES}:
        sys.exit(f"error: --modes has no {', '.join(sorted(unknown))!r}; it takes some of {', '.join(MODES)}")
    for name in options.model.split(","):
        if problem := problem_with(name):
            sys.exit(f"error: {problem}")
    torch.backends.cudnn.benchmark = True
    torch._dynamo.config.recompile_limit = 1 << 10
    steps, ratios, failed = compare(options, say=print)
    for name, row in steps.items():
        print(f"{name:28}{row['images_per_second']:10.1f} images/s", end="")
        if "host_ms" in row:
            planned, kept = row["temporary"] / 2**20, row["kept"] / 2**20
            print(f"{planned:10,.0f} MiB planned{kept:10,.0f} MiB kept{row['host_ms']:8.2f} ms on the host", end="")
        print()
    for ratio in ratios:
        low, median, high = ratio["quartiles"]
        print(f"{ratio['of']:28}{ratio['shows']:>40}  {median:.3f} ({low:.3f} to {high:.3f})")
    common.write_json(options, steps=steps, ratios=ratios)
    common.require(failed)


if __name__ == "__main__":
    main()
