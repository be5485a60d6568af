"""Metrics: summed on the devices, fetched one step late, written as JSON lines and TensorBoard events."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import jax

from lma_jax.training.step import Metrics


class Meter:
    """Means over examples of metrics that arrive as sums.

    Each addition fetches the one before, so that the host runs one step ahead of the device. On CPU it fetches at
    once: there, several multi-device programs in flight starve each other of threads and never end.
    """

    def __init__(self) -> None:
        self._sums: Counter[str] = Counter()
        self._pending: list[Metrics] = []
        self._delay = 0 if jax.default_backend() == "cpu" else 1

    def add(self, metrics: Metrics) -> None:
        """Adds the sums of one step."""
        self._pending.append(metrics)
        self._fetch(self._delay)

    def means(self) -> dict[str, float]:
        """Mean "loss", and "top1" and "top5" in per cent, over all that was added."""
        self._fetch(0)
        return self.means_so_far()

    def means_so_far(self) -> dict[str, float]:
        """The means without what is still to be fetched, so that the host need not wait."""
        if not self._sums:
            self._fetch(0)
        count = self._sums["count"]
        percent = {"loss": 1.0, "top1": 100.0, "top5": 100.0}
        return {name: factor * self._sums[name] / count for name, factor in percent.items()}

    def _fetch(self, remaining: int) -> None:
        while len(self._pending) > remaining:
            self._sums.update({name: float(value) for name, value in jax.device_get(self._pending.pop(0)).items()})


class MetricsWriter:
    """Appends rows to <workdir>/metrics.jsonl and to TensorBoard events, after dropping what lies past `step`."""

    def __init__(self, workdir: Path, *, step: int):
        from tensorboardX import SummaryWriter

        self._path = workdir / "metrics.jsonl"
        rows = [row for row in read_metrics(workdir) if row["step"] <= step]
        replace_text(self._path, "".join(json.dumps(row) + "\n" for row in rows))
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self._events.close()

    def write(self, row: dict[str, Any]) -> None:
        """Writes one row, which has "step" and numbers by name."""
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in row.items():
            if name != "step":
                self._events.add_scalar(name.replace("_", "/", 1), value, row["step"])


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
