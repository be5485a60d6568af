"""One run at a time on a workdir: a lock that ends with the process or machine that holds it."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from lma_jax.errors import UserError, warn

NAME = ".lock"
# On a file system without locks, the holder touches the file every so many seconds.
HEARTBEAT = 5.0
_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
# A POSIX lock keeps out other processes only, and closing any descriptor of the file gives it up.
_held: set[tuple[int, int]] = set()


@contextlib.contextmanager
def sole_writer(workdir: Path) -> Iterator[None]:
    """Keeps other processes, on any host, from writing to a workdir, which is created; they may read it.

    A POSIX lock of the file `.lock`: it works over NFS, and the kernel gives it up when its holder dies; children do
    not inherit it. On a file system without locks, a holder that touches the file is respected instead, after a
    moment of watching and a warning.

    Raises:
        UserError: another process holds it, and the error names it; or the workdir cannot be written.
    """
    path = workdir / NAME
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        descriptor, locked = _lock(path)
    except OSError as error:
        raise UserError(f"cannot write to the workdir {workdir}: {error.strerror}") from error
    ended = threading.Event()
    identity = _identity(descriptor)
    _held.add(identity)
    try:
        _sign(descriptor)
        if not locked:
            threading.Thread(target=_beat, args=(descriptor, ended), daemon=True).start()
        yield
    finally:
        ended.set()
        with contextlib.suppress(OSError):
            if _identity(path) == identity:
                path.unlink()
        _held.discard(identity)
        os.close(descriptor)


def _lock(path: Path) -> tuple[int, bool]:
    """A descriptor of the file, and whether the file system could lock it."""
    while True:
        if _exists(path) and _identity(path) in _held:
            raise _in_use(path, "this process")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            locked = _try(descriptor, path)
            if _exists(path) and _identity(path) == _identity(descriptor):
                return descriptor, locked
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder ended and removed it meanwhile


def _try(descriptor: int, path: Path) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise _in_use(path, _holder(descriptor)) from error
        if error.errno not in _WITHOUT_LOCKS:
            raise
        _require_silence(descriptor, path)
        return False
    return True


def _require_silence(descriptor: int, path: Path) -> None:
    """Refuses a file that its holder still touches."""
    warn(
        f"the file system of {path.parent} has no locks ({NAME}): two runs there are told apart by the time of that "
        "file alone"
    )
    if not os.pread(descriptor, 1, 0):
        return  # new, or its holder ended in order
    before = os.fstat(descriptor).st_mtime_ns
    time.sleep(2.5 * HEARTBEAT)
    if os.stat(path).st_mtime_ns != before:
        raise _in_use(path, _holder(descriptor))


def _beat(descriptor: int, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT):
        with contextlib.suppress(OSError):
            os.utime(descriptor)


def _sign(descriptor: int) -> None:
    """Writes who holds the lock. A full disk takes the name, not the lock."""
    holder = dict(host=socket.gethostname(), pid=os.getpid(), since=time.strftime("%Y-%m-%d %H:%M:%S %Z"))
    with contextlib.suppress(OSError):
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        os.fsync(descriptor)


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 1000, 0))
        return f"process {holder['pid']:d} on {holder['host']:.100} (since {holder['since']:.40})"
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return "another process"


def _in_use(path: Path, holder: str) -> UserError:
    return UserError(
        f"{path.parent} is in use by {holder}: a second run would destroy its checkpoints. Wait until it has ended, or "
        "give another folder"
    )


def _exists(path: Path) -> bool:
    return os.path.lexists(path)


def _identity(file: int | Path) -> tuple[int, int]:
    status = os.stat(file)
    return status.st_dev, status.st_ino
