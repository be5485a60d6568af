"""Predicts training on many GPUs from measured and assumed parts, and checks the prediction where one machine can.

    python benchmarks/scaling.py [--gpus 8 64 512] [--batch_per_gpu 64 ...] [--json scaling.json]
    python benchmarks/scaling.py --check [--model resnet50_lma] [--batch_norm local]
    python benchmarks/scaling.py --loopback [--model resnet50_lma]

The first prints tables; each assumption is an option. --check compiles the trainer's own step for 2, 4 and 8 fake
devices and compares its collectives with the prediction, to the byte; it exits with 1 on a difference. --loopback times
the all-reduce of a network's gradients and statistics between two processes on this machine, and needs Linux.
"""

import argparse
import json
import math
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

ITEM_BYTES = {"pred": 1, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "f64": 8, "bf16": 2}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
# A BatchNorm that shares its statistics sums mean and variance on the way forward and their two gradients on the way
# back: 4 all-reduces, a few of which XLA combines, and twice the bytes of the running mean and variance.
SYNC_ALL_REDUCES, SYNC_STATISTICS = 4, 2
GIGA, MILLI, MICRO = 1e9, 1e-3, 1e-6
ROUNDS = 9


def assumed(default: Any, meaning: str, source: str) -> Any:
    """A field with its meaning, unit included, and its source."""
    return field(default=default, metadata={"meaning": meaning, "source": source})


@dataclass(frozen=True)
class Assumptions:
    """What a prediction rests on; every field is an option of the program."""

    images_per_second: float = assumed(2790, "images/s a GPU computes", "published: H100, ResNet-50, PyTorch fp16")
    batch_per_gpu: int = assumed(64, "images a GPU and step", "the paper's 256 on 4 GPUs")
    gpus_per_machine: int = assumed(8, "GPUs a machine", "DGX H100")
    gradient_bytes: int = assumed(102_228_816, "float32 gradients of resnet50_lma, bytes", "checked: --check")
    statistics_bytes: int = assumed(212_480, "float32 running statistics, bytes", "checked: --check")
    metric_bytes: int = assumed(20, "summed metrics, bytes", "checked: --check")
    sync_layers: int = assumed(0, 'BatchNorm layers that share statistics: 53 if batch_norm="sync"', "config default")
    combine_bytes: int = assumed(30 * 2**20 + 7, "most bytes XLA puts into an all-reduce on GPUs", "XLA's source")
    nvlink: float = assumed(200, "all-reduce bandwidth inside a machine, GB/s", "assumed: under half of 450 a GPU")
    network: float = assumed(100, "network bandwidth a machine, GB/s", "assumed: a quarter of 8 x 400 Gbit/s")
    hop_latency: float = assumed(5, "latency a hop, microseconds", "assumed")
    train_images: int = assumed(1_281_167, "training images", "ImageNet")
    image_kb: float = assumed(110, "mean size of a JPEG, KB", "ImageNet's")
    cpu_per_image: float = assumed(1.5, "CPU ms to decode and crop an image", "1.4 x a plain decode of 1.09 ms (Zen 5)")
    cpu_to_hand_over: float = assumed(0.3, "CPU ms more an image where a worker decodes", "measured: 0.15 to 0.4")
    thread_limit: float = assumed(5000, "images/s that one process decodes in threads", "elsewhere 5,000 to 8,000")
    worker_limit: float = assumed(3400, "images/s that one worker hands over", "measured, without decoding")
    receive_limit: float = assumed(30_000, "images/s one process takes from workers", "measured: 0.03 to 0.08 ms each")
    cores_per_machine: int = assumed(112, "CPU cores a machine", "DGX H100")
    processes_per_machine: int = assumed(1, "training processes a machine", "one command a machine")
    data_workers: int = assumed(0, "config.data_workers of a process", "config default")
    storage: float = assumed(10, "storage read bandwidth, GB/s", "assumed")
    local_copy: bool = assumed(False, "each machine reads its own copy at that bandwidth", "assumed: all share one")
    eval_every: float = assumed(1.0, "config.eval_every, epochs; each evaluation saves", "config default")
    checkpoint_write: float = assumed(0.1, "GB/s of a checkpoint", "measured: 205 MB in 1.8 to 2.7 s")
    save_blocks: float = assumed(0.5, "s that a save holds training up", "measured: 0.3 to 1.0 s")

    @property
    def reduced_bytes(self) -> int:
        """What the devices sum in a step."""
        shared = SYNC_STATISTICS * self.statistics_bytes if self.sync_layers else 0
        return self.gradient_bytes + self.statistics_bytes + self.metric_bytes + shared

    @property
    def checkpoint_bytes(self) -> int:
        """Parameters, SGD's momentum, statistics and two counters."""
        return 2 * self.gradient_bytes + self.statistics_bytes + 8


# What lifts each limit.
RELIEFS = {
    "input process": "`config.data_workers=8`",
    "input cores": "a `config.data_dir` of smaller images",
    "storage": "`config.data_dir` on each machine's own disk",
    "checkpoints": "`config.eval_every=10.0`",
    "all-reduce": "a larger `config.batch_size`, with `config.accumulate` where memory is short",
}


@dataclass(frozen=True)
class Prediction:
    """A training job on `gpus` GPUs; times in seconds, rates a second.

    Attributes:
        gpus, batch_size: GPUs, and images a step over all of them.
        compute: time of a step's own work.
        wire_bytes: what a device sends in a step's all-reduce.
        all_reduces: collectives in a step on GPUs: float32 in parts, and one of int32.
        all_reduce: time of them.
        images: images that the GPUs take in when nothing holds them up.
        input_cores: cores a machine that decode those.
        storage_read: bytes that all machines read together for those.
        epoch: length of an epoch at that pace.
        save: time to write a checkpoint.
        loads: demand over supply of each part at that pace; above 1 it holds the GPUs up.
    """

    gpus: int
    batch_size: int
    compute: float
    wire_bytes: float
    all_reduces: int
    all_reduce: float
    images: float
    input_cores: float
    storage_read: float
    epoch: float
    save: float
    loads: dict[str, float]

    @property
    def step(self) -> tuple[float, float]:
        """Time of a step, with none and with all of the all-reduce behind the backward pass."""
        return self.compute + self.all_reduce, max(self.compute, self.all_reduce)

    @property
    def tightest(self) -> str:
        """The part under the highest load."""
        return max(self.loads, key=lambda part: self.loads[part])

    @property
    def pace(self) -> float:
        """Images that the job takes in, held up by its tightest part alone."""
        return self.images / max(1, self.loads[self.tightest])


def all_reduce_seconds(assumptions: Assumptions, gpus: int) -> float:
    """Time of a step's all-reduces: 2 (G - 1) / G of the bytes over the slowest link, and the hops of each one.

    NCCL's rings leave a machine once, so that all of its network cards together carry what one GPU sends. The hops are
    those of its trees, a chain in each machine and a tree over machines, there and back; a ring's would grow with G.
    """
    machines = math.ceil(gpus / assumptions.gpus_per_machine)
    bandwidth = min(assumptions.nvlink, assumptions.network if machines > 1 else math.inf) * GIGA
    hops = 2 * (min(gpus, assumptions.gpus_per_machine) - 1 + math.ceil(math.log2(machines)))
    latency = all_reduces(assumptions, gpus) * hops * assumptions.hop_latency * MICRO
    return wire_bytes(assumptions.reduced_bytes, gpus) / bandwidth + latency


def wire_bytes(reduced: int, gpus: int) -> float:
    """What a device sends, and receives, to sum `reduced` bytes over `gpus` devices, by a ring or by trees."""
    return 2 * (gpus - 1) / gpus * reduced


def all_reduces(assumptions: Assumptions, gpus: int) -> int:
    """Collectives a step: XLA combines float32 tensors up to a size, and int32 metrics apart from them."""
    combined = math.ceil(assumptions.reduced_bytes / assumptions.combine_bytes) + 1
    return combined + SYNC_ALL_REDUCES * assumptions.sync_layers if gpus > 1 else 0


def input_limits(assumptions: Assumptions) -> tuple[float, float]:
    """Images/s a machine that its processes can handle, and CPU seconds an image."""
    if not assumptions.data_workers:
        return assumptions.processes_per_machine * assumptions.thread_limit, assumptions.cpu_per_image * MILLI
    handed_over = min(assumptions.data_workers * assumptions.worker_limit, assumptions.receive_limit)
    cpu = (assumptions.cpu_per_image + assumptions.cpu_to_hand_over) * MILLI
    return assumptions.processes_per_machine * handed_over, cpu


def predict(assumptions: Assumptions, gpus: int) -> Prediction:
    """The job on `gpus` GPUs, which fill their machines or lie in one.

    Raises:
        ValueError: fewer than 1 GPU.
    """
    if gpus < 1:
        raise ValueError(f"a job has at least 1 GPU, got {gpus}")
    machines = math.ceil(gpus / assumptions.gpus_per_machine)
    compute = assumptions.batch_per_gpu / assumptions.images_per_second
    all_reduce = all_reduce_seconds(assumptions, gpus)
    images = gpus * assumptions.images_per_second
    process_limit, cpu_per_image = input_limits(assumptions)
    cores, read = images / machines * cpu_per_image, images * assumptions.image_kb * 1e3
    epoch, save = assumptions.train_images / images, assumptions.checkpoint_bytes / assumptions.checkpoint_write / GIGA
    loads = {
        "input process": images / machines / process_limit,
        "input cores": cores / assumptions.cores_per_machine,
        "storage": read / GIGA / assumptions.storage / (machines if assumptions.local_copy else 1),
        "checkpoints": save / (assumptions.eval_every * epoch),
        "all-reduce": all_reduce / compute,
    }
    return Prediction(
        gpus=gpus,
        batch_size=gpus * assumptions.batch_per_gpu,
        compute=compute,
        wire_bytes=wire_bytes(assumptions.reduced_bytes, gpus),
        all_reduces=all_reduces(assumptions, gpus),
        all_reduce=all_reduce,
        images=images,
        input_cores=cores,
        storage_read=read,
        epoch=epoch,
        save=save,
        loads=loads,
    )


def saturates_at(assumptions: Assumptions, part: str, *, most: int = 4096) -> int | None:
    """The fewest GPUs at which a part holds them up; None if `most` are not enough."""
    return next((gpus for gpus in range(1, most + 1) if predict(assumptions, gpus).loads[part] > 1), None)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def prediction_table(assumptions: Assumptions, predictions: list[Prediction]) -> str:
    """A column for each prediction."""

    def steps(p: Prediction) -> str:
        return " / ".join(f"{seconds * 1e3:.1f}" for seconds in p.step) + " ms"

    def efficiencies(p: Prediction) -> str:
        return " / ".join(f"{p.compute / seconds:.0%}" for seconds in p.step)

    def saving(p: Prediction) -> str:
        return f"{assumptions.save_blocks / (assumptions.save_blocks + assumptions.eval_every * p.epoch):.1%}"

    def load(part: str, p: Prediction) -> str:
        return f"{p.loads[part]:.0%}"

    def relief(p: Prediction) -> str:
        return f"{p.tightest}: {RELIEFS[p.tightest]}" if p.loads[p.tightest] > 1 else "nothing"

    cells: dict[str, Callable[[Prediction], str]] = {
        "`config.batch_size`": lambda p: f"{p.batch_size:,}",
        "compute a step": lambda p: f"{p.compute * 1e3:.1f} ms",
        "sent by a GPU in the all-reduce": lambda p: f"{p.wire_bytes / 1e6:.1f} MB",
        "time of the all-reduce": lambda p: f"{p.all_reduce * 1e3:.1f} ms",
        "step, all-reduce not hidden / hidden": steps,
        "efficiency, not hidden / hidden": efficiencies,
        "images the GPUs take": lambda p: f"{p.images:,.0f}/s",
        "input cores a machine": lambda p: f"{p.input_cores:.1f} of {assumptions.cores_per_machine}",
        "storage read, all machines": lambda p: f"{p.storage_read / 1e9:.1f} GB/s",
        "an epoch": lambda p: f"{p.epoch:.1f} s",
        "checkpoint": lambda p: f"{assumptions.checkpoint_bytes / 1e6:.0f} MB in {p.save:.1f} s",
        "time held up by saving": saving,
        **{f"load: {part}": partial(load, part) for part in RELIEFS},
        "images the job takes": lambda p: f"{p.pace:,.0f}/s",
        "held up most by": relief,
    }
    header = ["", *(f"{p.gpus} GPUs" for p in predictions)]
    return markdown(header, [[name, *map(cell, predictions)] for name, cell in cells.items()])


def saturation_table(assumptions: Assumptions) -> str:
    """Where each part saturates, the first one first, what relieves it, and where it saturates with all reliefs."""
    most = 4096
    relieved = replace(assumptions, data_workers=8, local_copy=True, eval_every=10.0)
    found = {part: (saturates_at(assumptions, part, most=most) or math.inf) for part in RELIEFS}
    rows = []
    for part in sorted(found, key=lambda part: found[part]):
        then = saturates_at(relieved, part, most=most) or math.inf
        shown = [f"{gpus:,} GPUs" if gpus <= most else f"not up to {most:,}" for gpus in (found[part], then)]
        rows.append([part, shown[0], RELIEFS[part], shown[1]])
    return markdown(["part", "saturates at", "relieved by", "then saturates at"], rows)


def assumption_table(assumptions: Assumptions) -> str:
    """Every assumption with its source."""
    rows = []
    for item in fields(assumptions):
        value = getattr(assumptions, item.name)
        shown = str(value) if isinstance(value, bool) else f"{value:,.10g}"
        rows.append([f"`{item.name}`", shown, item.metadata["meaning"], item.metadata["source"]])
    return markdown(["option", "value", "meaning", "source"], rows)


def collectives(hlo: str) -> list[tuple[str, Counter[str]]]:
    """The collectives of a compiled program's text, each with the bytes of its result by element type.

    One in a loop counts once.
    """
    found = []
    kinds = "|".join(COLLECTIVES)
    for line in hlo.splitlines():
        # Tuples carry comments such as /*index=5*/.
        match = re.search(rf"= (\(.*?\)|\S+) ({kinds})(?:-start)?\(", re.sub(r"/\*.*?\*/", "", line))
        if match:
            sizes: Counter[str] = Counter()
            for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", match[1]):
                sizes[dtype] += ITEM_BYTES[dtype] * math.prod(map(int, filter(None, shape.split(","))))
            found.append((match[2], sizes))
    return found


def tree_bytes(tree: Any) -> int:
    """Bytes of the leaves, which may be shapes."""
    import jax

    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def network_shapes(model: str) -> tuple[Any, Any]:
    """The shapes of a network's parameters and of its running statistics."""
    from flax import nnx

    from lma_jax import create_model
    from lma_jax.definition import split

    _, params, batch_stats = split(nnx.eval_shape(lambda: create_model(model, rngs=nnx.Rngs(0))))
    return params, batch_stats


def compiled_step(model: str, devices: int, *, batch_norm: str = "local") -> tuple[str, dict[str, int]]:
    """The trainer's step by configs/common.py, compiled for some of the devices.

    The images are small, since collectives do not depend on their size.

    Returns:
        The text of the program, and the bytes to be summed by what they are.
    """
    import jax
    import optax
    from jax.sharding import NamedSharding

    from configs import common
    from lma_jax.preprocessing import preprocessing_from
    from lma_jax.sharding import REPLICATED, SHARDED, data_mesh
    from lma_jax.training.objective import objective_from
    from lma_jax.training.state import build_optimizer, create_state
    from lma_jax.training.step import make_train_step

    config, classes, side = common.get_config(), 1000, 32
    config.update(model=model, batch_norm=batch_norm, image_size=side, batch_size=4 * devices)
    mesh = data_mesh(jax.devices()[:devices])
    optimizer = build_optimizer(config, optax.constant_schedule(config.learning_rate))
    network, state = create_state(config, classes, optimizer, NamedSharding(mesh, REPLICATED))
    step = make_train_step(
        network,
        optimizer,
        mesh,
        preprocessing=preprocessing_from(config),
        objective=objective_from(config, num_classes=classes),
        seed=config.seed,
    )
    shapes = {
        "image": ((side, side, 3), "uint8"),
        "label": ((), "int32"),
        "mask": ((), "bool"),
        "skipped": ((), "int32"),
    }
    batch = {
        name: jax.ShapeDtypeStruct((config.batch_size, *shape), dtype, sharding=NamedSharding(mesh, SHARDED))
        for name, (shape, dtype) in shapes.items()
    }
    _, metrics = jax.eval_shape(step, state, batch)
    trees = {"gradients": state.params, "statistics": state.batch_stats, "metrics": metrics}
    parts = {name: tree_bytes(tree) for name, tree in trees.items()}
    if batch_norm == "sync":
        parts["sync"] = SYNC_STATISTICS * parts["statistics"]
    text = step.lower(state, batch).compile().as_text()
    assert text is not None, "XLA gives no text of the program"
    return text, parts


def check(model: str, batch_norm: str, sizes: list[int]) -> bool:
    """Prints the collectives of the compiled step beside the prediction, and says whether they are equal."""
    equal = True
    for devices in sizes:
        text, parts = compiled_step(model, devices, batch_norm=batch_norm)
        found, predicted = collectives(text), sum(parts.values())
        actual = sum(result.total() for _, result in found)
        equal &= actual == predicted and {kind for kind, _ in found} == {"all-reduce"}
        print(
            f"{model}, {devices} devices: predicted {' + '.join(f'{n:,} ({name})' for name, n in parts.items())} = "
            f"{predicted:,} bytes; compiled {actual:,} in {len(found)} collectives; "
            f"on the wire {wire_bytes(actual, devices):,.0f} bytes a device",
            flush=True,
        )
        largest = sorted(found, key=lambda item: -item[1].total())[:3]
        print("  the largest: " + "; ".join(f"{kind} {dict(result)}" for kind, result in largest), flush=True)
    return equal


def loopback_bytes() -> int:
    """What went over the loopback device since the machine's start."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.strip().startswith("lo:"))


def socket_seconds(size: int) -> float:
    """Time to send `size` bytes over a TCP connection of this machine while as many come back: a link's own pace."""

    def receive(end: socket.socket) -> None:
        buffer, left = bytearray(1 << 20), size
        while left:
            left -= end.recv_into(buffer, min(left, len(buffer)))

    with socket.create_server(("127.0.0.1", 0)) as server:
        ends = [socket.create_connection(server.getsockname()), server.accept()[0]]
    data = bytes(size)
    threads = [threading.Thread(target=end.sendall, args=(data,)) for end in ends]
    threads += [threading.Thread(target=receive, args=(end,)) for end in ends]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    for end in ends:
        end.close()
    return seconds


def time_all_reduce(model: str, rank: int, coordinator: str, output: Path) -> None:
    """One of two processes that average the network's parameters and statistics as the step does; the first reports.

    It does so with the network's arrays, and with a single one of as many bytes.
    """
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding

    from lma_jax.sharding import DATA_AXIS, REPLICATED, data_mesh
    from lma_jax.training.distributed import join

    def fill(shapes: Any) -> Any:
        return jax.tree.map(lambda shape: jnp.ones(shape.shape, shape.dtype), shapes)

    join(coordinator, 2, rank)
    mesh = data_mesh()
    shapes = network_shapes(model)
    size = tree_bytes(shapes)
    result: dict[str, Any] = {"arrays": len(jax.tree.leaves(shapes)), "bytes": size}
    specs: dict[str, Any] = dict(in_specs=REPLICATED, out_specs=REPLICATED, check_vma=False)
    averaged = jax.shard_map(lambda tree: jax.lax.pmean(tree, DATA_AXIS), mesh=mesh, **specs)
    for name, kind in {"tree": shapes, "flat": jax.ShapeDtypeStruct((size // 4,), jnp.float32)}.items():
        tree = jax.jit(partial(fill, kind), out_shardings=NamedSharding(mesh, REPLICATED))()
        average = jax.jit(averaged).lower(tree).compile()
        jax.block_until_ready(average(tree))
        seconds, before = [], loopback_bytes()
        for _ in range(ROUNDS):
            start = time.perf_counter()
            jax.block_until_ready(average(tree))
            seconds.append(time.perf_counter() - start)
        # Both processes send over the one loopback.
        result[name] = {"seconds": seconds, "wire": (loopback_bytes() - before) / 2 / ROUNDS}
    if rank == 0:
        output.write_text(json.dumps(result))
    jax.distributed.shutdown()


def loopback(model: str) -> None:
    """Prints time and bytes of the all-reduce between two processes beside the prediction."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        command = [sys.executable, __file__, "--model", model, "--join", coordinator, str(output)]
        environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
        ranks = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
        codes = [process.wait() for process in ranks]
        if any(codes):
            sys.exit(f"error: exit codes {codes}")
        result = json.loads(output.read_text())
    predicted = wire_bytes(result["bytes"], 2)
    plain = [socket_seconds(int(predicted)) for _ in range(ROUNDS)]
    print(f"{model}: gradients and statistics, {result['bytes']:,} bytes in {result['arrays']} arrays")
    for name in ("tree", "flat"):
        wire, seconds = result[name]["wire"], result[name]["seconds"]
        off = f"{wire / predicted - 1:+.2%} of the prediction"
        print(f"  {name}: a process sent {wire:,.0f} bytes, {off}; {milliseconds(seconds)}")
    print(f"  the same bytes both ways over one socket: {milliseconds(plain)}")


def milliseconds(seconds: list[float]) -> str:
    """The fastest and the middle of several times."""
    middle = statistics.median(seconds)
    return f"{min(seconds) * 1e3:.0f} ms at best, {middle * 1e3:.0f} ms in the median of {len(seconds)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--json", type=Path, help="file that receives assumptions and predictions")
    parser.add_argument("--check", action="store_true", help="count the collectives of the compiled step")
    parser.add_argument("--loopback", action="store_true", help="time the all-reduce of two processes")
    parser.add_argument("--model", default="resnet50_lma", help="of --check and --loopback")
    parser.add_argument("--batch_norm", default="local", choices=("local", "sync"), help="of --check")
    parser.add_argument("--devices", type=int, nargs="+", default=[2, 4, 8], help="of --check")
    parser.add_argument("--join", nargs=3, help=argparse.SUPPRESS)
    for item in fields(Assumptions):
        kind = dict(action="store_true") if item.type is bool else dict(type=item.type)
        parser.add_argument(f"--{item.name}", default=item.default, help=item.metadata["meaning"], **kind)
    options = parser.parse_args()
    if min(options.gpus) < 1 or min(options.devices) < 2:
        parser.error("--gpus starts at 1, and --devices at 2: one device has no collectives")
    if options.join:
        coordinator, output, rank = options.join
        time_all_reduce(options.model, int(rank), coordinator, Path(output))
    elif options.check:
        # Before JAX starts; and the program is not run, so that LLVM need not optimise it.
        devices = f"--xla_force_host_platform_device_count={max(options.devices)}"
        os.environ["XLA_FLAGS"] = f"{devices} --xla_llvm_disable_expensive_passes=true"
        os.environ["JAX_PLATFORMS"] = "cpu"
        sys.exit(not check(options.model, options.batch_norm, options.devices))
    elif options.loopback:
        loopback(options.model)
    else:
        assumptions = Assumptions(**{item.name: getattr(options, item.name) for item in fields(Assumptions)})
        # These may be none at all; the others divide.
        positive = {*asdict(assumptions)} - {"sync_layers", "statistics_bytes", "metric_bytes", "hop_latency"}
        positive -= {"data_workers", "local_copy"}
        if wrong := [f"--{name}" for name in sorted(positive) if not getattr(assumptions, name) > 0]:
            parser.error(f"{', '.join(wrong)} must be above 0")
        predictions = [predict(assumptions, gpus) for gpus in options.gpus]
        tables = (
            assumption_table(assumptions),
            prediction_table(assumptions, predictions),
            saturation_table(assumptions),
        )
        print("\n\n".join(tables))
        if options.json:
            content = {"assumptions": asdict(assumptions), "predictions": [asdict(p) for p in predictions]}
            options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
