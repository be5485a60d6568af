"""Predicts training on many GPUs from measured and assumed parts. It imports nothing beyond the standard library."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

# A BatchNorm that shares its statistics sums mean and variance in the forward pass and their two gradients in the
# backward pass: 4 all-reduces, a few of which XLA combines, and twice the bytes of the running mean and variance.
SYNC_ALL_REDUCES, SYNC_STATISTICS = 4, 2
GIGA, MILLI, MICRO = 1e9, 1e-3, 1e-6


def assumed(default: Any, meaning: str, source: str, *, may_be_zero: bool = False) -> Any:
    """A field with its meaning, unit included, and its source."""
    return field(default=default, metadata={"meaning": meaning, "source": source, "may_be_zero": may_be_zero})


@dataclass(frozen=True)
class Assumptions:
    """What a prediction rests on; every field is an option of the command.

    Raises:
        ValueError: a value is 0 that must be above, or is below 0.
    """

    images_per_second: float = assumed(2790, "images/s that a GPU computes", "published: H100, ResNet-50, PyTorch fp16")
    batch_per_gpu: int = assumed(64, "images per GPU and step", "the paper's 256 on 4 GPUs")
    gpus_per_machine: int = assumed(8, "GPUs per machine", "DGX H100")
    gradient_bytes: int = assumed(102_228_816, "float32 gradients of resnet50_lma, bytes", "checked: --check")
    statistics_bytes: int = assumed(212_480, "float32 running statistics, bytes", "checked: --check", may_be_zero=True)
    metric_bytes: int = assumed(20, "summed metrics, bytes", "checked: --check", may_be_zero=True)
    sync_layers: int = assumed(
        0, 'BatchNorm layers that share statistics: 53 if batch_norm="sync"', "config default", may_be_zero=True
    )
    combine_bytes: int = assumed(8 * 2**20, "largest all-reduce into which XLA combines, bytes", "the trainer's flag")
    nvlink: float = assumed(200, "all-reduce bandwidth inside a machine, GB/s", "assumed: under half of 450 per GPU")
    network: float = assumed(100, "network bandwidth per machine, GB/s", "assumed: a quarter of 8 x 400 Gbit/s")
    hop_latency: float = assumed(5, "latency per hop, microseconds", "assumed", may_be_zero=True)
    train_images: int = assumed(1_281_167, "training images", "ImageNet")
    image_kb: float = assumed(110, "mean size of a JPEG, KB", "ImageNet's")
    cpu_per_image: float = assumed(1.5, "CPU ms to decode and crop an image", "1.4 x a plain decode of 1.09 ms (Zen 5)")
    cpu_to_hand_over: float = assumed(0.3, "extra CPU ms per image that a worker decodes", "measured: 0.15 to 0.4")
    thread_limit: float = assumed(5000, "images/s that a process decodes in threads", "elsewhere 5,000 to 8,000")
    worker_limit: float = assumed(3400, "images/s that a worker hands over", "measured, without decoding")
    receive_limit: float = assumed(
        30_000, "images/s that a process receives from workers", "measured: 0.03 to 0.08 ms each"
    )
    cores_per_machine: int = assumed(112, "CPU cores per machine", "DGX H100")
    processes_per_machine: int = assumed(1, "training processes per machine", "one command per machine")
    data_workers: int = assumed(0, "config.data_workers of a process", "config default", may_be_zero=True)
    storage: float = assumed(10, "storage read bandwidth, GB/s", "assumed")
    local_copy: bool = assumed(
        False, "each machine reads its own copy at that bandwidth", "assumed: all share one", may_be_zero=True
    )
    eval_every: float = assumed(1.0, "config.eval_every, epochs; each evaluation saves", "config default")
    checkpoint_write: float = assumed(0.1, "write bandwidth of a checkpoint, GB/s", "measured: 205 MB in 1.8 to 2.7 s")
    save_blocks: float = assumed(0.5, "seconds for which a save blocks training", "measured: 0.3 to 1.0 s")

    def __post_init__(self) -> None:
        wrong = []
        for item in fields(self):
            value, may_be_zero = getattr(self, item.name), item.metadata["may_be_zero"]
            if not (value > 0 or (may_be_zero and value == 0)):
                wrong.append(f"--{item.name}={value:g} must be {'at least 0' if may_be_zero else 'above 0'}")
        if wrong:
            raise ValueError("; ".join(wrong))

    @property
    def reduced_bytes(self) -> int:
        """Bytes that the devices sum in a step."""
        shared = SYNC_STATISTICS * self.statistics_bytes if self.sync_layers else 0
        return self.gradient_bytes + self.statistics_bytes + self.metric_bytes + shared

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of a checkpoint: parameters, momentum, statistics and two counters."""
        return 2 * self.gradient_bytes + self.statistics_bytes + 8


# What relieves each part.
RELIEFS: Mapping[str, str] = MappingProxyType(
    {
        "input process": "`config.data_workers=8`",
        "input cores": "a `config.data_dir` of smaller images",
        "storage": "`config.data_dir` on each machine's own disk",
        "checkpoints": "`config.eval_every=10.0`",
        "all-reduce": "a larger `config.batch_size`, with `config.accumulate` where memory is short",
    }
)


@dataclass(frozen=True)
class Prediction:
    """A training job on `gpus` GPUs; times in seconds, rates per second.

    Attributes:
        gpus: number of GPUs.
        batch_size: images per step over all GPUs.
        compute: time of a step's computation.
        wire_bytes: bytes that a device sends in a step's all-reduces.
        all_reduces: all-reduces per step on GPUs: some of float32, and one of int32.
        all_reduce: their time.
        images: images that the GPUs compute if nothing limits them.
        input_cores: cores per machine that decode those.
        storage_read: bytes that all machines together read for those.
        epoch: time of an epoch at that rate.
        save: time to write a checkpoint.
        loads: demand over supply of each part at that rate. A load above 1 limits the GPUs.
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
        """Time of a step whose all-reduces follow the backward pass, and of one in which they overlap it."""
        return self.compute + self.all_reduce, max(self.compute, self.all_reduce)

    @property
    def bottleneck(self) -> str:
        """The part with the highest load."""
        return max(self.loads, key=lambda part: self.loads[part])

    @property
    def throughput(self) -> float:
        """Images that the job trains on, limited by its bottleneck alone."""
        return self.images / max(1, self.loads[self.bottleneck])


def predict(assumptions: Assumptions, gpus: int) -> Prediction:
    """Predicts the job on `gpus` GPUs, which fill their machines or share one.

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
    """Bytes that a device sends, and receives, to sum `reduced` bytes over `gpus` devices, by a ring or by trees."""
    return 2 * (gpus - 1) / gpus * reduced


def all_reduces(assumptions: Assumptions, gpus: int) -> int:
    """All-reduces per step: XLA combines float32 tensors up to a size, and int32 metrics apart from them."""
    combined = math.ceil(assumptions.reduced_bytes / assumptions.combine_bytes) + 1
    return combined + SYNC_ALL_REDUCES * assumptions.sync_layers if gpus > 1 else 0


def input_limits(assumptions: Assumptions) -> tuple[float, float]:
    """Images/s that the processes of a machine can handle, and CPU seconds per image."""
    if not assumptions.data_workers:
        return assumptions.processes_per_machine * assumptions.thread_limit, assumptions.cpu_per_image * MILLI
    handed_over = min(assumptions.data_workers * assumptions.worker_limit, assumptions.receive_limit)
    cpu = (assumptions.cpu_per_image + assumptions.cpu_to_hand_over) * MILLI
    return assumptions.processes_per_machine * handed_over, cpu


def saturates_at(assumptions: Assumptions, part: str, *, most: int = 4096) -> int | None:
    """The fewest GPUs at which the load of a part is above 1; None if it is not with up to `most`."""
    return next((gpus for gpus in range(1, most + 1) if predict(assumptions, gpus).loads[part] > 1), None)
