"""Metrics: summed on the devices, fetched one step late, written as JSON lines, TensorBoard events and to W&B."""

import contextlib
import json
import os
import re
import socket
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lma_jax.errors import UserError


class MetricsWriter:
    """Appends rows to <workdir>/metrics.jsonl, to TensorBoard events and, if asked for, to Weights & Biases.

    Rows past `step`, where training goes on, are dropped first.

    Raises:
        UserError: `wandb_project` is given, but wandb is not installed.
    """

    def __init__(self, workdir: Path, *, step: int, config: Mapping[str, Any], wandb_project: str = ""):
        self._path = workdir / "metrics.jsonl"
        rows = [row for row in read_metrics(workdir) if row["step"] <= step]
        replace_text(self._path, "".join(json.dumps(row) + "\n" for row in rows))
        self._events = _Events(workdir / "tensorboard", purge_step=step + 1)
        self._wandb = _open_wandb(workdir, wandb_project, config) if wandb_project else None

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self._events.close()
        if self._wandb is not None:
            self._wandb.finish()

    def write(self, row: dict[str, Any]) -> None:
        """Writes one row, which has "step" and numbers by name."""
        numbers = {re.sub("^(train|val)_", r"\1/", name): value for name, value in row.items() if name != "step"}
        if self._wandb is not None:
            self._wandb.log(numbers, step=row["step"])
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self._events.write(row["step"], numbers)


class _Events:
    """A TensorBoard event file, written at once: the queues of summary writers hang on a full disk.

    TensorBoard's own protocol, without the writers that import PyTorch or TensorFlow where they are installed.
    """

    def __init__(self, folder: Path, *, purge_step: int):
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._writer = RecordWriter((folder / name).open("wb"))
        self._add(file_version="brain.Event:2")
        self._add(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        self._add(step=step, summary=Summary(value=values))

    def close(self) -> None:
        with contextlib.suppress(OSError):  # `write` has told
            self._writer.close()

    def _add(self, **event: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.write(Event(wall_time=time.time(), **event).SerializeToString())
        self._writer.flush()


def _open_wandb(workdir: Path, project: str, config: Mapping[str, Any]) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise UserError(f"config.wandb_project={project!r} needs Weights & Biases: pip install wandb") from error
    path = workdir / "wandb_id"
    if not path.exists():
        path.write_text(uuid.uuid4().hex)
    return wandb.init(project=project, name=workdir.name, id=path.read_text(), resume="allow", config=dict(config))


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; a line cut short by a kill is left out."""
    path = workdir / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def replace_text(path: Path, text: str) -> None:
    """Writes a file in one move: a kill leaves the old or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
