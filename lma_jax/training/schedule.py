"""Durations and the learning rate: epochs become steps here and nowhere else."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from lma_jax.errors import UserError


@dataclass(frozen=True)
class EpochClock:
    """Steps and epochs of a run over `examples` in batches of `batch_size`.

    The data are one endless stream, so that an epoch needs no whole number of steps: epoch e ends at the step
    nearest to e * examples / batch_size.
    """

    examples: int
    batch_size: int

    def step(self, epoch: float) -> int:
        """The number of steps after which `epoch` epochs are over."""
        return round(epoch * self.examples / self.batch_size)

    def epoch(self, step: int) -> float:
        """The epochs that `step` steps make."""
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
    warm-up is linear, and reaches the full rate in its last step.
    """
    scale = config.batch_size / config.base_batch_size if config.base_batch_size else 1.0
    peak = config.learning_rate * scale
    total, warmup = clock.step(config.epochs), clock.step(config.warmup_epochs)
    if config.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, max(1, total - warmup))
        return optax.join_schedules([_linear_warmup(peak, warmup), main], [warmup])
    epochs = config.decay_epochs if config.schedule == "step" else range(1, int(np.ceil(config.epochs)))
    steps = np.asarray([clock.step(epoch) for epoch in epochs], np.int32)
    rates = peak * config.decay_factor ** np.arange(len(steps) + 1)

    def decayed(step: jax.Array) -> jax.Array:
        return jnp.asarray(rates)[jnp.searchsorted(jnp.asarray(steps), step + warmup, side="right")]

    return optax.join_schedules([_linear_warmup(peak, warmup), decayed], [warmup])


def _linear_warmup(peak: float, steps: int) -> optax.Schedule:
    return lambda step: jnp.asarray(peak * (step + 1) / max(1, steps))
