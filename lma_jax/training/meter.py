"""Metrics that are summed on the devices and fetched one step late."""

import math
from collections import Counter
from collections.abc import Mapping

import jax

from lma_jax.errors import UserError
from lma_jax.sharding import steps_ahead
from lma_jax.training.step import Metrics

# Sums over examples, and the factor of their means: accuracies are in per cent. Other metrics are counts.
MEANS = {"loss": 1.0, "cross_entropy": 1.0, "top1": 100.0, "top5": 100.0}


class NonFiniteError(UserError):
    """A metric is infinite or NaN; the text names the metric and the step."""


class Meter:
    """Means over examples of metrics that arrive as sums.

    Each addition fetches the previous one, so that the host can run one step ahead of the devices.

    Args:
        sums: sums of earlier steps, from `sums()`.
        unit: the word for a step in error messages.
    """

    def __init__(self, sums: Mapping[str, float] | None = None, *, unit: str = "step") -> None:
        self._unit = unit
        self._sums: Counter[str] = Counter(sums or {})
        self._pending: list[tuple[int, Metrics]] = []

    def add(self, step: int, metrics: Metrics) -> None:
        """Adds the sums of one step.

        Raises:
            NonFiniteError: a sum of this step or of the previous one is not finite.
        """
        self._pending.append((step, metrics))
        self._fetch(steps_ahead())

    def sums(self) -> dict[str, float]:
        """The sums of all steps."""
        self._fetch(0)
        return dict(self._sums)

    def means(self) -> dict[str, float]:
        """Means of the losses, and "top1" and "top5" in per cent, over all steps; the other metrics are counts."""
        self._fetch(0)
        return self.means_so_far()

    def means_so_far(self) -> dict[str, float]:
        """The means without the step that is not fetched yet, so that the host need not wait."""
        if not self._sums:
            self._fetch(0)
        sums, count = self._sums, self._sums["count"] or math.nan
        means = {name: factor * sums[name] / count for name, factor in MEANS.items() if name in sums}
        counts = {name: value for name, value in sums.items() if name not in means and name != "count"}
        return {**means, **counts}

    def _fetch(self, remaining: int) -> None:
        while len(self._pending) > remaining:
            step, metrics = self._pending.pop(0)
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            for name, value in values.items():
                if not math.isfinite(value):
                    raise NonFiniteError(f"the {name} is {value} at {self._unit} {step:,}")
            self._sums.update(values)
