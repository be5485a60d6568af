"""Metrics: summed on the devices, fetched one step late, written as JSON lines, TensorBoard events and to W&B."""

import contextlib
import json
import math
import os
import re
import socket
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from lma_jax.errors import UserError
from lma_jax.training.step import Metrics

MEANS = {"loss": 1.0, "top1": 100.0, "top5": 100.0}


class NonFiniteError(UserError):
    """A metric that is infinite or no number; its text names the metric and the step."""


class Meter:
    """Means over examples of metrics that arrive as sums.

    Each addition fetches the one before, so that the host runs one step ahead of the device. On CPU it fetches at
    once: there, several multi-device programs in flight starve each other of threads and never end.

    Args:
        sums: what `sums` gave for the steps so far.
        unit: what a step is called in an error.
    """

    def __init__(self, sums: Mapping[str, float] | None = None, *, unit: str = "step") -> None:
        self._unit = unit
        self._sums: Counter[str] = Counter(sums or {})
        self._pending: list[tuple[int, Metrics]] = []
        self._delay = 0 if jax.default_backend() == "cpu" else 1

    def add(self, step: int, metrics: Metrics) -> None:
        """Adds the sums of one step.

        Raises:
            NonFiniteError: a sum of this step or the one before is not finite.
        """
        self._pending.append((step, metrics))
        self._fetch(self._delay)

    def sums(self) -> dict[str, float]:
        """The sums of all that was added."""
        self._fetch(0)
        return dict(self._sums)

    def means(self) -> dict[str, float]:
        """Mean "loss", and "top1" and "top5" in per cent, over all that was added; the other metrics are counts."""
        self._fetch(0)
        return self.means_so_far()

    def means_so_far(self) -> dict[str, float]:
        """The means without what is still to be fetched, so that the host need not wait."""
        if not self._sums:
            self._fetch(0)
        count = self._sums["count"] or math.nan
        means = {name: factor * self._sums[name] / count for name, factor in MEANS.items()}
        counts = {name: value for name, value in self._sums.items() if name not in means and name != "count"}
        return {**means, **counts}

    def _fetch(self, remaining: int) -> None:
        while len(self._pending) > remaining:
            step, metrics = self._pending.pop(0)
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            for name, value in values.items():
                if not math.isfinite(value):
                    raise NonFiniteError(f"the {name} is {value} at {self._unit} {step:,}")
            self._sums.update(values)


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
