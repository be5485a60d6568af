"""Writing checkpoints: atomically, in the background, the newest ones and the best."""

import os
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from lma_jax import files
from lma_jax.checkpoint.format import (
    Checkpoint,
    DamagedError,
    Metadata,
    is_whole,
    newest_good,
    read,
    record_of,
    saved_steps,
    to_arrays,
)
from lma_jax.definition import split
from lma_jax.errors import UserError

REPLACED = ".replaced"


class Checkpoints:
    """The checkpoints of a workdir: the newest `keep` and the best by validation top-1.

    It must be closed, or the last asynchronous save may be lost. In a job of several processes, the first process
    writes and all of them read, so that they must share the workdir.
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
        self._saving: int | None = None
        if self._writes:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._clean_up()
            self._names = ExitStack()
            self._plain_folder = self._names.enter_context(files.plain_name(self._folder))
            self._open()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.wait()
        if self._writes:
            self._manager.close()
            self._names.close()

    @property
    def newest(self) -> int | None:
        """The step of the newest checkpoint on disk, None before the first."""
        return next(iter(saved_steps(self._folder)), None)

    def load(self) -> Checkpoint | None:
        """The newest good checkpoint, the same in all processes; None if there is none yet.

        Raises:
            UserError: every checkpoint is damaged, or this process does not see the one that the first process read.
        """
        checkpoint = newest_good(self._folder) if self._writes and saved_steps(self._folder) else None
        if jax.process_count() == 1:
            return checkpoint
        step = int(multihost_utils.broadcast_one_to_all(np.int32(checkpoint.step if checkpoint else -1)))
        if step < 0 or checkpoint is not None:
            return checkpoint
        try:
            return read(self._folder, step)
        except DamagedError as error:
            raise UserError(f"checkpoint {step} is not in {self._workdir}, which all processes must share") from error

    def set_aside_after(self, step: int) -> None:
        """Moves checkpoints newer than `step`, which are damaged, to the folder `damaged` beside `checkpoints`."""
        if not self._writes:
            return
        for damaged in (number for number in saved_steps(self._folder) if number > step):
            target = self._workdir / "damaged" / str(damaged)
            target.parent.mkdir(exist_ok=True)
            while target.exists():
                target = target.with_name(target.name + "_")
            (self._folder / str(damaged)).rename(target)
        self._manager.reload()

    def save(self, state: Any, metadata: Metadata, *, top1: float) -> None:
        """Starts to write a state.

        A failure to write, such as a full disk, is reported on stderr, and the next save tries again.

        Args:
            state: tree of arrays; the one at the path "step" is the number of the checkpoint.
            metadata: what the checkpoint says about itself.
            top1: validation accuracy, by which checkpoints are ranked.
        """
        if not self._writes:
            return
        arrays = to_arrays(state)
        record = record_of(arrays, metadata)
        self.wait()
        try:
            self._require_space(sum(array.nbytes for array in arrays.values()))
            self._make_way(int(arrays["step"]))
            items = ocp.args.Composite(state=ocp.args.StandardSave(arrays), record=ocp.args.JsonSave(record))
            self._manager.save(int(arrays["step"]), args=items, metrics={"top1": top1})
            self._saving = int(arrays["step"])
        except Exception as error:  # Orbax wraps the file system's errors in many kinds
            self._report(error)

    def wait(self) -> None:
        """Waits for the save in progress and reports its failure."""
        if self._writes:
            try:
                self._manager.wait_until_finished()
                self._require_whole()
                self._clean_up()
            except Exception as error:
                self._report(error)

    def _open(self) -> None:
        self._manager = ocp.CheckpointManager(self._plain_folder, options=self._options)

    def _require_space(self, size: int) -> None:
        """Raises an OSError if the disk lacks room, which Orbax would report in a thousand lines."""
        free = shutil.disk_usage(self._folder).free
        if free < 1.1 * size:
            raise OSError(f"{free / 1e6:,.0f} MB are free on the disk, {1.1 * size / 1e6:,.0f} MB are needed")

    def _require_whole(self) -> None:
        """Raises an OSError if the save that has ended left out files, as Orbax does without an error."""
        step, self._saving = self._saving, None
        if step is not None and not is_whole(self._folder, step):
            self.set_aside_after(step - 1)
            raise OSError(f"checkpoint {step} lacks files")

    def _make_way(self, step: int) -> None:
        """Moves aside the checkpoint that a signal saved at this step. `_clean_up` deletes it later."""
        if (self._folder / str(step)).exists():
            (self._folder / str(step)).rename(self._folder / f"{step}{REPLACED}")
            self._manager.reload()

    def _clean_up(self) -> None:
        """Removes what killed or failed saves left behind, and restores a checkpoint that was not replaced."""
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


def save_weights(workdir: Path, model: nnx.Module, metadata: Metadata) -> None:
    """Writes the weights and statistics of a network as the checkpoint 0 of a new workdir.

    Raises:
        UserError: the workdir exists already or cannot be written.
    """
    if os.path.exists(workdir):
        raise UserError(f"{workdir} exists already: give a new folder")
    _, params, batch_stats = split(model)
    try:
        with Checkpoints(workdir, keep=1) as checkpoints:
            state = {"step": jnp.int32(0), "params": params, "batch_stats": batch_stats}
            checkpoints.save(state, metadata, top1=-1.0)
    except OSError as error:
        raise UserError(f"cannot write to {workdir}: {error.strerror}") from error
    if checkpoints.newest is None:
        raise UserError(f"cannot write to {workdir}")
