"""The checkpoints of a run: saved in the background, the newest and the best kept, and none lost without a word."""

import errno
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from lma_jax import files
from lma_jax.checkpoint.format import (
    Checkpoint,
    DamagedError,
    Metadata,
    metadata_of,
    newest_good,
    read,
    saved_steps,
    to_arrays,
)
from lma_jax.checkpoint.writer import SaveManager, clean_up, delete
from lma_jax.definition import split
from lma_jax.errors import InterruptedRun, Occasionally, UserError, warn

# The rank of a checkpoint that is not evaluated: it may be the newest, but is never the best.
NOT_EVALUATED = -1.0
# Seconds between attempts to save the last state, and between looks at what happened meanwhile.
RETRY, TICK = 2.0, 0.1


class Checkpoints:
    """The checkpoints of a workdir: the newest `keep` and the best by validation top-1.

    `finish` makes sure of the last save. In a job of several processes, the first process writes and all of them read,
    so that they must share the workdir.

    Raises:
        UserError: the workdir cannot be written.
    """

    def __init__(self, workdir: Path, *, keep: int):
        self._workdir = workdir.absolute()
        self._folder = self._workdir / "checkpoints"
        self._keep = keep
        self._writes = jax.process_index() == 0
        self._ranks: dict[int, float] = {}  # of the checkpoints on disk, as far as they are known
        self._unsaved: Checkpoint | None = None
        self._failure = ""  # why it is not on disk
        self._reported = True
        self._warnings = Occasionally()
        if self._writes:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                with files.plain_name(self._folder):  # or it is refused before anything is computed
                    clean_up(self._folder)
            except OSError as error:
                raise UserError(f"cannot write to the workdir {workdir}: {error.strerror}") from error
            self._open()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.wait()
        if self._unsaved is not None:  # an error ends the run: once more
            self._start()
            self._collect()
        if self._unsaved is not None:
            warn(self._loss())

    @property
    def newest(self) -> int | None:
        """The step of the newest checkpoint on disk, None before the first."""
        return next(iter(saved_steps(self._folder)), None)

    @property
    def busy(self) -> bool:
        """Whether this process is writing a checkpoint."""
        return self._writes and self._manager.busy

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
        """Moves checkpoints newer than `step`, which are damaged, to the folder `damaged` beside `checkpoints`.

        Raises:
            UserError: they cannot be moved.
        """
        if not self._writes:
            return
        for damaged in (number for number in saved_steps(self._folder) if number > step):
            target = self._workdir / "damaged" / str(damaged)
            try:
                target.parent.mkdir(exist_ok=True)
                while target.exists():
                    target = target.with_name(target.name + "_")
                (self._folder / str(damaged)).rename(target)
            except OSError as error:
                raise UserError(f"cannot move the damaged checkpoint to {target}: {error.strerror}") from error

    def save(self, state: Any, metadata: Metadata, *, top1: float = NOT_EVALUATED) -> None:
        """Starts to write a state, once the save before it has ended.

        A failure to write, such as a full disk, is reported on stderr by the next call, and the next save tries again.

        Args:
            state: tree of arrays; the one at the path "step" is the number of the checkpoint.
            metadata: what the checkpoint says about itself.
            top1: validation accuracy, by which checkpoints are ranked.
        """
        if not self._writes:
            return
        arrays = to_arrays(state)
        self.wait()
        self._unsaved = Checkpoint(int(arrays["step"]), arrays, metadata)
        self._top1 = top1
        self._start()

    def wait(self) -> None:
        """Waits for the save in progress and reports its failure."""
        if self._writes:
            self._collect()
            self._report()

    def poll(self) -> None:
        """Reports the failure of a save that has ended; it takes no time."""
        if self._writes and not self._manager.busy:
            self.wait()

    def finish(self, *, minutes: float, check: Callable[[], object]) -> None:
        """Waits until the last state is on disk. Every process must call it.

        Args:
            minutes: how long to try again where the state cannot be written.
            check: called in every process between the attempts; an InterruptedRun that it raises ends the wait.

        Raises:
            UserError: the state could not be saved.
        """
        start, attempts = time.monotonic(), 0
        while True:
            while self._agreed(self._is_writing):
                pass
            if self._agreed(self._is_saved):  # asked when nothing is being written, so that the answer stays true
                return
            attempts += 1
            if self._agreed(lambda: time.monotonic() - start >= 60 * minutes):
                raise self._given_up()
            if attempts == 2 and self._writes:
                warn(f"{self._loss()}; trying again for {minutes:g} minutes (config.save_wait)")
            try:
                for _ in range(round(RETRY / TICK)):
                    time.sleep(TICK)
                    check()
            except InterruptedRun as interruption:
                raise self._given_up(f"{interruption} ended the wait for the disk: ") from None
            if self._writes:
                self._start()

    def _open(self) -> None:
        self._manager = SaveManager(self._folder)

    def _start(self) -> None:
        """Starts to write the last state."""
        assert self._unsaved is not None
        try:
            self._require_space(sum(array.nbytes for array in self._unsaved.arrays.values()))
            self._manager.save(self._unsaved, self._written)
        except Exception as error:
            self._fail(error)

    def _written(self) -> None:
        assert self._unsaved is not None
        self._ranks[self._unsaved.step] = self._top1
        self._unsaved, self._failure = None, ""
        with suppress(OSError):  # the next save tries again
            self._delete_old()

    def _collect(self) -> None:
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # nothing that a disk does ends a run
            self._fail(error)

    def _is_writing(self) -> bool:
        """Whether a save is in progress a moment from now."""
        self._manager.join(TICK)
        return self._manager.busy

    def _is_saved(self) -> bool:
        """Whether the last state is on disk, once no save is in progress."""
        self._collect()
        return self._unsaved is None

    def _agreed(self, condition: Callable[[], bool]) -> bool:
        """What the first process finds."""
        if jax.process_count() == 1:
            return condition()
        return bool(multihost_utils.broadcast_one_to_all(np.bool_(self._writes and condition())))

    def _require_space(self, size: int) -> None:
        """Raises an OSError if the disk lacks room, before any of it is taken."""
        free = shutil.disk_usage(self._folder).free
        if free < 1.1 * size:
            lacking = f"{free / 1e6:,.1f} MB are free on the disk, {1.1 * size / 1e6:,.1f} MB are needed"
            raise OSError(errno.ENOSPC, lacking)

    def _delete_old(self) -> None:
        """Deletes what is older than the newest `keep` checkpoints and not the best. Damaged ones do not count."""
        steps = saved_steps(self._folder)
        ranks = {step: rank for step in steps if (rank := self._rank(step)) is not None}
        kept = [*ranks][: self._keep]
        best = max(ranks, key=lambda step: ranks[step])
        protected = {best} if ranks[best] != NOT_EVALUATED else set()
        for step in {*steps} - protected:
            if step < kept[-1]:
                delete(self._folder, step)

    def _rank(self, step: int) -> float | None:
        """The validation top-1 of a checkpoint on disk, None if it is damaged.

        Raises:
            OSError: it cannot be read now.
        """
        if step not in self._ranks:
            try:
                metrics = metadata_of(self._folder, step).metrics
            except DamagedError as error:
                if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError):
                    raise error.__cause__ from error  # it may be good: delete nothing until the disk answers
                return None
            self._ranks[step] = metrics.get("val_top1", NOT_EVALUATED)
        return self._ranks[step]

    def _fail(self, error: Exception) -> None:
        """Notes why the last state is not on disk, and makes room for the next attempt."""
        reason = (isinstance(error, OSError) and error.strerror) or str(error).strip() or type(error).__name__
        self._failure, self._reported = reason.splitlines()[0][:300], False
        with suppress(OSError):
            clean_up(self._folder)
        self._open()

    def _report(self) -> None:
        """Warns of a save that failed."""
        reported, self._reported = self._reported, True
        if not reported and self._warnings.due(self._failure):
            warn(
                f"a checkpoint could not be written to {self._folder} ({self._failure}); training goes on, "
                f"{self._last()}"
            )

    def _given_up(self, cause: str = "") -> UserError:
        error = UserError(f"{cause}{self._loss()}. Make room or mend the disk, and give the same command again")
        self._unsaved, self._reported = None, True
        return error

    def _loss(self) -> str:
        what = "the last state" if self._unsaved is None else f"the state after step {self._unsaved.step:,}"
        reason = self._failure or "the first process says why"
        return f"{what} could not be saved to {self._folder} ({reason}); {self._last()}"

    def _last(self) -> str:
        try:
            return "there is no checkpoint yet" if self.newest is None else f"the newest checkpoint is {self.newest}"
        except OSError as error:
            return f"the checkpoints cannot be listed ({error.strerror})"


def require_new(workdir: Path) -> None:
    """Checks that a folder can be created. Nothing is left behind.

    Raises:
        UserError: it exists already, or its parent cannot be written.
    """
    if os.path.lexists(workdir) or os.path.exists(os.path.realpath(workdir)):
        raise UserError(f"{workdir} exists already: give a new folder")
    files.require_writable(workdir / "checkpoints")


def save_weights(workdir: Path, model: nnx.Module, metadata: Metadata) -> None:
    """Writes the weights and statistics of a network as the checkpoint 0 of a new workdir.

    Raises:
        UserError: the workdir exists already or cannot be written; then nothing is left behind.
    """
    require_new(workdir)
    _, params, batch_stats = split(model)
    state = {"step": jnp.int32(0), "params": params, "batch_stats": batch_stats}
    unfinished = workdir.with_name(f".{workdir.name}.tmp")
    try:
        with files.creating(workdir.parent):
            try:
                shutil.rmtree(unfinished, ignore_errors=True)  # of a killed process
                with Checkpoints(unfinished, keep=1) as checkpoints:
                    checkpoints.save(state, metadata)
                    checkpoints.finish(minutes=0, check=lambda: None)
                if checkpoints.newest is None:
                    raise UserError(f"cannot write to {workdir}")
                unfinished.rename(workdir)
            except BaseException:
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
    except OSError as error:
        raise UserError(f"cannot write to {workdir}: {error.strerror}") from error
