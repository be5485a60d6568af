"""The training and the evaluation step over one device and over several."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lma_jax.training.step import is_product, metric_sums
from tests.helpers import tiny
from tests.helpers.pairs import register_resnet10
from tests.helpers.tiny import Trial, assert_close, batch

pytestmark = pytest.mark.deep


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    tiny.register(monkeypatch)
    register_resnet10(monkeypatch)


def test_local_statistics_are_those_of_each_devices_own_share():
    """One step from the same start: weights and running statistics are the means over single-device steps."""
    four = Trial(devices=4, batch_norm="local")
    whole = batch(0)
    four.train(whole)
    states = []
    for share in range(4):
        one = Trial(devices=1, batch_norm="local")
        one.train({name: value[4 * share : 4 * share + 4] for name, value in whole.items()})
        states.append(one.state)
    mean = jax.tree.map(lambda *leaves: sum(np.asarray(leaf, np.float64) for leaf in leaves) / 4, *states)
    assert_close(four.state.params, mean.params, 1e-5)
    assert_close(four.state.batch_stats, mean.batch_stats, 1e-5)


@pytest.mark.usefixtures("x64")
def test_rematerialisation_changes_what_is_kept_not_what_is_computed():
    plain, remat = (Trial(devices=2, dtype="float64", remat=remat) for remat in (False, True))
    for trial in (plain, remat):
        trial.train(batch(0), batch(1))
    assert_close(remat.state.params, plain.state.params, 1e-12)
    assert_close(remat.state.batch_stats, plain.state.batch_stats, 1e-12)
    texts = [str(jax.make_jaxpr(trial.train_step)(trial.state, trial.put(batch(2)))) for trial in (plain, remat)]
    assert [is_product.__name__ in text for text in texts] == [
        False,
        True,
    ]  # convolutions have checkpoints of their own


def test_every_replica_holds_the_same_state():
    trial = Trial(devices=4, batch_norm="local")
    trial.train(batch(0), batch(1))
    for leaf in jax.tree.leaves(trial.state):
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(copies) == 4
        assert all(np.array_equal(copy, copies[0]) for copy in copies)


def test_bfloat16_keeps_weights_statistics_and_momentum_in_float32():
    trial = Trial(devices=1, dtype="bfloat16")
    metrics = trial.train(batch(0), batch(1))
    assert np.isfinite(metrics["loss"])
    leaves = jax.tree.leaves((trial.state.params, trial.state.batch_stats))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


def test_dropout_follows_from_the_seed_and_the_step():
    trial = Trial(devices=1, model="tinydropout_lma")
    start = jax.tree.map(np.asarray, trial.state)

    def loss(step: int) -> float:
        trial.state = jax.tree.map(jnp.array, replace(start, step=np.int32(step)))
        return trial.train(batch(0))["loss"]

    assert loss(0) == loss(0)
    assert loss(0) != loss(1)


def test_evaluation_ignores_what_the_mask_leaves_out():
    trial = Trial(devices=4)
    full = batch(0)
    masked = {name: value.copy() for name, value in full.items()}
    masked["mask"][5:] = False
    sums = trial.eval_step(trial.state.params, trial.state.batch_stats, trial.put(masked))
    first = {name: value[:5] for name, value in full.items()}
    alone = Trial(devices=1)
    expected = alone.eval_step(alone.state.params, alone.state.batch_stats, alone.put(first))
    assert float(sums["count"]) == 5
    assert {k: float(v) for k, v in sums.items()} == pytest.approx({k: float(v) for k, v in expected.items()}, rel=1e-5)


def test_metric_sums_count_hits_among_the_largest_logits():
    logits = jnp.asarray([[9.0, 1, 2, 3, 4, 5, 6], [0.0, 1, 2, 3, 4, 5, 6], [5.0, 4, 3, 2, 1, 0, 9]])
    batch = {
        "label": jnp.asarray([0, 1, 0]),
        "mask": jnp.asarray([True, True, False]),
        "skipped": jnp.asarray([0, 2, 1]),
    }
    sums = metric_sums(logits, batch, loss=jnp.asarray([0.5, 0.25, 9.0]))
    assert {name: float(value) for name, value in sums.items()} == dict(
        loss=0.75, top1=1, top5=1, count=2, skipped_images=3
    )
    everything = {**batch, "mask": jnp.ones(3, bool)}
    assert float(metric_sums(logits[:, :3], everything, loss=jnp.zeros(3))["top5"]) == 3


def test_four_devices_with_global_statistics_train_as_one_in_float64(x64):
    one, four = (Trial(devices=devices, model="resnet10_lma", dtype="float64") for devices in (1, 4))
    metrics = [trial.train(*map(batch, range(3))) for trial in (one, four)]
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-9)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(four.state.params)} == {"float64"}
    assert_close(four.state.params, one.state.params, 1e-9)
    assert_close(four.state.batch_stats, one.state.batch_stats, 1e-9)
