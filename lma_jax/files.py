"""Writing files, so that a reader finds the old file or the new one, never a part of one; and names of folders."""

import contextlib
import csv
import errno
import io
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lma_jax.errors import UserError

# What libraries do not take as a part of a name: patterns, escapes, schemes of URLs, and bytes that are not UTF-8.
SPECIAL = re.compile(r"[][*?\\#%|:\x00-\x1f\x7f\ud800-\udfff]")

# Bytes of the longest paths of files below a workdir, those of traces and of arrays that are being written.
ROOM = 400


def path_of(given: str | Path) -> Path:
    """A path as a user gives it: a leading ~ stands for the home folder, as shells do not see it in --option=~/x."""
    return Path(os.path.expanduser(given))


def printable(name: str) -> str:
    """A name whose bytes that are not UTF-8 are written as \\xff."""
    return os.fsencode(name).decode(errors="backslashreplace")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path of the same suffix, which takes the place of `path` if the block succeeds.

    The folder of `path` is created. If `path` is a link, the file that it leads to is replaced; the permissions of a
    replaced file are kept. If the block fails, `path` stays as it was, and no temporary file and no new folder is left.

    Raises:
        UserError: the file cannot be written; its __cause__ is the OSError.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.stem}.tmp{target.suffix}")
    try:
        _require_regular(target)
        with creating(target.parent):
            try:
                temporary.unlink(missing_ok=True)  # of a killed process; or a link that somebody put there
                yield temporary
                _flush(temporary)
                if target.exists():
                    shutil.copymode(target, temporary)
                os.replace(temporary, target)
            except BaseException:
                with contextlib.suppress(OSError):
                    temporary.unlink()
                raise
        with contextlib.suppress(OSError):  # some file systems cannot flush folders
            _flush(target.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def creating(folder: Path) -> Iterator[None]:
    """Creates a folder with its parents if it is missing. If the block fails, what was created is removed if empty.

    Raises:
        OSError: it cannot be created.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def write(path: str | Path, content: bytes | str) -> None:
    """Writes a file atomically, and its folder if needed. What of a text is not UTF-8 is escaped, as JSON does it.

    Raises:
        UserError: the file cannot be written; nothing is left behind or overwritten.
    """
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(content.encode(errors="backslashreplace") if isinstance(content, str) else content)


def require_writable(path: Path) -> None:
    """Checks that `write` can write to a path, by a temporary file. Nothing is left behind.

    Raises:
        UserError: it cannot.
    """
    with contextlib.suppress(_ProbedError), replacing(path) as temporary:
        temporary.touch()
        raise _ProbedError


@contextmanager
def plain_name(folder: Path) -> Iterator[Path]:
    """Yields another path to a folder, for libraries that do not take every name literally.

    It is `folder` itself unless its name has special characters, and valid within the block, also in other processes.

    Raises:
        UserError: the system offers no other name.
        OSError: the folder does not exist.
    """
    folder = folder.absolute()
    special = SPECIAL.search(str(folder))
    if special is None:
        yield folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        alias = Path(f"/proc/{os.getpid()}/fd/{descriptor}")
        if not alias.exists():
            raise UserError(f"{folder} contains {special[0]!r}, which not every library accepts: rename it")
        yield alias
    finally:
        os.close(descriptor)


def require_utf8(path: Path, purpose: str) -> None:
    """Raises a UserError if a path is not UTF-8, which `purpose` needs."""
    if re.search(r"[\ud800-\udfff]", str(path)):
        raise UserError(f"the name of {path} is not UTF-8, which {purpose} needs: rename it")


def require_short(workdir: Path) -> None:
    """Raises a UserError if the system's limit leaves too little room for the paths of files below a workdir."""
    length, limit = len(os.fsencode(workdir.absolute())), os.pathconf("/", "PC_PATH_MAX")
    if length > limit - ROOM:
        raise UserError(f"the path of the workdir has {length:,} bytes: give one of at most {limit - ROOM:,}")


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same columns as CSV, with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class _ProbedError(Exception):
    """Ends a probe, so that the target stays as it was."""


def _require_regular(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no regular file")


def _flush(path: Path) -> None:
    """Waits until a file or the entries of a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
