"""What a command may overwrite, checked before anything is computed: no input, and no file that it did not write."""

import os
import unicodedata
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from lma_jax import files
from lma_jax.errors import UserError

# A file is recognised by what it holds within so many bytes from either end.
SEARCHED = 1 << 20


class Kind(NamedTuple):
    """A kind of file that this program writes.

    Attributes:
        holds: what each one holds.
        lacks: what it lacks unlike other kinds.
        lines: what each of its lines starts with, for text that users put into texts of their own.
    """

    holds: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    lines: tuple[str, ...] = ("",)


# Any file, for outputs that the command tells from others by itself.
ANY = Kind(holds=())


def require_outputs(
    outputs: Mapping[str, tuple[str | Path | None, Kind]],
    *,
    inputs: Iterable[str | Path | None] = (),
    force: bool,
) -> None:
    """Checks that the outputs of a command can be written and that nothing is lost by it.

    An output may replace an empty file, and one of its own kind, which this program wrote. Other files are replaced by
    `force` alone, and inputs never.

    Args:
        outputs: by the name of the flag, the file to write and its kind; a flag without a file is skipped.
        inputs: the files that the command reads, and folders in which it reads. The same file counts under any name.
        force: whether to replace files that are not recognised.

    Raises:
        UserError: an output is an input or another output, exists and is not recognised, or cannot be written.
    """
    given = {flag: (Path(path), kind) for flag, (path, kind) in outputs.items() if path}
    read = [Path(path) for path in inputs if path]
    for flag, (path, _) in given.items():
        for source in read:
            if _is_within(path, source):
                raise UserError(f"--{flag}={path} is an input of this command ({source}): give another file")
    for (first, (path, _)), (second, (other, _)) in combinations(given.items(), 2):
        if _is_same(path, other):
            raise UserError(f"--{first}={path} and --{second}={other} are one file: give two")
    for flag, (path, kind) in given.items():
        files.require_writable(path)
        if Path(os.path.realpath(path)).exists() and not force:  # of missing/../file as well
            _require_replaceable(flag, path, kind)


def _require_replaceable(flag: str, path: Path, kind: Kind) -> None:
    target = Path(os.path.realpath(path))
    if not os.access(target, os.W_OK):
        raise UserError(f"--{flag}={path} is write-protected: give another file, or replace it by --force")
    if not _is_of(kind, target):
        raise UserError(
            f"--{flag}={path} exists and is no file of this kind that this program wrote: give another file, or "
            "replace it by --force"
        )


def _is_of(kind: Kind, path: Path) -> bool:
    """Whether a file is empty or of a kind."""
    try:
        with path.open("rb") as file:
            start = file.read(SEARCHED)
            file.seek(max(SEARCHED, path.stat().st_size - SEARCHED))
            content = start + b"\n" + file.read(SEARCHED)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    found = [mark.encode() in content for mark in kind.holds], [mark.encode() in content for mark in kind.lacks]
    beginnings = tuple(beginning.encode() for beginning in kind.lines)
    alike = all(line.startswith(beginnings) for line in content.splitlines() if line)
    return not start or (all(found[0]) and not any(found[1]) and alike)


def _is_within(path: Path, source: Path) -> bool:
    """Whether two paths are one file, or `path` lies within the folder `source`."""
    target = Path(os.path.realpath(path))
    return any(_is_same(candidate, source) for candidate in (target, *target.parents))


def _is_same(path: Path, other: Path) -> bool:
    """Whether two paths are one file: by any link if both exist, else on file systems that ignore case as well."""
    try:
        return os.path.samefile(path, other)
    except OSError:
        return _folded(path) == _folded(other)


def _folded(path: Path) -> str:
    return unicodedata.normalize("NFC", os.path.realpath(path)).casefold()
