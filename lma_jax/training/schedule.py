"""Durations and the learning rate: epochs become steps here and nowhere else."""

import math
import time
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from lma_jax.errors import UserError

# Steps are counted in int32. Evaluations are listed, and each draws the curves anew.
MOST_STEPS = 2**31 - 1
MOST_EVALUATIONS = 100_000
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class EpochClock:
    """Converts between steps and epochs of a run over `examples` in batches of `batch_size`.

    The data are one endless stream, so that an epoch need not be a whole number of steps: epoch e ends at the step
    nearest to e * examples / batch_size.
    """

    examples: int
    batch_size: int

    def step(self, epoch: float) -> int:
        """The number of steps after which `epoch` epochs are over."""
        return round(epoch * self.examples / self.batch_size)

    def epoch(self, step: int) -> float:
        """The number of epochs in `step` steps."""
        return step * self.batch_size / self.examples


def total_steps(config: ConfigDict, clock: EpochClock) -> int:
    """The length of the run.

    Raises:
        UserError: it is below one step, or more than an int32 can count.
    """
    steps = clock.step(config.epochs)
    if steps < 1:
        raise UserError(
            f"config.epochs={config.epochs} of {clock.examples:,} examples in batches of "
            f"{clock.batch_size:,} are less than one step"
        )
    if steps > MOST_STEPS:
        raise UserError(
            f"config.epochs={config.epochs} of {clock.examples:,} examples in batches of {clock.batch_size:,} are "
            f"{steps:,} steps, more than {MOST_STEPS:,}"
        )
    return steps


def eval_steps(config: ConfigDict, clock: EpochClock) -> list[int]:
    """The steps after which the network is evaluated and saved: every `eval_every` epochs, and at the end.

    Raises:
        UserError: the run or the time between evaluations is below one step, or there are too many of either.
    """
    last = total_steps(config, clock)
    if clock.step(config.eval_every) < 1:
        raise UserError(
            f"config.eval_every={config.eval_every} of {clock.examples:,} examples in batches of "
            f"{clock.batch_size:,} are less than one step"
        )
    count = int(config.epochs / config.eval_every)
    if count > MOST_EVALUATIONS:
        raise UserError(
            f"config.eval_every={config.eval_every} makes {count:,} evaluations of config.epochs={config.epochs}, more "
            f"than {MOST_EVALUATIONS:,}"
        )
    steps = {clock.step(config.eval_every * (k + 1)) for k in range(count)} | {last}
    return sorted(step for step in steps if 1 <= step <= last)


class SaveClock:
    """Says when to save between evaluations.

    Args:
        minutes: time from one save to the next; 0 for never. Changes of the date do not matter.
    """

    def __init__(self, minutes: float):
        self._seconds = 60 * minutes
        self.restart()

    def restart(self) -> None:
        """Starts to count, at each save."""
        self._start = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the time is over."""
        return 0 < self._seconds <= time.monotonic() - self._start


def learning_rate_schedule(config: ConfigDict, clock: EpochClock) -> optax.Schedule:
    """The learning rate at a step.

    `step` multiplies it by `decay_factor` after each of `decay_epochs`, `exponential` after every epoch (both in the
    paper's protocol); `cosine` follows half a cosine from the end of the warm-up to 0 at the end of training. The
    warm-up is linear and reaches the full rate in its last step. It does not move the decays.

    Raises:
        UserError: the scaled learning rate is more than float32 can hold.
    """
    scale = config.batch_size / config.base_batch_size if config.base_batch_size else 1.0
    peak = config.learning_rate * scale
    if peak > LARGEST:
        raise UserError(f"config.learning_rate={config.learning_rate} scaled to config.batch_size is {peak}: too large")
    total, warmup = clock.step(config.epochs), clock.step(config.warmup_epochs)
    if config.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, max(1, total - warmup))
    else:
        epochs = config.decay_epochs if config.schedule == "step" else range(1, math.ceil(config.epochs))
        main = _decayed(peak, config.decay_factor, [clock.step(epoch) - warmup for epoch in epochs])
    if not warmup:
        return main
    rising = optax.linear_schedule(peak / warmup, peak, warmup - 1) if warmup > 1 else optax.constant_schedule(peak)
    return optax.join_schedules([rising, main], [warmup])


def _decayed(peak: float, factor: float, steps: list[int]) -> optax.Schedule:
    """`peak`, times `factor` after each of the `steps`.

    optax.piecewise_constant_schedule would unroll hundreds of factors, which take seconds to compile.
    """
    with np.errstate(over="ignore"):  # a factor above 1
        rates = np.minimum(peak * float(factor) ** np.arange(len(steps) + 1), LARGEST)
    ends = np.minimum(steps, MOST_STEPS).astype(np.int32)
    return lambda step: jnp.asarray(rates)[jnp.searchsorted(jnp.asarray(ends), step, side="right")]
