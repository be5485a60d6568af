"""Durations and learning rates."""

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

from configs import common
from lma_jax.errors import UserError
from lma_jax.training.schedule import EpochClock, eval_steps, learning_rate_schedule


def config(**values) -> ConfigDict:
    config = common.get_config()
    config.update({"epochs": 9.0, "decay_epochs": (3.0, 6.0, 8.0), **values})
    return config


def pytorch_rates(scheduler_class, *arguments, epochs: int, steps_per_epoch: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = scheduler_class(optimizer, *arguments)
    rates = []
    for _ in range(epochs):
        rates += [optimizer.param_groups[0]["lr"]] * steps_per_epoch
        optimizer.step()
        scheduler.step()
    return rates


def test_the_step_schedule_is_pytorchs_multi_step():
    schedule = learning_rate_schedule(config(), EpochClock(examples=40, batch_size=8))
    rates = pytorch_rates(torch.optim.lr_scheduler.MultiStepLR, [3, 6, 8], epochs=9, steps_per_epoch=5)
    np.testing.assert_allclose([schedule(step) for step in range(45)], rates, rtol=1e-6)


def test_the_exponential_schedule_is_pytorchs():
    schedule = learning_rate_schedule(config(schedule="exponential", decay_factor=0.98), EpochClock(40, 8))
    rates = pytorch_rates(torch.optim.lr_scheduler.ExponentialLR, 0.98, epochs=9, steps_per_epoch=5)
    np.testing.assert_allclose([schedule(step) for step in range(45)], rates, rtol=1e-6)


def test_epochs_need_no_whole_number_of_steps():
    clock = EpochClock(examples=1437, batch_size=64)
    assert [clock.step(epoch) for epoch in (0, 1, 2, 6)] == [0, 22, 45, 135]
    assert clock.epoch(clock.step(100)) == pytest.approx(100, abs=0.5 * 64 / 1437)


def test_evaluation_comes_after_every_period_and_at_the_end():
    clock = EpochClock(examples=100, batch_size=10)
    assert eval_steps(config(epochs=3.0), clock) == [10, 20, 30]
    assert eval_steps(config(epochs=2.5), clock) == [10, 20, 25]
    assert eval_steps(config(epochs=1.0, eval_every=0.25), clock) == [2, 5, 8, 10]
    assert eval_steps(config(epochs=1.0, eval_every=5.0), clock) == [10]


def test_a_run_of_no_step_is_refused():
    with pytest.raises(UserError, match="less than one step"):
        eval_steps(config(epochs=0.01), EpochClock(examples=100, batch_size=10))
