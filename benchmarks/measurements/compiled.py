"""What XLA makes of the networks for accelerators that are not there. Nothing runs, and no weights are drawn."""

import importlib.metadata
import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from lma_jax.data.batch import batch_spec
from lma_jax.definition import Definition, split
from lma_jax.errors import UserError, nearest
from lma_jax.fold import fold_batch_norm
from lma_jax.preprocessing import IMAGENET
from lma_jax.registry import create_model, parts_of, problem_with
from lma_jax.sharding import REPLICATED, SHARDED, data_mesh
from lma_jax.train import ALL_REDUCE_BYTES
from lma_jax.training.objective import Objective
from lma_jax.training.state import TrainState, build_model, build_optimizer
from lma_jax.training.step import make_train_step
from measurements.accelerators import Accelerator, devices_of
from measurements.hlo import Kernel, Program
from measurements.overlap import Collective, collectives

NUM_CLASSES = 1000
LEARNING_RATE = 0.1
SEED = 0
# What the trainer tells XLA for each platform.
TRAINER_FLAGS: Mapping[str, Mapping[str, Any]] = {
    "cuda": {"xla_gpu_all_reduce_combine_threshold_bytes": ALL_REDUCE_BYTES}
}
PACKAGES = ("jax", "jaxlib", "flax", "jax-cuda13-plugin", "jax-cuda12-plugin", "libtpu")


@dataclass(frozen=True)
class Setting:
    """What all programs share.

    Attributes:
        batch_size: images per device.
        image_size: height and width of the images in pixels.
        dtype: of the computation, "float32" or "bfloat16"; weights are float32.
        flags: options of XLA's compiler, beside the trainer's.
    """

    batch_size: int = 128
    image_size: int = 224
    dtype: str = "bfloat16"
    flags: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Compiled:
    """A compiled program, as one of its devices sees it.

    Attributes:
        target: name of the accelerator.
        devices: how many of them.
        model, program: the network, and one of PROGRAMS.
        kernels: its launches.
        collectives: those among them that send data to other devices.
        memory: bytes that XLA plans: "temporary", "arguments", "outputs", and "peak" for all together.
        roofline: seconds; the sum over kernels of the time of their bytes or of their FLOPs, whichever is longer.
            Sending data is not in it.
        seconds: what compiling took.
    """

    target: str
    devices: int
    model: str
    program: str
    kernels: list[Kernel]
    collectives: list[Collective]
    memory: dict[str, int]
    roofline: float
    seconds: float

    @property
    def key(self) -> tuple[str, int, str, str]:
        """What tells it from other programs: target, devices, program and network."""
        return self.target, self.devices, self.program, self.model

    @property
    def bytes(self) -> int:
        """Bytes that the kernels read from and write to device memory."""
        return sum(kernel.bytes for kernel in self.kernels)

    @property
    def flops(self) -> int:
        """FLOPs of the convolutions and matrix products."""
        return sum(kernel.flops for kernel in self.kernels)

    def largest(self, number: int) -> list[Kernel]:
        """The kernels that move the most bytes."""
        return sorted(self.kernels, key=lambda kernel: -kernel.bytes)[:number]


def lower_inference(model: str, setting: Setting, mesh: Mesh, *, folded: bool = False) -> jax.stages.Lowered:
    """A call of a network in evaluation mode; the mesh shares the images.

    Args:
        model: name of the network.
        setting: images and dtype.
        mesh: with the axis "data".
        folded: whether batch normalisation is folded into convolutions.
    """

    def build() -> nnx.Module:
        network = create_model(model, num_classes=NUM_CLASSES, dtype=jnp.dtype(setting.dtype), rngs=nnx.Rngs(SEED))
        return fold_batch_norm(network) if folded else network

    network = nnx.eval_shape(build)
    network.eval()
    graphdef, state = nnx.split(network)
    shape = (setting.batch_size * mesh.size, setting.image_size, setting.image_size, 3)
    images = jax.ShapeDtypeStruct(shape, jnp.dtype(setting.dtype), sharding=NamedSharding(mesh, SHARDED))

    def inference(state: nnx.State, images: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, state)(images)

    return jax.jit(inference).lower(_placed(state, NamedSharding(mesh, REPLICATED)), images)


def lower_training(model: str, setting: Setting, mesh: Mesh, *, remat: bool = False) -> jax.stages.Lowered:
    """The trainer's step with SGD; arguments as in `lower_inference`, `remat` as in `make_train_step`."""
    optimizer = build_optimizer(optax.constant_schedule(LEARNING_RATE))
    build = partial(build_model, model, num_classes=NUM_CLASSES, dtype=setting.dtype, batch_norm="local", seed=SEED)
    shapes, params, batch_stats = split(nnx.eval_shape(build))

    def initial(params: Any, batch_stats: Any) -> TrainState:
        return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params), None)

    step = make_train_step(
        Definition(shapes.graphdef, jax.tree.map(_made_up, shapes.rng_state)),
        optimizer,
        mesh,
        preprocessing=IMAGENET,
        objective=Objective(NUM_CLASSES),
        seed=SEED,
        remat=remat,
    )
    state = _placed(jax.eval_shape(initial, params, batch_stats), NamedSharding(mesh, REPLICATED))
    images = setting.batch_size * mesh.size
    return step.lower(state, batch_spec(images, setting.image_size, sharding=NamedSharding(mesh, SHARDED)))


PROGRAMS: dict[str, Callable[[str, Setting, Mesh], jax.stages.Lowered]] = {
    "inference": lower_inference,
    "folded": partial(lower_inference, folded=True),
    "training": lower_training,
    "rematerialised": partial(lower_training, remat=True),
}


def _placed(tree: Any, sharding: NamedSharding) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def _made_up(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """An array of a random stream, which a definition holds as a value; the step seeds its streams anew."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(SEED), leaf.shape)
    return jnp.zeros(leaf.shape, leaf.dtype)


def require(models: Iterable[str], programs: Iterable[str]) -> None:
    """Checks the names.

    Raises:
        UserError: a network or a program does not exist.
    """
    for model in models:
        if problem := problem_with(model):
            raise UserError(problem)
    for program in programs:
        if program not in PROGRAMS:
            allowed = ", ".join(PROGRAMS)
            raise UserError(f"unknown program {program!r}, did you mean {nearest(program, PROGRAMS)!r}? ({allowed})")


def compile_program(model: str, program: str, accelerator: Accelerator, devices: int, setting: Setting) -> Compiled:
    """Compiles a network for some devices of an accelerator.

    Args:
        model: name of the network.
        program: one of PROGRAMS.
        accelerator: what to compile for; its compiler must be installed.
        devices: number of devices; they share the batch along the axis "data".
        setting: what all programs share.

    Raises:
        UserError: there are fewer devices, or XLA refuses the program or an option.
    """
    mesh = data_mesh(devices_of(accelerator, devices))
    flags = {**TRAINER_FLAGS.get(accelerator.platform, {}), **setting.flags}
    start = time.monotonic()
    lowered = PROGRAMS[program](model, setting, mesh)
    try:
        compiled = lowered.compile(compiler_options=flags)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"XLA refuses {model} {program} for {accelerator.name}: {reason}") from error
    text, memory = compiled.as_text(), compiled.memory_analysis()
    assert text is not None, "XLA gives no text of the program"
    assert memory is not None, "XLA plans no memory for this device"
    parsed = Program(text)
    return Compiled(
        target=accelerator.name,
        devices=devices,
        model=model,
        program=program,
        kernels=parsed.kernels,
        collectives=collectives(parsed, accelerator),
        memory=planned(memory),
        roofline=sum(accelerator.seconds(kernel.bytes, kernel.flops) for kernel in parsed.kernels),
        seconds=time.monotonic() - start,
    )


def compile_all(
    targets: Sequence[Accelerator],
    models: Sequence[str],
    programs: Sequence[str],
    devices: Sequence[int],
    setting: Setting,
    *,
    say: Callable[[str], object] = lambda line: None,
) -> tuple[list[Compiled], list[str]]:
    """Compiles the networks and their plain backbones; arguments as in `compile_program`.

    Args:
        say: takes a line before a program is compiled, and one after.

    Returns:
        The compiled programs, and a line for each one that XLA refuses.
    """
    found: list[Compiled] = []
    failed: list[str] = []
    names = dict.fromkeys(name for model in models for name in (parts_of(model)[0], model))
    for target, number, program, model in itertools.product(targets, devices, programs, names):
        wait = " (minutes on TPU)" if target.platform == "tpu" else ""
        say(f"compiling {model} {program} for {target.name}{f', {number} devices' if number > 1 else ''}{wait}")
        try:
            found.append(compile_program(model, program, target, number, setting))
            say(f"  {found[-1].seconds:.0f} s")
        except UserError as error:
            failed.append(str(error))
            say("  failed")
    return found, failed


def planned(memory: Any) -> dict[str, int]:
    """XLA's plan of the memory in bytes. A donated argument shares its place with an output."""
    parts = {
        "temporary": memory.temp_size_in_bytes,
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
    }
    return {**parts, "peak": sum(parts.values()) - memory.alias_size_in_bytes}


def ratios(programs: Iterable[Compiled]) -> dict[tuple[str, int, str, str], dict[str, float]]:
    """Figures of the plain backbone over those of a network, by the key of the network's program."""
    by_key = {one.key: one for one in programs}
    found = {}
    for key, one in by_key.items():
        plain = by_key.get((one.target, one.devices, one.program, parts_of(one.model)[0]))
        if plain is not None and plain is not one:
            found[key] = {"bytes": plain.bytes / one.bytes, "roofline": plain.roofline / one.roofline}
    return found


def versions() -> dict[str, str]:
    """The versions of the packages that determine the figures, as far as they are installed."""
    installed = {dist.metadata["Name"].lower().replace("_", "-") for dist in importlib.metadata.distributions()}
    return {name: importlib.metadata.version(name) for name in PACKAGES if name in installed}
