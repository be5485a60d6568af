"""Checkpoints on disk: reading and verifying them."""

import json
import sys
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore as ts

from lma_jax.errors import UserError

Arrays = dict[str, np.ndarray]


class DamagedError(Exception):
    """A checkpoint whose content is not what was saved."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint in host memory.

    Attributes:
        step: the number of training steps behind it.
        arrays: its arrays by path.
        metadata: model, num_classes, preprocessing, config and metrics.
    """

    step: int
    arrays: Arrays
    metadata: dict[str, Any]

    def evaluated(self) -> "Checkpoint":
        """The same with "params/..." and "batch_stats/..." alone: the moving average where the run kept one."""
        average = {path.removeprefix("ema/"): array for path, array in self.arrays.items() if path.startswith("ema/")}
        arrays = average or self.arrays
        kept = {path: array for path, array in arrays.items() if path.startswith(("params/", "batch_stats/"))}
        return replace(self, arrays=kept)


def load_checkpoint(workdir: str | Path, step: str = "newest") -> Checkpoint:
    """Reads and verifies one checkpoint of a training workdir.

    Args:
        workdir: the folder that training was given.
        step: "newest" (damaged ones are passed over, with a warning on stderr), "best" by validation top-1,
            or a number.

    Raises:
        UserError: there is no such checkpoint, or it is damaged.
    """
    folder = Path(workdir).absolute() / "checkpoints"
    steps = saved_steps(folder)
    if not steps:
        raise UserError(f"{workdir} holds no checkpoint: give the --workdir of a training run")
    if step == "newest":
        return newest_good(folder)
    number = _best(folder, steps) if step == "best" else step
    if number not in map(str, steps):
        raise UserError(
            f"{workdir} holds no checkpoint {step!r}; it holds {', '.join(map(str, steps))}, newest and best"
        )
    try:
        return read(folder, int(number))
    except DamagedError as error:
        raise UserError(f"checkpoint {number} of {workdir} is damaged ({error})") from error


def to_arrays(tree: Any) -> Arrays:
    """The leaves of a tree in host memory, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def saved_steps(folder: Path) -> list[int]:
    """The steps that have a folder, newest first; unfinished saves have another name."""
    if not folder.is_dir():
        return []
    return sorted((int(path.name) for path in folder.iterdir() if path.name.isdecimal()), reverse=True)


def newest_good(folder: Path) -> Checkpoint:
    problems = []
    for step in saved_steps(folder):
        try:
            checkpoint = read(folder, step)
        except DamagedError as error:
            problems.append(f"{step} ({error})")
            continue
        if problems:
            print(
                f"warning: damaged checkpoints are passed over: {', '.join(problems)}; using {step} of {folder.parent}",
                file=sys.stderr,
            )
        return checkpoint
    raise UserError(f"every checkpoint in {folder} is damaged: {', '.join(problems)}")


def read(folder: Path, step: int) -> Checkpoint:
    """Reads one checkpoint and verifies it."""
    try:
        record = json.loads((folder / str(step) / "record" / "metadata").read_text())
        checksum = record.pop("checksum")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DamagedError("its metadata are unreadable") from error
    if record_checksum(record) != checksum:
        raise DamagedError("its metadata differ from their checksum")
    arrays = _read_arrays(folder / str(step) / "state", list(record["checksums"]))
    for path, array in arrays.items():
        if checksum(array) != record["checksums"][path]:
            raise DamagedError(f"{path} differs from its checksum")
    return Checkpoint(step, arrays, record["metadata"])


def _read_arrays(folder: Path, paths: list[str]) -> Arrays:
    """Reads arrays of an Orbax item, which is an OCDBT store with a zarr array a path.

    Not through Orbax: where a file is damaged, it abandons its other reads, and each of them then complains on stderr.
    """
    store = {"driver": "ocdbt", "base": f"file://{folder}/"}
    opening = {path: ts.open({"driver": "zarr", "kvstore": {**store, "path": f"{path}/"}}) for path in paths}
    try:
        reading = {path: array.result().read() for path, array in opening.items()}
        return {path: array.result() for path, array in reading.items()}
    except (ValueError, OSError, NotImplementedError) as error:
        raise DamagedError("its arrays are unreadable") from error


def _best(folder: Path, steps: list[int]) -> str:
    """The step with the highest validation top-1 among the good ones."""
    accuracies = {}
    for step in steps:
        try:
            accuracies[step] = read(folder, step).metadata["metrics"].get("val_top1", -1.0)
        except DamagedError as error:
            print(f"warning: checkpoint {step} of {folder.parent} is damaged ({error})", file=sys.stderr)
    return str(max(accuracies, key=lambda step: accuracies[step], default=""))


def checksum(array: np.ndarray) -> str:
    header = f"{array.dtype}{array.shape}".encode()
    return f"{zlib.crc32(array.tobytes(), zlib.crc32(header)):08x}"


def record_checksum(record: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(record, sort_keys=True).encode()):08x}"
