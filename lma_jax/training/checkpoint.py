"""Checkpoints that describe themselves, are written atomically in the background, and are verified when read.

A checkpoint is <workdir>/checkpoints/<step>: an Orbax item `state`, one array a path such as
"params/layer1/0/conv1/kernel", and a JSON item with the metadata (model, classes, preprocessing, config, metrics)
and a checksum of every array, which Orbax itself lacks.
"""

import json
import shutil
import sys
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Sharding, SingleDeviceSharding
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from lma_jax.errors import UserError
from lma_jax.registry import create_model
from lma_jax.training.state import Network, TrainState, split

Arrays = dict[str, np.ndarray]

REPLACED = ".replaced"


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


class Checkpoints:
    """The checkpoints of a workdir: the newest `keep` and the best by validation top-1. Close it, or lose the last.

    In a job of several processes the first one writes, and all of them read what it finds; the workdir is theirs
    together.
    """

    def __init__(self, workdir: Path, *, keep: int):
        self._workdir = workdir.absolute()
        self._folder = self._workdir / "checkpoints"
        self._writes = jax.process_index() == 0
        policy = AnyPreservationPolicy([LatestN(keep), BestN(get_metric_fn=lambda metrics: metrics["top1"], n=1)])
        # One process alone: a write that fails there must not leave the others waiting.
        alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}, barrier_sync_key_prefix="lma")
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=policy, multiprocessing_options=alone, create=False
        )
        if self._writes:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._clean_up()
            self._open()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.wait()
        if self._writes:
            self._manager.close()

    @property
    def newest(self) -> int | None:
        """The step of the newest checkpoint that is written, None before the first."""
        return next(iter(_steps(self._folder)), None)

    def load(self) -> Checkpoint | None:
        """The newest good checkpoint, the same in all processes; None where there is none yet.

        Raises:
            UserError: every checkpoint is damaged, or this process does not see the first one's.
        """
        checkpoint = _newest_good(self._folder) if self._writes and _steps(self._folder) else None
        if jax.process_count() == 1:
            return checkpoint
        step = int(multihost_utils.broadcast_one_to_all(np.int32(checkpoint.step if checkpoint else -1)))
        if step < 0 or checkpoint is not None:
            return checkpoint
        try:
            return _read(self._folder, step)
        except DamagedError as error:
            raise UserError(f"checkpoint {step} is not in {self._workdir}, which all processes must share") from error

    def set_aside_after(self, step: int) -> None:
        """Moves checkpoints newer than `step`, which are damaged, to the folder `damaged` beside `checkpoints`."""
        if not self._writes:
            return
        for damaged in (number for number in _steps(self._folder) if number > step):
            target = self._workdir / "damaged" / str(damaged)
            target.parent.mkdir(exist_ok=True)
            while target.exists():
                target = target.with_name(target.name + "_")
            (self._folder / str(damaged)).rename(target)
        self._manager.reload()

    def save(self, state: TrainState, metadata: dict[str, Any], *, top1: float) -> None:
        """Starts to write `state` under its step; `top1` is the validation accuracy that ranks it.

        A failure to write, such as a full disk, is reported on stderr, and the next save tries again.
        """
        if not self._writes:
            return
        arrays = to_arrays(state)
        record = {"metadata": metadata, "checksums": {path: _checksum(array) for path, array in arrays.items()}}
        self.wait()
        try:
            self._require_space(sum(array.nbytes for array in arrays.values()))
            self._make_way(int(arrays["step"]))
            self._manager.save(
                int(arrays["step"]),
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(arrays),
                    record=ocp.args.JsonSave({**record, "checksum": _record_checksum(record)}),
                ),
                metrics={"top1": top1},
            )
        except Exception as error:  # Orbax wraps what the file system says in errors of many kinds
            self._report(error)

    def wait(self) -> None:
        """Waits for the save in progress, and reports its failure."""
        if self._writes:
            try:
                self._manager.wait_until_finished()
                self._clean_up()
            except Exception as error:
                self._report(error)

    def _open(self) -> None:
        self._manager = ocp.CheckpointManager(self._folder, options=self._options)

    def _require_space(self, size: int) -> None:
        """Raises an OSError where the disk lacks room; Orbax would say so in a thousand lines."""
        free = shutil.disk_usage(self._folder).free
        if free < 1.1 * size:
            raise OSError(f"{free / 1e6:,.0f} MB are free on the disk, {1.1 * size / 1e6:,.0f} MB are needed")

    def _make_way(self, step: int) -> None:
        """Renames a checkpoint of the same step, saved on a signal and evaluated since; it goes once it is replaced."""
        if (self._folder / str(step)).exists():
            (self._folder / str(step)).rename(self._folder / f"{step}{REPLACED}")
            self._manager.reload()

    def _clean_up(self) -> None:
        """Removes what killed or failed saves have left, and puts back what they were to replace."""
        for unfinished in self._folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(unfinished)
        for replaced in self._folder.glob(f"*{REPLACED}"):
            target = replaced.with_name(replaced.name.removesuffix(REPLACED))
            if target.exists():
                shutil.rmtree(replaced)
            else:
                replaced.rename(target)

    def _report(self, error: Exception) -> None:
        self._clean_up()
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        print(
            f"warning: a checkpoint could not be written to {self._folder} ({reason[:300]}); training goes on, the "
            f"newest checkpoint is {self.newest}",
            file=sys.stderr,
            flush=True,
        )
        self._open()


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
    steps = _steps(folder)
    if not steps:
        raise UserError(f"{workdir} holds no checkpoint: give the --workdir of a training run")
    if step == "newest":
        return _newest_good(folder)
    number = _best(folder, steps) if step == "best" else step
    if number not in map(str, steps):
        raise UserError(
            f"{workdir} holds no checkpoint {step!r}; it holds {', '.join(map(str, steps))}, newest and best"
        )
    try:
        return _read(folder, int(number))
    except DamagedError as error:
        raise UserError(f"checkpoint {number} of {workdir} is damaged ({error})") from error


def to_arrays(tree: Any) -> Arrays:
    """The leaves of a tree in host memory, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def restore_model(checkpoint: Checkpoint, *, dtype: Any = None, sharding: Sharding | None = None) -> nnx.Module:
    """The network of a checkpoint with its weights (their moving average where the run kept one), in training mode.

    Args:
        checkpoint: what `load_checkpoint` returned.
        dtype: computation dtype; by default that of the input and the parameters.
        sharding: where the weights go; by default the first device.

    Raises:
        UserError: the arrays do not fit the model that the metadata name.
    """
    metadata = checkpoint.metadata
    placement = sharding or SingleDeviceSharding(jax.local_devices()[0])
    param_dtype = next(array.dtype for path, array in checkpoint.arrays.items() if path.startswith("params/"))

    def build() -> nnx.Module:
        options: dict[str, Any] = dict(num_classes=metadata["num_classes"], dtype=dtype, param_dtype=param_dtype)
        return create_model(metadata["model"], **options, rngs=nnx.Rngs(0))

    abstract, params, batch_stats = split(nnx.eval_shape(build))
    rng_state = jax.jit(lambda: split(build())[0].rng_state, out_shardings=placement)()
    evaluated = checkpoint.evaluated()
    return Network(abstract.graphdef, rng_state).bind(
        fill(params, evaluated, sharding=placement, prefix="params/"),
        fill(batch_stats, evaluated, sharding=placement, prefix="batch_stats/"),
    )


def fill(template: Any, checkpoint: Checkpoint, *, sharding: Sharding, prefix: str = "") -> Any:
    """A tree like `template` (arrays or their shapes) with the checkpoint's arrays below `prefix`.

    Raises:
        UserError: arrays are missing, unexpected or of another shape or dtype; the first ones are named.
    """
    paths, treedef = jax.tree_util.tree_flatten_with_path(template)
    wanted = {prefix + jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}
    found = {path: array for path, array in checkpoint.arrays.items() if path.startswith(prefix)}
    problems = [f"missing {path}" for path in wanted if path not in found]
    problems += [f"unexpected {path}" for path in found if path not in wanted]
    for path in sorted(wanted.keys() & found.keys()):
        given, needed = found[path], wanted[path]
        if (given.shape, given.dtype) != (needed.shape, needed.dtype):
            problems.append(f"{path} is {given.dtype}{given.shape}, not {needed.dtype}{needed.shape}")
    if problems:
        shown = "; ".join(problems[:3]) + ("; ..." if len(problems) > 3 else "")
        raise UserError(
            f"checkpoint {checkpoint.step} is of another network, a {checkpoint.metadata['model']} with "
            f"{checkpoint.metadata['num_classes']} classes ({len(problems)} differences: {shown})"
        )
    return jax.tree_util.tree_unflatten(treedef, [_place(found[path], sharding) for path in wanted])


def _place(array: np.ndarray, sharding: Sharding) -> jax.Array:
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _steps(folder: Path) -> list[int]:
    """The steps that have a folder, newest first; unfinished saves have another name."""
    if not folder.is_dir():
        return []
    return sorted((int(path.name) for path in folder.iterdir() if path.name.isdecimal()), reverse=True)


def _newest_good(folder: Path) -> Checkpoint:
    problems = []
    for step in _steps(folder):
        try:
            checkpoint = _read(folder, step)
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


def _read(folder: Path, step: int) -> Checkpoint:
    """Reads one checkpoint and verifies it."""
    try:
        record = json.loads((folder / str(step) / "record" / "metadata").read_text())
        checksum = record.pop("checksum")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DamagedError("its metadata are unreadable") from error
    if _record_checksum(record) != checksum:
        raise DamagedError("its metadata differ from their checksum")
    arrays = _read_arrays(folder / str(step) / "state", list(record["checksums"]))
    for path, array in arrays.items():
        if _checksum(array) != record["checksums"][path]:
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
            accuracies[step] = _read(folder, step).metadata["metrics"].get("val_top1", -1.0)
        except DamagedError as error:
            print(f"warning: checkpoint {step} of {folder.parent} is damaged ({error})", file=sys.stderr)
    return str(max(accuracies, key=lambda step: accuracies[step], default=""))


def _checksum(array: np.ndarray) -> str:
    header = f"{array.dtype}{array.shape}".encode()
    return f"{zlib.crc32(array.tobytes(), zlib.crc32(header)):08x}"


def _record_checksum(record: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(record, sort_keys=True).encode()):08x}"
