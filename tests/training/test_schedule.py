"""Durations and learning rates."""

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

from configs import common
from lma_jax.errors import UserError
from lma_jax.training.reporting.reporter import Ahead
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


def test_rates_far_beyond_the_run_are_finite():
    clock = EpochClock(examples=1_281_167, batch_size=1)
    for values in (dict(decay_epochs=(1.0, 1e6)), dict(schedule="exponential", decay_factor=1e30)):
        schedule = learning_rate_schedule(config(learning_rate=1e38, **values), clock)
        assert np.isfinite([schedule(0), schedule(2**31 - 1)]).all()


def test_the_reporter_computes_rates_as_the_schedule_does(monkeypatch):
    monkeypatch.setattr(Ahead, "SPAN", 7)
    schedule = learning_rate_schedule(config(schedule="cosine", warmup_epochs=1.0), EpochClock(40, 8))
    rates = Ahead(schedule, 20)
    steps = [20, 21, 30, 44, 3]
    assert [rates.at(step) for step in steps] == pytest.approx([float(schedule(step)) for step in steps])


def test_a_run_of_no_step_is_refused():
    with pytest.raises(UserError, match="less than one step"):
        eval_steps(config(epochs=0.01), EpochClock(examples=100, batch_size=10))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (dict(eval_every=1e-12), "config.eval_every=1e-12 of 1,281,167 examples .* less than one step"),
        (dict(epochs=2e5), "makes 200,000 evaluations of config.epochs=200000.0, more than 100,000"),
        (dict(epochs=1e6, eval_every=1e6), "are 5,004,558,594 steps, more than 2,147,483,647"),
    ],
)
def test_a_run_of_too_many_steps_or_evaluations_is_refused(values, expected):
    with pytest.raises(UserError, match=expected):
        eval_steps(config(**values), EpochClock(examples=1_281_167, batch_size=256))
