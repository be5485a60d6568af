"""Writing files: a reader finds the old file or the new one, never a part of one."""

import contextlib
import csv
import errno
import io
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lma_jax.errors import UserError


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
    """Writes a file atomically, and its folder if needed.

    Raises:
        UserError: the file cannot be written; nothing is left behind or overwritten.
    """
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def require_writable(path: Path) -> None:
    """Checks that `write` can write to a path, by a temporary file. Nothing is left behind.

    Raises:
        UserError: it cannot.
    """
    with contextlib.suppress(_ProbedError), replacing(path) as temporary:
        temporary.touch()
        raise _ProbedError


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
