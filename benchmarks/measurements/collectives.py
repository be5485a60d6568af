"""The collectives of the trainer's compiled step, and whether they are those predicted."""

import math
import re
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import optax
from flax import nnx
from jax.sharding import NamedSharding

from lma_jax import create_model, recipes
from lma_jax.data.batch import batch_spec
from lma_jax.definition import split
from lma_jax.preprocessing import preprocessing_from
from lma_jax.sharding import REPLICATED, SHARDED, data_mesh
from lma_jax.training.objective import objective_from
from lma_jax.training.state import build_model, create_state, optimizer_from
from lma_jax.training.step import make_train_step
from measurements.hlo import COLLECTIVES
from measurements.prediction import SYNC_STATISTICS, wire_bytes

ITEM_BYTES = {"pred": 1, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "f64": 8, "bf16": 2}
NUM_CLASSES = 1000
# Collectives do not depend on the size of the images.
IMAGE_SIZE = 32


class Collective(NamedTuple):
    """A collective of a program: its kind, and the bytes of its result by element type."""

    kind: str
    sizes: Counter[str]


def collectives(hlo: str) -> list[Collective]:
    """The collectives in the text of a compiled program. One in a loop counts once."""
    found = []
    for line in hlo.splitlines():
        # Tuples contain comments such as /*index=5*/.
        match = re.search(rf"= (\(.*?\)|\S+) ({'|'.join(COLLECTIVES)})(?:-start)?\(", re.sub(r"/\*.*?\*/", "", line))
        if match:
            sizes: Counter[str] = Counter()
            for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", match[1]):
                sizes[dtype] += ITEM_BYTES[dtype] * math.prod(map(int, filter(None, shape.split(","))))
            found.append(Collective(match[2], sizes))
    return found


def tree_bytes(tree: Any) -> int:
    """Bytes of the leaves, which may be arrays or shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def network_shapes(model: str) -> tuple[Any, Any]:
    """The shapes of a network's parameters and of its running statistics."""
    _, params, batch_stats = split(nnx.eval_shape(lambda: create_model(model, rngs=nnx.Rngs(0))))
    return params, batch_stats


def use_fake_devices(count: int) -> None:
    """Gives JAX `count` CPU devices to compile for; call it before anything else touches JAX."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)


def compiled_step(model: str, devices: int, *, batch_norm: str = "local") -> tuple[str, dict[str, int]]:
    """Compiles the trainer's step with the values of configs/common.py.

    Args:
        model: name of the network.
        devices: number of devices to compile for.
        batch_norm: "local" or "sync".

    Returns:
        The text of the program, and the bytes that it must sum, by what they are.
    """
    config = recipes.load("common")
    config.update(model=model, batch_norm=batch_norm, image_size=IMAGE_SIZE, batch_size=4 * devices)
    mesh = data_mesh(jax.devices()[:devices])
    options = dict(dtype=config.dtype, batch_norm=batch_norm, seed=config.seed)
    optimizer = optimizer_from(config, optax.constant_schedule(config.learning_rate))
    definition, state = create_state(
        partial(build_model, model, num_classes=NUM_CLASSES, **options),
        optimizer,
        sharding=NamedSharding(mesh, REPLICATED),
    )
    step = make_train_step(
        definition,
        optimizer,
        mesh,
        preprocessing=preprocessing_from(config),
        objective=objective_from(config, num_classes=NUM_CLASSES),
        seed=config.seed,
    )
    batch = batch_spec(config.batch_size, IMAGE_SIZE, sharding=NamedSharding(mesh, SHARDED))
    _, metrics = jax.eval_shape(step, state, batch)
    trees = {"gradients": state.params, "statistics": state.batch_stats, "metrics": metrics}
    predicted = {name: tree_bytes(tree) for name, tree in trees.items()}
    if batch_norm == "sync":
        predicted["sync"] = SYNC_STATISTICS * predicted["statistics"]
    text = step.lower(state, batch).compile().as_text()
    assert text is not None, "XLA gives no text of the program"
    return text, predicted


def verify(model: str, batch_norm: str, sizes: Iterable[int]) -> bool:
    """Prints the collectives of the compiled step beside those predicted, for every number of devices in `sizes`.

    Returns:
        Whether all are all-reduces and their bytes are those predicted.
    """
    equal = True
    for devices in sizes:
        text, parts = compiled_step(model, devices, batch_norm=batch_norm)
        found, predicted = collectives(text), sum(parts.values())
        compiled = sum(one.sizes.total() for one in found)
        equal &= compiled == predicted and {one.kind for one in found} == {"all-reduce"}
        terms = " + ".join(f"{size:,} ({name})" for name, size in parts.items())
        print(
            f"{model}, {devices} devices: predicted {terms} = {predicted:,} bytes; compiled {compiled:,} in "
            f"{len(found)} collectives; sent by each device: {wire_bytes(compiled, devices):,.0f} bytes",
            flush=True,
        )
        largest = sorted(found, key=lambda one: -one.sizes.total())[:3]
        print("  the largest: " + "; ".join(f"{kind} {dict(sizes)}" for kind, sizes in largest), flush=True)
    return equal
