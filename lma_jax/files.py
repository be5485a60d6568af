"""Writing files: a reader finds the old file or the new one, never a part of one."""

import contextlib
import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lma_jax.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path of the same suffix, which takes the place of `path` if the block succeeds.

    The folder of `path` is created. If the block fails, `path` stays as it was and no temporary file is left.

    Raises:
        UserError: the file cannot be written; its __cause__ is the OSError.
    """
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def write(path: str | Path, content: bytes | str) -> None:
    """Writes a file atomically, and its folder if needed.

    Raises:
        UserError: the file cannot be written; nothing is left behind or overwritten.
    """
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same columns as CSV, with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
