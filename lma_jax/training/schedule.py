"""Durations and the learning rate: epochs become steps here and nowhere else."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from lma_jax.errors import UserError


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
        UserError: it is below one step.
    """
    steps = clock.step(config.epochs)
    if steps < 1:
        raise UserError(
            f"config.epochs={config.epochs} of {clock.examples:,} examples in batches of "
            f"{clock.batch_size:,} are less than one step"
        )
    return steps


def eval_steps(config: ConfigDict, clock: EpochClock) -> list[int]:
    """The steps after which the network is evaluated and saved: every `eval_every` epochs, and at the end."""
    last = total_steps(config, clock)
    count = int(config.epochs / config.eval_every)
    steps = {clock.step(config.eval_every * (k + 1)) for k in range(count)} | {last}
    return sorted(step for step in steps if 1 <= step <= last)


def learning_rate_schedule(config: ConfigDict, clock: EpochClock) -> optax.Schedule:
    """The learning rate at a step.

    `step` multiplies it by `decay_factor` after each of `decay_epochs`, `exponential` after every epoch (both in the
    paper's protocol); `cosine` follows half a cosine from the end of the warm-up to 0 at the end of training. The
    warm-up is linear and reaches the full rate in its last step. It does not move the decays.
    """
    scale = config.batch_size / config.base_batch_size if config.base_batch_size else 1.0
    peak = config.learning_rate * scale
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
    rates, ends = peak * factor ** np.arange(len(steps) + 1), np.asarray(steps, np.int32)
    return lambda step: jnp.asarray(rates)[jnp.searchsorted(jnp.asarray(ends), step, side="right")]
