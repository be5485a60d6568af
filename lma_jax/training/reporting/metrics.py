"""Rows of metrics as JSON lines, TensorBoard events and Weights & Biases."""

import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lma_jax import files
from lma_jax.errors import UserError, warn
from lma_jax.training.reporting.events import Events

# Bytes of a line of metrics.jsonl, of which a row takes hundreds.
LONGEST = 1 << 16


class MetricsWriter:
    """Appends rows to <workdir>/metrics.jsonl, to TensorBoard events and, if asked for, to Weights & Biases.

    Rows after `step`, from which training resumes, are dropped first.

    Raises:
        UserError: `wandb_project` is given but wandb is not installed, or the workdir cannot be written.
    """

    def __init__(self, workdir: Path, *, step: int, config: Mapping[str, Any], wandb_project: str = ""):
        self._path = workdir / "metrics.jsonl"
        rows = [row for row in read_metrics(workdir, say=warn) if row["step"] <= step]
        files.write(self._path, "".join(json.dumps(row) + "\n" for row in rows))
        self._events = Events(workdir / "tensorboard", purge_step=step + 1)
        self._events.config(step, config)
        self._wandb = _open_wandb(workdir, wandb_project, config) if wandb_project else None

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self._events.close()
        if self._wandb is not None:
            self._wandb.finish()

    def write(self, row: dict[str, Any]) -> None:
        """Writes one row, which has "step" and numbers by name.

        Raises:
            OSError: a file cannot be written.
        """
        numbers = {re.sub("^(train|val)_", r"\1/", name): value for name, value in row.items() if name != "step"}
        if self._wandb is not None:
            self._wandb.log(numbers, step=row["step"])
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self._events.numbers(row["step"], numbers)

    def picture(self, step: int, name: str, png: bytes) -> None:
        """Shows a picture in TensorBoard.

        Raises:
            OSError: the file cannot be written.
        """
        self._events.picture(step, name, png)

    def finished(self, step: int) -> None:
        """Notes that the run has reached its last step.

        Raises:
            OSError: the file cannot be written.
        """
        self._events.finished(step)


def _open_wandb(workdir: Path, project: str, config: Mapping[str, Any]) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise UserError(f"config.wandb_project={project!r} needs Weights & Biases: pip install wandb") from error
    path = workdir / "wandb_id"
    if not path.exists():
        files.write(path, uuid.uuid4().hex)
    return wandb.init(project=project, name=workdir.name, id=path.read_text(), resume="allow", config=dict(config))


def read_metrics(workdir: Path, *, say: Callable[[str], object] = lambda line: None) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl. Lines that are none, such as one that was cut short by a kill, are left out.

    Args:
        workdir: folder of the run.
        say: called with one line about what was left out, if anything.
    """
    path = workdir / "metrics.jsonl"
    rows = [_row(line) for line in _lines(path)] if path.is_file() else []
    dropped = [str(number) for number, row in enumerate(rows, start=1) if row is None]
    if dropped:
        shown = ", ".join(dropped[:5]) + (", ..." if len(dropped) > 5 else "")
        say(f"left out {len(dropped):,} of the {len(rows):,} lines of {path}, which are no metrics: {shown}")
    return [row for row in rows if row is not None]


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file; a longer one than LONGEST comes in parts, since it may be as large as a disk."""
    with path.open("rb") as file:
        while line := file.readline(LONGEST):
            yield line


def _row(line: bytes) -> dict[str, Any] | None:
    """A row as `MetricsWriter.write` writes it; None if a line is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not line.endswith(b"\n") or not all(map(_is_number, row.values())):
        return None
    return row if isinstance(row.get("step"), int) else None


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 2**63)
