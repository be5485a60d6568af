"""A run that changes the framework on its way is the same run."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import torch

import convert
from lma_jax.definition import split
from tests.helpers import tiny
from tests.helpers.tiny import Trial, batch
from tests.helpers.torch_tiny import TorchTiny
from tests.helpers.torch_trial import TorchTrial, assert_same_weights, train

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    tiny.register(monkeypatch)


def trace_of(state):
    return state.opt_state[1][0].trace


def with_trace(state, trace):
    decay, (momentum, schedule) = state.opt_state
    return replace(state, opt_state=(decay, (momentum._replace(trace=trace), schedule)))


def model_of(run: Trial):
    return run.model()


def trial() -> Trial:
    """A constant learning rate: each framework's schedule counts its own steps."""
    return Trial(dtype="float64", decay_factor=1.0)


def test_five_steps_in_jax_and_five_in_pytorch_are_ten_in_either():
    run = trial()
    train(run, 10)
    other = trial()
    whole = TorchTrial(other, TorchTiny())
    whole.train(10)
    assert_same_weights(run, whole.model)

    first = trial()
    train(first, 5)
    second = TorchTrial(first, TorchTiny())
    convert.set_momentum(
        second.optimizer, second.model, convert.momentum_to_torch(trace_of(first.state), model_of(first))
    )
    second.train(5, start=5)
    assert_same_weights(run, second.model)


def test_and_back_again():
    run = trial()
    train(run, 10)
    start = trial()
    first = TorchTrial(start, TorchTiny())
    first.train(5)
    second = trial()
    model = convert.to_jax(first.model.state_dict(), model_of(second))
    trace = convert.momentum_to_jax(convert.get_momentum(first.optimizer, first.model), model)
    _, params, batch_stats = split(model)
    second.state = jax.device_put(
        with_trace(replace(second.state, params=params, batch_stats=batch_stats), trace), second.state.step.sharding
    )
    second.train(*map(batch, range(5, 10)))
    for name in ("params", "batch_stats"):
        tiny.assert_close(getattr(second.state, name), getattr(run.state, name), 1e-9)


def test_momentum_comes_back_bit_for_bit():
    run = trial()
    train(run, 2)
    trace, model = trace_of(run.state), model_of(run)
    returned = convert.momentum_to_jax(convert.momentum_to_torch(trace, model), model)
    jax.tree.map(np.testing.assert_array_equal, returned, trace)
    buffers = convert.momentum_to_torch(trace, model)
    del buffers["fc.bias"]
    with pytest.raises(ValueError, match=r"missing fc\.bias"):
        convert.momentum_to_jax(buffers, model)


def test_an_optimizer_without_steps_has_no_momentum():
    model = TorchTiny()
    momentum = convert.get_momentum(torch.optim.SGD(model.parameters(), 0.1, 0.9), model)
    assert momentum.keys() == dict(model.named_parameters()).keys()
    assert all(not buffer.any() for buffer in momentum.values())
