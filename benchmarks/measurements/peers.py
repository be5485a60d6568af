"""Inference and training steps of plain backbones in this project and in other libraries."""

import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

import lma_torch
from convert.measure.runs import Variant, torch_run
from convert.measure.runs import build as project_inference
from convert.measure.timing import Run, measure, speedup
from lma_jax.preprocessing import IMAGENET, normalize
from lma_jax.training.state import build_optimizer
from measurements import results, train_step
from measurements.prediction_tables import markdown
from measurements.train_step import SEED, Setting

TASKS = ("inference", "training")
# By the name of a network here, its names in timm and in keras.applications.
MODELS = {"resnet50": ("resnet50", "ResNet50"), "mobilenetv2": ("mobilenetv2_100", "MobileNetV2")}


class JaxNetwork(NamedTuple):
    """A network of another library as a function.

    Attributes:
        apply: of parameters, statistics and images (N, H, W, 3), and with `training=`; returns the logits and the
            new statistics.
        parameters, statistics: trees of arrays.
    """

    apply: Callable[..., tuple[jax.Array, Any]]
    parameters: Any
    statistics: Any


def keras_network(model: str, setting: Setting) -> JaxNetwork:
    """A network of keras.applications on Keras' backend for JAX."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    shape = (setting.image_size, setting.image_size, 3)
    network = getattr(keras.applications, MODELS[model][1])(
        weights=None, input_shape=shape, classes=train_step.NUM_CLASSES, classifier_activation=None
    )
    values = [[v.value for v in part] for part in (network.trainable_variables, network.non_trainable_variables)]
    return JaxNetwork(network.stateless_call, *values)


def flax_network(model: str, setting: Setting) -> JaxNetwork:
    """The ResNet-50 of Flax's ImageNet example."""
    from measurements.flax_resnet import ResNet50

    network = ResNet50(train_step.NUM_CLASSES)
    images = jnp.zeros((1, setting.image_size, setting.image_size, 3))
    variables = jax.jit(partial(network.init, training=False))(jax.random.key(SEED), images)

    def apply(parameters: Any, statistics: Any, images: jax.Array, *, training: bool) -> tuple[jax.Array, Any]:
        variables = {"params": parameters, "batch_stats": statistics}
        logits, changed = network.apply(variables, images, training=training, mutable=["batch_stats"])
        return logits, changed["batch_stats"]

    return JaxNetwork(apply, variables["params"], variables["batch_stats"])


def random_images(setting: Setting) -> np.ndarray:
    """Normalised images, (N, H, W, 3)."""
    shape = (setting.batch_size, setting.image_size, setting.image_size, 3)
    return np.random.default_rng(SEED).standard_normal(shape, np.float32)


def jax_inference(network: JaxNetwork, setting: Setting) -> Run:
    """Runs a batch by jax.jit, as `convert.measure.runs.jax_run` does for the networks of this project."""
    images = jnp.asarray(random_images(setting))
    leaves, structure = jax.tree.flatten(network[1:])
    forward = jax.jit(lambda leaves, x: network.apply(*jax.tree.unflatten(structure, leaves), x, training=False)[0])
    return lambda: jax.block_until_ready(forward(leaves, images))


def jax_training(network: JaxNetwork, setting: Setting) -> Run:
    """The step of `train_step.JaxStep` without its metrics: the same normalisation, loss and optimizer."""
    schedule = optax.constant_schedule(train_step.LEARNING_RATE)
    optimizer = build_optimizer(schedule, momentum=train_step.MOMENTUM, weight_decay=train_step.WEIGHT_DECAY)
    batch = jax.device_put(setting.batch())

    def loss_of(parameters: Any, statistics: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
        images = normalize(batch["image"], IMAGENET)
        logits, statistics = network.apply(parameters, statistics, images, training=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean(), statistics

    @partial(jax.jit, donate_argnums=0)
    def step(state: Any, batch: dict[str, jax.Array]) -> tuple[Any, jax.Array]:
        parameters, statistics, moments = state
        (loss, statistics), gradients = jax.value_and_grad(loss_of, has_aux=True)(parameters, statistics, batch)
        updates, moments = optimizer.update(gradients, moments, parameters)
        return (optax.apply_updates(parameters, updates), statistics, moments), loss

    state = (network.parameters, network.statistics, jax.jit(optimizer.init)(network.parameters))

    def run() -> None:
        nonlocal state
        state, loss = step(state, batch)
        jax.block_until_ready((state, loss))

    return run


def project_jax(model: str, task: str, setting: Setting) -> Run:
    """This project's network in JAX."""
    if task == "training":
        return train_step.JaxStep(model, setting)
    variant = Variant(model, "jax", "jit", setting.dtype, setting.batch_size)
    return project_inference(variant, setting.image_size, setting.device)


def peer_jax(create: Callable[[str, Setting], JaxNetwork], model: str, task: str, setting: Setting) -> Run:
    """A network of another library in JAX."""
    return (jax_training if task == "training" else jax_inference)(create(model, setting), setting)


def any_torch(create: Callable[[str], Any], compiled: bool, model: str, task: str, setting: Setting) -> Run:
    """A network in PyTorch, of whichever library, in channels_last."""
    network = create(model)
    if task == "training":
        return train_step.torch_step_of(network, setting, compiled=compiled)
    images = torch.from_numpy(random_images(setting)).permute(0, 3, 1, 2)
    return torch_run(network, images, "compile_channels_last" if compiled else "channels_last")


def timm_network(model: str) -> torch.nn.Module:
    """A network of timm."""
    import timm

    return timm.create_model(MODELS[model][0])


@dataclass(frozen=True)
class Peer:
    """A way to run the networks.

    Attributes:
        build: of a network's name, one of TASKS and the Setting; returns what runs it once.
        over: the peer of this project that it is compared with; None for these themselves.
        package: the package that only it needs.
        models: the networks that it has.
    """

    build: Callable[[str, str, Setting], Run]
    over: str | None = None
    package: str | None = None
    models: Sequence[str] = tuple(MODELS)


PEERS = {
    "jax": Peer(project_jax),
    "torch": Peer(partial(any_torch, lma_torch.create_model, False)),
    "torch_compile": Peer(partial(any_torch, lma_torch.create_model, True)),
    "timm": Peer(partial(any_torch, timm_network, False), "torch", "timm"),
    "timm_compile": Peer(partial(any_torch, timm_network, True), "torch_compile", "timm"),
    "keras": Peer(partial(peer_jax, keras_network), "jax", "keras"),
    "flax": Peer(partial(peer_jax, flax_network), "jax", models=("resnet50",)),
}


def left_out(variants: Iterable[str]) -> dict[str, str]:
    """Those of PEERS whose package is missing, each with a line that says so."""
    packages = {variant: PEERS[variant].package for variant in variants}
    return {
        variant: f"{variant}: left out, {package} is not installed (pip install {package})"
        for variant, package in packages.items()
        if package and importlib.util.find_spec(package) is None
    }


class Comparison(NamedTuple):
    """What was measured.

    Attributes:
        rows: "model", "task", "variant", "images_per_second" (at the median time), "seconds" of each round; and if it
            has a peer in this project that was measured too, "over" that one the "quartiles" of its images/s.
        failed: variants that could not be run, each with its reason.
    """

    rows: list[dict[str, Any]]
    failed: list[str]


def compare(
    models: Iterable[str],
    tasks: Iterable[str],
    variants: Iterable[str],
    setting: Setting,
    *,
    steps: int,
    say: Callable[[str], object] = lambda line: None,
) -> Comparison:
    """Measures each task of each network on its own, so that rounds are short; all variants of it take turns.

    Args:
        models: some of MODELS.
        tasks: some of TASKS.
        variants: some of PEERS.
        setting: batch and image size.
        steps: timed batches of each variant.
        say: takes a line about each variant once it is built.
    """
    variants, found = list(variants), Comparison([], [])
    for model, task in ((model, task) for model in models for task in tasks):
        present = {f"{model} {task} {name}": name for name in variants if model in PEERS[name].models}
        builders = {title: partial(PEERS[name].build, model, task, setting) for title, name in present.items()}
        timings = measure(builders, rounds=steps, say=say)
        found.failed.extend(results.failures(timings))
        done = {present[title]: timing for title, timing in results.finished(timings).items()}
        for name, timing in done.items():
            row: dict[str, Any] = {"model": model, "task": task, "variant": name, "seconds": timing.seconds}
            row["images_per_second"] = setting.batch_size / timing.latency["p50"]
            if (over := PEERS[name].over) in done:
                row |= {"over": over, "quartiles": speedup(timing, done[over])}
            found.rows.append(row)
    return found


def versions(variants: Iterable[str]) -> dict[str, str]:
    """The versions of the other libraries in `variants`."""
    packages = {PEERS[variant].package or variant for variant in variants if PEERS[variant].over}
    return {package: importlib.metadata.version(package) for package in sorted(packages)}


def table(rows: Iterable[dict[str, Any]]) -> str:
    """The rows of a Comparison as a Markdown table."""
    cells = []
    for row in rows:
        ratio = ""
        if "over" in row:
            low, median, high = row["quartiles"]
            ratio = f"{median:.2f} ({low:.2f} to {high:.2f}) of {row['over']}"
        cells.append([row["model"], row["task"], row["variant"], f"{row['images_per_second']:.1f}", ratio])
    return markdown(("network", "task", "variant", "images/s", "of this project's"), cells)
