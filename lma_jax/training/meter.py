"""Metrics summed on the devices and fetched one step late."""

import math
from collections import Counter
from collections.abc import Mapping

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
