"""Training steps of both frameworks: speed, memory and the time that the host spends on a step."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from jax.sharding import NamedSharding

import lma_torch
from convert.measure.timing import Run, measure, speedup
from lma_jax.data.batch import random_batch
from lma_jax.definition import Definition
from lma_jax.layers import widened
from lma_jax.preprocessing import IMAGENET, normalize
from lma_jax.registry import parts_of, problem_with
from lma_jax.sharding import REPLICATED, SHARDED, data_mesh
from lma_jax.training.meter import Meter
from lma_jax.training.objective import Objective
from lma_jax.training.state import TrainState, build_model, build_optimizer, create_state
from lma_jax.training.step import is_product, make_train_step
from measurements import results

NUM_CLASSES = 1000
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 1e-4
SEED = 0
LMA_OVER_PLAIN = "LMA over plain"
REMAT_OVER_NOT = "with over without rematerialisation"


@dataclass(frozen=True)
class Setting:
    """What all variants share.

    Attributes:
        batch_size: images per step.
        image_size: height and width of the images in pixels.
        dtype: of the computation, "float32" or "bfloat16"; weights are float32.
        device: "cpu" or "gpu".
    """

    batch_size: int
    image_size: int
    dtype: str = "float32"
    device: str = "cpu"

    def batch(self) -> dict[str, np.ndarray]:
        return random_batch(self.batch_size, self.image_size, num_classes=NUM_CLASSES)


class JaxStep:
    """The trainer's step on one device, compiled. A call runs it once and waits for the result.

    Attributes:
        memory: bytes that XLA plans for temporary arrays ("temporary") and for the step's input ("arguments"), and
            bytes of the feature maps that automatic differentiation keeps ("kept").
    """

    def __init__(self, model: str, setting: Setting, *, remat: bool = False):
        self.mesh = data_mesh(jax.devices(setting.device)[:1])
        schedule = optax.constant_schedule(LEARNING_RATE)
        optimizer = build_optimizer(schedule, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        self.definition, self.state = create_state(
            partial(build_model, model, num_classes=NUM_CLASSES, dtype=setting.dtype, batch_norm="local", seed=SEED),
            optimizer,
            sharding=NamedSharding(self.mesh, REPLICATED),
        )
        step = make_train_step(
            self.definition,
            optimizer,
            self.mesh,
            preprocessing=IMAGENET,
            objective=Objective(NUM_CLASSES),
            seed=SEED,
            remat=remat,
        )
        self.batch = jax.device_put(setting.batch(), NamedSharding(self.mesh, SHARDED))
        self.step = step.lower(self.state, self.batch).compile()
        analysis = self.step.memory_analysis()
        assert analysis is not None, "XLA plans no memory for this device"
        self.memory = {
            "temporary": analysis.temp_size_in_bytes,
            "arguments": analysis.argument_size_in_bytes,
            "kept": kept_bytes(self.definition, self.state, self.batch["image"], remat=remat),
        }

    def __call__(self) -> None:
        self.state, metrics = self.step(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))

    def host_seconds(self) -> float:
        """Processor time per step of the calling thread, for dispatch and metrics: the median of 50 steps.

        A CPU also computes in the calling thread. So the arrays shrink to one element each.
        """
        replicated = NamedSharding(self.mesh, REPLICATED)
        state = jax.device_put(jax.tree.map(lambda _: np.zeros(1, np.float32), self.state), replicated)
        names = ("loss", "top1", "top5", "count", "skipped_images")
        step = jax.jit(
            lambda state, batch: (jax.tree.map(lambda leaf: leaf + 1, state), dict.fromkeys(names, jnp.float32(1))),
            donate_argnums=0,
            out_shardings=replicated,
        )
        meter, seconds = Meter(), []
        for number in range(60):
            start = time.thread_time()
            state, metrics = step(state, self.batch)
            meter.add(number, metrics)
            seconds.append(time.thread_time() - start)
            jax.block_until_ready(state)
        return float(np.median(seconds[10:]))


def kept_bytes(definition: Definition, state: TrainState, images: jax.Array, *, remat: bool) -> int:
    """Bytes of the feature maps that differentiating the loss keeps, before the compiler shares or drops any."""

    def loss(params: Any, images: jax.Array) -> jax.Array:
        logits = definition.bind(params, state.batch_stats)(normalize(images, IMAGENET))
        return widened(logits).mean()

    function = jax.checkpoint(loss, policy=is_product) if remat else loss
    pullback = jax.eval_shape(lambda params: jax.vjp(lambda p: function(p, images), params)[1], state.params)
    maps = [leaf for leaf in jax.tree.leaves(pullback) if leaf.ndim == 4 and leaf.shape[0] == len(images)]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in maps)


def torch_step(model: str, setting: Setting, *, compiled: bool = False) -> Run:
    """The same step in PyTorch, channels_last, with autocast if the dtype is bfloat16."""
    return torch_step_of(lma_torch.create_model(model), setting, compiled=compiled)


def torch_step_of(network: Any, setting: Setting, *, compiled: bool = False) -> Run:
    """The step of `torch_step` for any classifier of images (N, 3, H, W)."""
    device = torch.device("cuda" if setting.device == "gpu" else "cpu")
    network = network.to(device, memory_format=torch.channels_last).train()
    parameters = network.parameters()
    optimizer = torch.optim.SGD(parameters, lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    batch = setting.batch()
    pixels = torch.from_numpy(batch["image"]).to(device).permute(0, 3, 1, 2)  # channels_last in memory
    labels = torch.from_numpy(batch["label"]).long().to(device)
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (IMAGENET.mean, IMAGENET.std))

    def loss_of(pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=setting.dtype == "bfloat16"):
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


MODES: dict[str, Callable[[str, Setting], Run]] = {
    "jax": JaxStep,
    "jax_remat": lambda model, setting: JaxStep(model, setting, remat=True),
    "torch": torch_step,
    "torch_compile": lambda model, setting: torch_step(model, setting, compiled=True),
}


def problem_in(models: Iterable[str], modes: Iterable[str]) -> str | None:
    """Why these networks or MODES cannot be measured; None if they can."""
    if unknown := sorted({*modes} - {*MODES}):
        return f"--modes has no {', '.join(unknown)!r}: give some of {', '.join(MODES)}"
    return next(filter(None, map(problem_with, models)), None)


def backbone_of(model: str) -> str:
    """The plain network that `model` adds an attention module to."""
    return parts_of(model)[0]


def pairs(variants: Iterable[str]) -> list[tuple[str, str, str]]:
    """The pairs of variants "<model> <mode>" whose speeds are compared, and what their ratio shows."""
    variants, found = list(variants), []
    for variant in variants:
        model, mode = variant.split()
        others = [(f"{backbone_of(model)} {mode}", LMA_OVER_PLAIN)]
        if mode == "jax_remat":
            others.append((f"{model} jax", REMAT_OVER_NOT))
        if mode == "jax":
            others += [(f"{model} {other}", f"JAX over {other}") for other in ("torch", "torch_compile")]
        found += [(variant, other, shows) for other, shows in others if other in variants and other != variant]
    return found


class Comparison(NamedTuple):
    """What was measured.

    Attributes:
        steps: by variant, images/s; of JAX also "host_ms" and the bytes of JaxStep.memory.
        ratios: "of" one variant "over" another, what the ratio "shows", and the "quartiles" of their images/s.
        failed: variants that could not be run, each with its reason.
    """

    steps: dict[str, dict[str, float]]
    ratios: list[dict[str, Any]]
    failed: list[str]


def compare(
    models: Iterable[str],
    modes: Iterable[str],
    setting: Setting,
    *,
    steps: int,
    say: Callable[[str], object] = lambda line: None,
) -> Comparison:
    """Runs the models and their plain backbones in turns.

    Args:
        models: names of networks.
        modes: some of MODES.
        setting: batch, dtype and device.
        steps: timed steps of each variant.
        say: takes a line about each variant once it is built.
    """
    built: dict[str, Run] = {}

    def builder(variant: str) -> Callable[[], Run]:
        model, mode = variant.split()
        return lambda: built.setdefault(variant, MODES[mode](model, setting))

    modes = list(modes)
    names = dict.fromkeys(name for model in models for name in (model, backbone_of(model)))
    variants = [f"{name} {mode}" for name in names for mode in modes]
    timings = measure({variant: builder(variant) for variant in variants}, rounds=steps, say=say)
    done = results.finished(timings)
    figures: dict[str, dict[str, float]] = {}
    for variant, timing in done.items():
        figures[variant] = {"images_per_second": setting.batch_size / timing.latency["p50"]}
        if isinstance(run := built[variant], JaxStep):
            figures[variant] |= {"host_ms": 1e3 * run.host_seconds(), **run.memory}
    ratios = [
        {"of": a, "over": b, "shows": shows, "quartiles": speedup(done[a], done[b])} for a, b, shows in pairs(done)
    ]
    return Comparison(figures, ratios, results.failures(timings))
