"""Images per second and latency of the networks, in both frameworks, on random images.

python -m convert.fps --model resnet50_lma --framework both --batch_size 1,32 --dtype float32,bfloat16
python -m convert.fps --model "resnet50*" --json fps.json --plot fps.png     every module against the plain host

A clock on a shared machine cannot be compared with itself a minute later. So the variants take turns, a batch each in
an order drawn anew every round, and ratios are taken within a round. Each timed batch follows an untimed one of the
same variant, ends when its result is there, and contains no compilation. Weights and images have the dtype; float32
is what each framework makes of it by default (on recent GPUs, convolutions in TF32).
"""

import ctypes
import itertools
import json
import os
import platform
import random
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from convert.results import write_text
from lma_jax.errors import UserError, nearest

MODES = {"jax": ("jit",), "torch": ("eager", "channels_last", "compile", "compile_channels_last")}
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Variant:
    """One way to run a network.

    Attributes:
        model: name of the network.
        framework: "jax" or "torch".
        mode: one of MODES of the framework.
        dtype: of weights, images and computation.
        batch_size: images a call.
    """

    model: str
    framework: str
    mode: str
    dtype: str
    batch_size: int

    def __str__(self) -> str:
        return f"{self.model} {self.framework} {self.mode} {self.dtype} batch {self.batch_size}"


@dataclass
class Timing:
    """What was measured of a variant.

    Attributes:
        variant: what was run.
        first_call: seconds of the first call, with its compilation.
        seconds: of each timed batch, by round.
        error: why it could not be run, in one line.
    """

    variant: Variant
    first_call: float | None = None
    seconds: list[float] = field(default_factory=list)
    error: str | None = None

    @property
    def images_per_second(self) -> float:
        """At the median latency."""
        return self.variant.batch_size / float(np.median(self.seconds))

    @property
    def latency(self) -> dict[str, float]:
        """Percentiles of the seconds a batch."""
        return {f"p{rank}": float(np.percentile(self.seconds, rank)) for rank in (50, 90, 99)}

    @property
    def row(self) -> dict[str, Any]:
        """Everything, for JSON."""
        row = {**asdict(self.variant), "first_call": self.first_call, "error": self.error}
        if self.error is None:
            row |= {"images_per_second": self.images_per_second, **self.latency, "seconds": self.seconds}
        return row


@dataclass(frozen=True)
class Ratio:
    """Images/s of one variant over another's: median and quartiles over the rounds."""

    variant: Variant
    over: Variant
    median: float
    lower: float
    upper: float

    @property
    def title(self) -> str:
        """What is compared, and where."""
        a, b = self.variant, self.over
        if a.model != b.model:
            return f"{a.model} / {b.model}, {a.framework} {a.mode}, {a.dtype}, batch {a.batch_size}"
        return f"{a.framework} {a.mode} / {b.framework} {b.mode}, {a.model}, {a.dtype}, batch {a.batch_size}"


Run = Callable[[], object]


def measure(
    variants: Mapping[Variant, Callable[[], Run]],
    *,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    say: Callable[[str], object] = print,
) -> list[Timing]:
    """Times variants in turns. One that fails is reported as failed, and the others go on.

    From then on the process keeps the memory that it frees.

    Args:
        variants: for each, what builds it: the function that it returns runs one batch and waits for the result.
        rounds: number of timed batches of each.
        clock: tells the time in seconds.
        say: takes a line about each variant once it is built.
    """
    _keep_freed_memory()
    timings = {variant: Timing(variant) for variant in variants}
    runs: dict[Variant, Run] = {}

    def attempt(variant: Variant, action: Callable[[], None]) -> None:
        try:
            action()
        # Out of memory, a dtype without kernels, no C++ compiler: each framework has its own errors for them.
        except Exception as error:
            runs.pop(variant, None)
            timings[variant].error = _one_line(error)
            say(f"{variant}: unavailable, {timings[variant].error}")

    def first(variant: Variant) -> None:
        run = variants[variant]()
        timings[variant].first_call = _seconds(run, clock)
        runs[variant] = run
        say(f"{variant}: first call {timings[variant].first_call:.1f} s")

    def turn(variant: Variant) -> None:
        runs[variant]()
        timings[variant].seconds.append(_seconds(runs[variant], clock))

    for variant in variants:
        attempt(variant, lambda variant=variant: first(variant))  # type: ignore[misc]
    shuffler = random.Random(0)
    for _ in range(rounds):
        for variant in shuffler.sample(list(runs), len(runs)):
            attempt(variant, lambda variant=variant: turn(variant))  # type: ignore[misc]
    return list(timings.values())


def ratios(timings: Iterable[Timing], hosts: Mapping[str, str]) -> list[Ratio]:
    """Each network over its host in `hosts`, run in the same way, then JAX over each mode of PyTorch."""
    done = {timing.variant: timing for timing in timings if timing.error is None}
    pairs = [(a, b) for a in done for b in done if a.model in hosts and b == _with(a, model=hosts[a.model]) != a]
    pairs += [
        (a, b)
        for a in done
        for b in done
        if (a.framework, b.framework) == ("jax", "torch") and b == _with(a, framework="torch", mode=b.mode)
    ]
    found = []
    for a, b in pairs:
        paired = np.array(done[b].seconds) / np.array(done[a].seconds)
        median, lower, upper = (float(np.percentile(paired, rank)) for rank in (50, 25, 75))
        found.append(Ratio(a, b, median, lower, upper))
    return found


def jax_run(model: Any, images: Any) -> Run:
    """Runs a batch by jax.jit in evaluation mode; `images` is (N, H, W, 3), on the device to use."""
    import jax
    from flax import nnx

    model.eval()
    graphdef, state = nnx.split(model)
    # As a list: to flatten the state anew takes longer than a small network.
    leaves, structure = jax.tree.flatten(jax.device_put(state, images.device))
    forward = jax.jit(lambda leaves, images: nnx.merge(graphdef, jax.tree.unflatten(structure, leaves))(images))
    return lambda: jax.block_until_ready(forward(leaves, images))


def torch_run(model: Any, images: Any, mode: str) -> Run:
    """Runs a batch in evaluation mode in one of MODES; `images` is (N, 3, H, W), on the device of the model."""
    import torch

    model.eval()
    if mode.endswith("channels_last"):
        model = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    if mode.startswith("compile"):
        # Whole, or an error: past its limit of variants a function, it would go back to eager mode in silence.
        model = torch.compile(model, fullgraph=True, dynamic=False)

    def run() -> object:
        with torch.inference_mode():
            logits = model(images)
        if images.is_cuda:
            torch.cuda.synchronize()
        return logits

    return run


def build(variant: Variant, size: int, device: str) -> Run:
    """The network of a variant with random weights, on random images of `size` pixels, on a "cpu" or a "gpu"."""
    shape = (variant.batch_size, size, size, 3)
    pixels = np.random.default_rng(0).standard_normal(shape, np.float32)
    if variant.framework == "jax":
        import jax
        import jax.numpy as jnp
        from flax import nnx

        import lma_jax

        place = jax.devices(device)[0]
        options: dict[str, Any] = dict(dtype=jnp.dtype(variant.dtype), param_dtype=jnp.dtype(variant.dtype))
        with jax.default_device(place):
            jax_model = nnx.jit(lambda: lma_jax.create_model(variant.model, rngs=nnx.Rngs(0), **options))()
        return jax_run(jax_model, jax.device_put(jnp.asarray(pixels, variant.dtype), place))
    import torch

    import lma_torch

    kind = dict(device="cuda" if device == "gpu" else "cpu", dtype=getattr(torch, variant.dtype))
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(**kind)
    return torch_run(lma_torch.create_model(variant.model).to(**kind), images, variant.mode)


def _keep_freed_memory() -> None:
    """Has glibc keep the maps that are freed, as allocators for networks do.

    Else the kernel clears the pages of large maps anew in each call: one map more in a network may then cost more
    than the layer that makes it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(-4, 0)  # M_MMAP_MAX
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def _seconds(run: Run, clock: Callable[[], float]) -> float:
    start = clock()
    run()
    return clock() - start


def _with(variant: Variant, **changes: Any) -> Variant:
    return Variant(**{**asdict(variant), **changes})


def _one_line(error: Exception) -> str:
    words = " ".join(str(error).split())
    return textwrap.shorten(f"{type(error).__name__}: {words}", 140, placeholder=" ...")


def choose_device(wanted: str, frameworks: tuple[str, ...]) -> tuple[str, str]:
    """The device that all `frameworks` have ("cpu" or "gpu"), and its name."""
    import jax
    import torch

    present = {"jax": jax.default_backend() == "gpu", "torch": torch.cuda.is_available()}
    missing = [framework for framework in frameworks if not present[framework]]
    if wanted == "gpu" and missing:
        raise UserError(f"{' and '.join(missing)} cannot use a GPU here: choose --device=cpu or another --framework")
    if wanted == "cpu" or missing:
        return "cpu", f"{platform.machine()} CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads of PyTorch"
    return "gpu", torch.cuda.get_device_name() if present["torch"] else jax.devices("gpu")[0].device_kind


def _table(timings: list[Timing], found: list[Ratio]) -> str:
    width = max(len(str(timing.variant)) for timing in timings)
    lines = [f"{'':{width}}  first call s  images/s   p50 ms   p90 ms   p99 ms"]
    for timing in timings:
        name = f"{timing.variant!s:{width}}"
        if timing.error is None:
            latency = "".join(f"{1e3 * seconds:9.2f}" for seconds in timing.latency.values())
            lines += [f"{name}  {timing.first_call:12.1f}  {timing.images_per_second:8.1f}{latency}"]
        else:
            lines += [f"{name}  unavailable"]
    if found:
        width = max(len(ratio.title) for ratio in found)
        lines += ["", f"{'ratio of images/s':{width}}  median  quartiles"]
    lines += [f"{ratio.title:{width}}  {ratio.median:6.3f}  {ratio.lower:.3f} to {ratio.upper:.3f}" for ratio in found]
    return "\n".join(lines)


def draw(path: Path, timings: list[Timing], found: list[Ratio], title: str) -> None:
    """Draws images/s of the variants and their ratios with quartiles.

    Raises:
        UserError: matplotlib is absent, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("--plot needs matplotlib: pip install matplotlib") from error

    done = [timing for timing in timings if timing.error is None]
    figure = Figure(figsize=(13, 1.5 + 0.3 * max(len(done), len(found))), layout="constrained")
    speeds, relative = figure.subplots(1, 2)
    colours = ["tab:blue" if timing.variant.framework == "jax" else "tab:orange" for timing in done]
    speeds.barh([str(timing.variant) for timing in done], [timing.images_per_second for timing in done], color=colours)
    speeds.set(xlabel="images/s at the median latency")
    medians = [ratio.median for ratio in found]
    spread = [[r.median - r.lower for r in found], [r.upper - r.median for r in found]]
    relative.errorbar(medians, [ratio.title for ratio in found], xerr=spread or None, fmt="o", capsize=3)
    relative.axvline(1, color="grey", linewidth=0.8)
    relative.set(xlabel="ratio of images/s, median and quartiles")
    for axes in (speeds, relative):
        axes.invert_yaxis()
        axes.tick_params(labelsize=8)
        axes.grid(axis="x", alpha=0.3)
    figure.suptitle(title)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {path}: {error}") from error


def choose(name: str, given: Iterable[str], allowed: Iterable[str]) -> tuple[str, ...]:
    """`given` without repetitions; a UserError where one is not in `allowed`, or there are none."""
    given, allowed = tuple(dict.fromkeys(given)), tuple(allowed)
    for value in given:
        if value not in allowed:
            raise UserError(f"--{name} has no {value!r}, did you mean {nearest(value, allowed)!r}?")
    if not given:
        raise UserError(f"--{name} is empty: give some of {', '.join(allowed)}")
    return given


def positive(name: str, given: Iterable[str]) -> tuple[int, ...]:
    """Numbers above 0; a UserError for anything else."""
    given = tuple(dict.fromkeys(given))
    if not given or not all(text.isdecimal() and int(text) for text in given):
        raise UserError(f"--{name} takes numbers above 0, not {','.join(given)!r}")
    return tuple(map(int, given))


def define_flags() -> None:
    """Adds the options of the command; not on import, since commands share names."""
    flags.DEFINE_string("model", "resnet50_lma", 'Definition, or a pattern of list_models() such as "resnet50*".')
    flags.DEFINE_string("compare", None, "Definition to compare with: by default the plain host, --compare= for none.")
    flags.DEFINE_enum("framework", "both", ["both", "jax", "torch"], "What to run it in.")
    flags.DEFINE_list("modes", list(MODES["torch"]), "Ways to run PyTorch.")
    flags.DEFINE_list("batch_size", ["32"], "Images a batch; several are measured in turn.")
    flags.DEFINE_list("dtype", ["float32"], f"Any of {', '.join(DTYPES)}.")
    flags.DEFINE_integer("image_size", 224, "Height and width of the images in pixels.", lower_bound=1)
    flags.DEFINE_integer("steps", 30, "Timed batches of each variant.", lower_bound=1)
    flags.DEFINE_enum("device", "auto", ["auto", "cpu", "gpu"], "Where to run; auto is a GPU that all can use.")
    flags.DEFINE_string("json", None, "File for all results.")
    flags.DEFINE_string("plot", None, "File for a picture of them, such as fps.png.")


def main() -> None:
    # Both frameworks share a GPU. JAX reads this at its first use of one.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax
    import torch

    import lma_jax
    from lma_jax import cli

    options = flags.FLAGS
    models = cli.models_named(options.model)
    hosts = {name: name.partition("_")[0] if options.compare is None else options.compare for name in models}
    names = models if options.compare == "" else choose("compare", [*models, *hosts.values()], lma_jax.list_models())
    dtypes, sizes = choose("dtype", options.dtype, DTYPES), positive("batch_size", options.batch_size)
    modes = {"jax": MODES["jax"], "torch": choose("modes", options.modes, MODES["torch"])}
    frameworks = ("jax", "torch") if options.framework == "both" else (options.framework,)
    device, device_name = choose_device(options.device, frameworks)
    # XLA chooses its convolutions by trying them.
    torch.backends.cudnn.benchmark = True
    torch._dynamo.config.recompile_limit = 1 << 10

    versions = f"JAX {jax.__version__}, PyTorch {torch.__version__}"
    title = f"{device_name}; {versions}; {options.image_size} x {options.image_size} pixels, {options.steps} rounds"
    print(title)
    variants = [
        Variant(name, framework, mode, dtype, size)
        for dtype, size, framework in itertools.product(dtypes, sizes, frameworks)
        for mode, name in itertools.product(modes[framework], names)
    ]
    builders = {v: lambda v=v: build(v, options.image_size, device) for v in variants}
    timings = measure(builders, rounds=options.steps)
    found = ratios(timings, hosts)
    print(f"\n{_table(timings, found)}")
    if options.json:
        settings = dict(device=device_name, jax=jax.__version__, torch=torch.__version__, image_size=options.image_size)
        rows = dict(variants=[timing.row for timing in timings], ratios=[asdict(ratio) for ratio in found])
        write_text(options.json, json.dumps({**settings, **rows}, indent=1) + "\n")
    if options.plot:
        draw(Path(options.plot), timings, found, title)
    if all(timing.error for timing in timings):
        raise UserError("no variant could be run; the reasons are above")


if __name__ == "__main__":
    from lma_jax import cli

    define_flags()
    cli.run(main)
