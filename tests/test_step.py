"""The training and the evaluation step over one device and over several."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from ml_collections import ConfigDict

from lma_jax.data.transforms import Preprocessing
from lma_jax.registry import HOSTS
from lma_jax.resnet import BasicBlock, ResNet
from lma_jax.training.state import build_optimizer, create_state
from lma_jax.training.step import REPLICATED, SHARDED, make_eval_step, make_train_step, metric_sums

PREPROCESSING = Preprocessing(image_size=16, resize_size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


@pytest.fixture(autouse=True)
def resnet10(monkeypatch):
    """A host with one block a stage, half as long to compile as ResNet-18."""
    monkeypatch.setitem(HOSTS, "resnet10", partial(ResNet, BasicBlock, (1, 1, 1, 1)))


class Trial:
    """A small training run on some of the devices."""

    def __init__(self, *, devices: int, batch_norm: str = "sync", model: str = "resnet10_lma", dtype: str = "float32"):
        config = ConfigDict(
            dict(model=model, dtype=dtype, batch_norm=batch_norm, seed=0, weight_decay=1e-4, momentum=0.9)
        )
        optimizer = build_optimizer(config, lambda step: 0.01)
        self.mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
        network, self.state = create_state(config, 10, optimizer, NamedSharding(self.mesh, REPLICATED))
        self.train_step = make_train_step(network, optimizer, self.mesh, preprocessing=PREPROCESSING, seed=0)
        self.eval_step = make_eval_step(network, self.mesh, preprocessing=PREPROCESSING)

    def place(self, batch):
        return jax.device_put(batch, NamedSharding(self.mesh, SHARDED))

    def train(self, *batches):
        for batch in batches:
            self.state, metrics = jax.block_until_ready(self.train_step(self.state, self.place(batch)))
        return {name: float(value) for name, value in metrics.items()}


def batch(seed: int, size: int = 16) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (size, 16, 16, 3), np.uint8)
    return {"image": image, "label": rng.integers(0, 10, size).astype(np.int32)}


def assert_close(actual, expected, tolerance: float):
    for path, value in jax.tree_util.tree_leaves_with_path(expected):
        other = dict(jax.tree_util.tree_leaves_with_path(actual))[path]
        scale = float(jnp.abs(value).max()) or 1.0
        np.testing.assert_allclose(
            np.asarray(other) / scale, np.asarray(value) / scale, atol=tolerance, err_msg=str(path)
        )


def test_four_devices_with_global_statistics_train_as_one():
    one, four = Trial(devices=1), Trial(devices=4)
    batches = [batch(seed) for seed in range(3)]
    metrics = [trial.train(*batches) for trial in (one, four)]
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-3)
    assert_close(four.state.params, one.state.params, 1e-4)
    assert_close(four.state.batch_stats, one.state.batch_stats, 1e-4)


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
    trial = Trial(devices=1, model="mobilenetv2_lma")
    start = jax.tree.map(np.asarray, trial.state)

    def loss(step: int) -> float:
        trial.state = jax.tree.map(jnp.array, replace(start, step=np.int32(step)))
        return trial.train(batch(0))["loss"]

    assert loss(0) == loss(0)
    assert loss(0) != loss(1)


def test_evaluation_ignores_what_the_mask_leaves_out():
    trial = Trial(devices=4)
    full = {**batch(0), "mask": np.ones(16, bool)}
    masked = {name: value.copy() for name, value in full.items()}
    masked["mask"][5:] = False
    sums = trial.eval_step(trial.state.params, trial.state.batch_stats, trial.place(masked))
    first = {name: value[:5] for name, value in full.items()}
    alone = Trial(devices=1)
    expected = alone.eval_step(alone.state.params, alone.state.batch_stats, alone.place(first))
    assert float(sums["count"]) == 5
    assert {k: float(v) for k, v in sums.items()} == pytest.approx({k: float(v) for k, v in expected.items()}, rel=1e-5)


def test_metric_sums_count_hits_among_the_largest_logits():
    logits = jnp.asarray([[9.0, 1, 2, 3, 4, 5, 6], [0.0, 1, 2, 3, 4, 5, 6], [5.0, 4, 3, 2, 1, 0, 9]])
    labels, mask = jnp.asarray([0, 1, 0]), jnp.asarray([True, True, False])
    sums = metric_sums(logits, labels, mask)
    expected = -np.asarray(jax.nn.log_softmax(logits))[[0, 1], [0, 1]].sum()
    assert float(sums["loss"]) == pytest.approx(expected)
    assert [float(sums[name]) for name in ("top1", "top5", "count")] == [1, 1, 2]
    assert float(metric_sums(logits[:, :3], labels, jnp.ones(3, bool))["top5"]) == 3
