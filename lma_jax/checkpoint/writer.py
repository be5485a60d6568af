"""Writing one checkpoint, whole or not at all, in a thread of its own."""

import json
import os
import re
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import tensorstore as ts

from lma_jax import files
from lma_jax.checkpoint.format import Arrays, Checkpoint, record_of

UNFINISHED = ".tmp"
REPLACED = ".replaced"
# No locks: the names of a checkpoint's files are its own, and not every network file system has locks.
_CONTEXT = ts.Context({"file_io_locking": {"mode": "none"}})


class SaveManager:
    """Writes one checkpoint at a time, in the background.

    Args:
        folder: receives the checkpoints. It must exist and is not created anew: a workdir that was deleted, renamed or
            unmounted must not come back with nothing but its last checkpoint.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._thread is not None and self._thread.is_alive()

    def save(self, checkpoint: Checkpoint, then: Callable[[], None]) -> None:
        """Starts to write a checkpoint, whose arrays must stay as they are, and calls `then` once it is on disk."""

        def work() -> None:
            try:
                write(self._folder, checkpoint)
                then()
            except Exception as error:
                self._error = error

        # A daemon: a disk that does not answer must not keep the program from ending.
        self._thread = threading.Thread(target=work, name="checkpoint", daemon=True)
        self._thread.start()

    def join(self, seconds: float) -> None:
        """Waits for the checkpoint that is being written, but not for longer than that."""
        if self._thread is not None:
            self._thread.join(seconds)

    def wait_until_finished(self) -> None:
        """Waits for the checkpoint that is being written.

        Raises:
            Exception: what made the write fail; it is raised once.
        """
        if self._thread is not None:
            self._thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise error


def write(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes `folder`/<step>, in place of one that is there; killed at any moment, it leaves one of the two.

    Raises:
        OSError: the disk is full, for instance.
    """
    target = folder / str(checkpoint.step)
    unfinished, replaced = (folder / f"{checkpoint.step}{suffix}" for suffix in (UNFINISHED, REPLACED))
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    with files.plain_name(unfinished) as plain:
        _write_arrays(plain / "state", checkpoint.arrays)
    (unfinished / "record").mkdir()
    record = json.dumps(record_of(checkpoint.arrays, checkpoint.metadata))
    with (unfinished / "record" / "metadata").open("w") as file:
        file.write(record)
        file.flush()
        os.fsync(file.fileno())
    for path in (unfinished / "record", unfinished):
        _sync(path)
    if target.exists():
        target.rename(replaced)
    unfinished.rename(target)
    _sync(folder)
    shutil.rmtree(replaced, ignore_errors=True)


def delete(folder: Path, step: int) -> None:
    """Deletes a checkpoint; killed in between, it leaves no folder that looks like a checkpoint."""
    doomed = folder / f"{step}{UNFINISHED}"
    with suppress(OSError):  # the next clean-up tries again
        (folder / str(step)).rename(doomed)
        shutil.rmtree(doomed)


def clean_up(folder: Path) -> None:
    """Removes what killed or failed saves left behind, and restores a checkpoint that was not replaced.

    Raises:
        OSError: a checkpoint cannot be restored.
    """
    for pattern in (f"*{UNFINISHED}", "*.orbax-checkpoint-tmp*"):  # Orbax wrote the checkpoints of earlier versions
        for unfinished in folder.glob(pattern):
            shutil.rmtree(unfinished, ignore_errors=True)
    for replaced in folder.glob(f"*{REPLACED}"):
        target = replaced.with_name(replaced.name.removesuffix(REPLACED))
        if target.exists():
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            replaced.rename(target)


def _write_arrays(folder: Path, arrays: Arrays) -> None:
    """Writes an OCDBT store with one zarr array for each path, in one transaction."""
    store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}}
    transaction = ts.Transaction(atomic=True)
    try:
        opening = {
            path: ts.open(
                {"driver": "zarr", "kvstore": {**store, "path": f"{path}/"}, "metadata": {"compressor": None}},
                create=True,
                dtype=ts.dtype(array.dtype.name),
                shape=array.shape,
                transaction=transaction,
                context=_CONTEXT,
            )
            for path, array in arrays.items()
        }
        for writing in [array.result().write(arrays[path]) for path, array in opening.items()]:
            writing.result()
        transaction.commit_sync()
    except ValueError as error:  # so TensorStore reports the file system's errors
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(folder)) from error


def _sync(folder: Path) -> None:
    """Makes the names in a folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems refuse it
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
