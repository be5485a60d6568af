"""The accelerators that programs are compiled for. None has to be there: XLA needs only a description."""

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lma_jax.errors import UserError, nearest

DESCRIPTIONS = Path(__file__).with_name("targets")
MOST_DEVICES = 8


@dataclass(frozen=True)
class Accelerator:
    """An accelerator, and what a roofline needs to know of it.

    Attributes:
        name: what the user calls it.
        platform: JAX's name of its platform, "cuda" or "tpu".
        bandwidth: bytes/s between the chip and its memory.
        peak: FLOP/s in bfloat16; None if unknown, so that a roofline counts the bytes only.
        description: of a GPU, XLA's description as a text.
        topologies: of a TPU, names of topologies, the smallest first.
    """

    name: str
    platform: str
    bandwidth: float
    peak: float | None
    description: str = ""
    topologies: tuple[str, ...] = ()

    def seconds(self, moved: int, flops: int) -> float:
        """The least time in which this device moves these bytes and computes these FLOPs, both at once."""
        return max(moved / self.bandwidth, flops / self.peak if self.peak else 0)


# FLOP/s in bfloat16 by NVIDIA's data sheets, without sparsity; the bandwidth stands in the descriptions.
GPUS = {"h100": 989e12, "a100": 312e12}
# Bytes/s and FLOP/s in bfloat16 of a device, by Google's pages on the versions of TPUs. A v4 is half a chip: a core.
TPUS = {"v4": (614e9, 137.5e12), "v5e": (819e9, 197e12), "v5p": (2765e9, 459e12), "v6e": (1638e9, 918e12)}
# The targets that have a name of their own among TPUs.
TOPOLOGIES = {"v5e": ("v5e:2x2", "v5e:2x4")}
TARGETS = (*GPUS, *TOPOLOGIES)


def set_environment() -> None:
    """Makes JAX compile without devices and quietly; call it before JAX is imported."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # there is no TPU to ask
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # another process may compile at the same time
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")  # else a query for it fails, with a warning
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def find(name: str) -> Accelerator:
    """The accelerator that `name` stands for: one of TARGETS, a file of XLA's that describes a GPU, or a TPU topology.

    Raises:
        UserError: there is no such target.
    """
    if name in GPUS:
        return described(DESCRIPTIONS / f"{name}.textproto", name, peak=GPUS[name])
    if name.endswith(".textproto"):
        return described(Path(name), Path(name).stem, peak=None)
    version, colon, _ = name.partition(":")
    if version in TPUS and (colon or name in TOPOLOGIES):
        bandwidth, peak = TPUS[version]
        return Accelerator(name, "tpu", bandwidth, peak, topologies=TOPOLOGIES.get(name, (name,)))
    raise UserError(
        f"unknown target {name!r}, did you mean {nearest(name, (*TARGETS, *TPUS))!r}? ({', '.join(TARGETS)}, "
        "a .textproto file of a GPU, or a TPU topology such as v5p:2x2x1)"
    )


def described(file: Path, name: str, *, peak: float | None) -> Accelerator:
    """The GPU that a file describes.

    Raises:
        UserError: the file cannot be read, or lacks what the description of an H100 has.
    """
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from error
    # XLA crashes where a size is missing.
    if missing := sorted(fields_of((DESCRIPTIONS / "h100.textproto").read_text()) - fields_of(text)):
        raise UserError(f"{file} has no {', '.join(missing)}; benchmarks/measurements/targets has examples")
    bandwidth = re.search(r"memory_bandwidth: *(\d+)", text)
    assert bandwidth, "checked above"
    return Accelerator(name, "cuda", float(bandwidth[1]), peak, description=text)


def fields_of(text: str) -> set[str]:
    """The names of the numbers and words in a description."""
    return set(re.findall(r"^ *(\w+): *\S", text, re.MULTILINE))


def require_compiler(accelerator: Accelerator) -> None:
    """Checks that XLA's compiler for this accelerator is installed.

    Raises:
        UserError: it is not; the message has the command that installs it.
    """
    import jax

    modules = {"cuda": ("jax_cuda13_plugin", "jax_cuda12_plugin"), "tpu": ("libtpu",)}[accelerator.platform]
    if any(importlib.util.find_spec(module) for module in modules):
        return
    version = jax.__version__
    commands = {
        "cuda": f"pip install --no-deps jax-cuda13-plugin=={version} jax-cuda13-pjrt=={version}",
        "tpu": f'pip install "jax[tpu]=={version}"',
    }
    raise UserError(f"no compiler for {accelerator.name}: {commands[accelerator.platform]} (benchmarks/README.md)")


def devices_of(accelerator: Accelerator, count: int) -> list[Any]:
    """`count` devices to compile for, connected as they are in one machine.

    Raises:
        UserError: XLA does not know the topology, or it has fewer devices.
    """
    from jax.experimental import topologies

    devices: list[Any] = []
    for name in accelerator.topologies or (f"1x{count}x1",):
        options = dict(topology_name=name) if accelerator.platform == "tpu" else dict(topology=name)
        if accelerator.platform == "cuda":
            options["target_config"] = accelerator.description
        try:
            devices = topologies.get_topology_desc(platform=accelerator.platform, **options).devices
        except (RuntimeError, ValueError) as error:
            raise UserError(f"XLA refuses the target {accelerator.name}: {str(error).splitlines()[0]}") from error
        if len(devices) >= count:
            return devices[:count]
    raise UserError(f"{accelerator.name} has {len(devices)} devices, not {count}")
