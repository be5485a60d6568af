"""Every option of the recipes against PyTorch or optax, in float64."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import lma_torch
from lma_jax.preprocessing import normalize
from lma_jax.train import gpu_flags
from lma_jax.training.objective import Objective, cutmix, mixup
from lma_jax.training.schedule import EpochClock, learning_rate_schedule
from lma_jax.training.state import optimizer_from
from tests.helpers import tiny
from tests.helpers.pairs import register_resnet10
from tests.helpers.tiny import CLASSES, PREPROCESSING, Trial, assert_close, batch
from tests.helpers.torch_tiny import TorchTiny
from tests.helpers.torch_trial import STEPS, TorchTrial, assert_same_weights, train

pytestmark = [pytest.mark.deep, pytest.mark.usefixtures("x64")]


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    tiny.register(monkeypatch)
    register_resnet10(monkeypatch)


def trial(**values) -> Trial:
    return Trial(dtype="float64", **values)


@pytest.mark.parametrize("model", ["tiny_lma", "resnet10_lma"])
def test_the_papers_recipe_trains_as_pytorch_does(model):
    """SGD with momentum, weight decay on everything and a step schedule: weights and statistics after 5 steps."""
    run = trial(model=model)
    twin = TorchTiny() if model == "tiny_lma" else lma_torch.create_model(model, num_classes=CLASSES)
    reference = TorchTrial(run, twin)
    train(run)
    reference.train()
    assert_same_weights(run, reference.model)


def test_label_smoothing_is_pytorchs():
    run = trial(label_smoothing=0.1)
    reference = TorchTrial(run, TorchTiny(), loss=torch.nn.CrossEntropyLoss(label_smoothing=0.1))
    train(run)
    reference.train()
    assert_same_weights(run, reference.model)


def test_binary_cross_entropy_is_pytorchs():
    def loss(logits, labels):
        targets = 0.9 * torch.nn.functional.one_hot(labels, CLASSES).double() + 0.1 / CLASSES
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, targets)

    run = trial(loss="sigmoid", label_smoothing=0.1)
    reference = TorchTrial(run, TorchTiny(), loss=loss)
    train(run)
    reference.train()
    assert_same_weights(run, reference.model)


MIXES = [dict(mixup=0.4), dict(cutmix=1.0), dict(mixup=0.4, cutmix=1.0)]


@pytest.mark.parametrize("options", MIXES)
def test_mixed_targets_train_as_pytorchs_probabilities(options):
    """The mixed images and targets, seen through the objective, in PyTorch's loop."""
    run = trial(label_smoothing=0.1, **options)
    reference = TorchTrial(run, TorchTiny())
    for step in range(STEPS):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), step), 0)
        data = batch(step)
        images = normalize(jnp.asarray(data["image"]), PREPROCESSING)
        images, targets = run.objective.mix(jax.random.split(key)[0], images, jnp.asarray(data["label"]))
        assert np.allclose(np.asarray(targets).sum(1), 1)
        reference.optimizer.zero_grad()
        logits = reference.model(torch.from_numpy(np.array(images)).permute(0, 3, 1, 2))
        reference.loss(logits, torch.from_numpy(np.array(targets))).backward()
        reference.optimizer.step()
        if step % 2:
            reference.scheduler.step()
    train(run)
    assert_same_weights(run, reference.model)


def test_mixup_blends_each_example_with_the_one_before():
    images, targets = np.random.default_rng(0).normal(size=(4, 3, 5, 2)), np.eye(4)
    mixed, mixed_targets = mixup(jnp.asarray(images), jnp.asarray(targets), jnp.asarray(0.3))
    for index in range(4):
        np.testing.assert_allclose(mixed[index], 0.3 * images[index] + 0.7 * images[index - 1], rtol=1e-12)
        np.testing.assert_allclose(mixed_targets[index], 0.3 * targets[index] + 0.7 * targets[index - 1], rtol=1e-12)


@pytest.mark.parametrize(
    ("weight", "centre"), [(0.5, (6, 4)), (0.1, (0, 0)), (0.75, (11, 9)), (1.0, (3, 3)), (0.0, (5, 5))]
)
def test_cutmix_pastes_the_box_of_its_definition(weight, centre):
    height, width = 12, 10
    images, targets = np.random.default_rng(0).normal(size=(3, height, width, 2)), np.eye(3)
    mixed, mixed_targets = cutmix(jnp.asarray(images), jnp.asarray(targets), jnp.asarray(weight), centre)
    half = [int(0.5 * np.sqrt(1 - weight) * size) for size in (height, width)]
    rows, columns = (slice(max(0, c - h), max(0, c + h)) for c, h in zip(centre, half))
    expected = images.copy()
    expected[:, rows, columns] = np.roll(images, 1, axis=0)[:, rows, columns]
    np.testing.assert_array_equal(mixed, expected)
    own = 1 - np.zeros((height, width))[rows, columns].size / (height * width)
    np.testing.assert_allclose(mixed_targets, own * targets + (1 - own) * np.roll(targets, 1, axis=0), rtol=1e-12)


def test_the_mixing_weight_follows_its_beta_distribution():
    objective = Objective(2, mixup=0.5)
    labels, images = jnp.asarray([0, 1]), jnp.zeros((2, 1, 1, 3))
    keys = jax.random.split(jax.random.key(0), 4000)
    weights = jax.vmap(lambda key: objective.mix(key, images, labels)[1][0, 0])(keys)
    assert float(weights.mean()) == pytest.approx(0.5, abs=0.025)
    assert float(weights.var()) == pytest.approx(0.125, abs=0.01)  # 1 / (4 (2 alpha + 1))


def test_with_mixup_and_cutmix_each_takes_half_of_the_batches():
    objective = Objective(2, mixup=1.0, cutmix=1.0)
    images = jnp.stack([jnp.zeros((8, 8, 3)), jnp.ones((8, 8, 3))])
    keys = jax.random.split(jax.random.key(1), 400)
    mixed = jax.vmap(lambda key: objective.mix(key, images, jnp.asarray([0, 1]))[0])(keys)
    blended = ((mixed > 0) & (mixed < 1)).any((1, 2, 3, 4))
    assert 0.4 < float(blended.mean()) < 0.6


def test_a_threshold_makes_every_class_that_is_mixed_in_count():
    objective = Objective(4, loss="sigmoid", label_smoothing=0.1, target_threshold=0.2, mixup=1.0)
    images, labels = jnp.zeros((4, 2, 2, 3)), jnp.arange(4)
    for seed in range(20):
        _, targets = objective.mix(jax.random.key(seed), images, labels)
        assert set(np.unique(targets)) <= {0.0, 1.0}
        assert set(np.asarray(targets).sum(1)) <= {1.0, 2.0}


def test_the_moving_average_is_pytorchs():
    run = trial(ema_decay=0.9)
    reference = TorchTrial(run, TorchTiny())
    train(run)
    reference.train()
    assert_same_weights(run, reference.model)
    assert_same_weights(run, reference.average.module, trees=run.state.evaluated)


def test_accumulation_is_pytorchs_loop_of_backward_calls():
    run = trial(accumulate=4)
    reference = TorchTrial(run, TorchTiny(), parts=4)
    train(run)
    reference.train()
    assert_same_weights(run, reference.model)
    assert run.train(batch(9))["count"] == 16


def test_clipping_is_pytorchs():
    run = trial(clip_norm=0.05)
    reference = TorchTrial(run, TorchTiny(), after_backward=lambda model: exactly_clipped(model, 0.05))
    train(run)
    reference.train()
    assert_same_weights(run, reference.model)


def exactly_clipped(model: torch.nn.Module, norm: float) -> None:
    """torch.nn.utils.clip_grad_norm_ without the 1e-6 that it adds to the norm."""
    total = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    assert total > norm
    torch.nn.utils.clip_grads_with_norm_(model.parameters(), norm * float((total + 1e-6) / total), total)


def test_weight_decay_can_leave_norm_and_bias_out():
    run = trial(decay_norm_and_bias=False, weight_decay=0.1)
    reference = TorchTrial(run, TorchTiny())
    groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for parameter in reference.model.parameters():
        groups[parameter.ndim > 1].append(parameter)
    reference.optimizer = torch.optim.SGD(
        [dict(params=groups[True], weight_decay=0.1), dict(params=groups[False], weight_decay=0.0)], 0.1, 0.9
    )
    reference.scheduler = torch.optim.lr_scheduler.StepLR(reference.optimizer, step_size=1, gamma=0.1)
    train(run)
    reference.train()
    assert_same_weights(run, reference.model)


@pytest.mark.parametrize("everywhere", [True, False])
def test_lamb_is_optaxs_and_leaves_undecayed_layers_to_adam(everywhere):
    config = tiny.recipe(optimizer="lamb", weight_decay=0.02, decay_norm_and_bias=everywhere)
    ours = optimizer_from(config, lambda step: 0.01)
    lamb = optax.lamb(0.01, eps=1e-6, weight_decay=0.02)
    adam = optax.adam(0.01, eps=1e-6)
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.asarray(rng.normal(size=(3, 4))), "bias": jnp.asarray(rng.normal(size=4))}
    gradients = [jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), params) for _ in range(STEPS)]

    def trained(rule):
        weights, state = params, rule.init(params)
        for gradient in gradients:
            updates, state = rule.update(gradient, state, weights)
            weights = optax.apply_updates(weights, updates)
        return weights

    actual = trained(ours)
    assert_close(actual["kernel"], trained(lamb)["kernel"], 1e-12)
    assert_close(actual["bias"], trained(lamb if everywhere else adam)["bias"], 1e-12)


def test_the_cosine_schedule_with_warm_up_is_pytorchs():
    config = tiny.recipe(schedule="cosine", warmup_epochs=2.0, epochs=9.0)
    schedule = learning_rate_schedule(config, EpochClock(40, 8))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    phases = [
        torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=9),
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=35),
    ]
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, phases, milestones=[10])
    rates = []
    for _ in range(45):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose([schedule(step) for step in range(45)], rates, rtol=1e-9, atol=1e-15)


def test_a_warm_up_leaves_the_decays_where_they_are():
    plain, warm = (
        learning_rate_schedule(tiny.recipe(warmup_epochs=epochs, epochs=4.0), EpochClock(80, 8))
        for epochs in (0.0, 0.5)
    )
    np.testing.assert_allclose([warm(step) for step in range(5)], [0.02, 0.04, 0.06, 0.08, 0.1], rtol=1e-12)
    np.testing.assert_array_equal([warm(step) for step in range(5, 40)], [plain(step) for step in range(5, 40)])


def test_the_learning_rate_scales_with_the_batch():
    schedule = learning_rate_schedule(tiny.recipe(base_batch_size=256, batch_size=1024), EpochClock(8000, 1024))
    assert float(schedule(0)) == pytest.approx(0.4)


def test_a_nonfinite_update_is_left_out_and_counted():
    run = trial(on_nonfinite="skip", ema_decay=0.9)
    run.train(batch(0))
    good = jax.tree.map(np.array, run.state)
    bad = jax.tree.map(np.array, run.state)
    bad.params["fc"]["bias"][0] = np.inf
    run.state = jax.tree.map(jnp.array, bad)
    metrics = run.train(batch(1))
    assert (metrics["skipped_updates"], metrics["count"], metrics["loss"]) == (1, 0, 0)
    jax.tree.map(np.testing.assert_array_equal, run.state, replace(bad, step=2))
    run.state = jax.tree.map(jnp.array, good)
    assert run.train(batch(2))["skipped_updates"] == 0


def test_deterministic_runs_are_tuned_only_if_their_program_is_kept():
    assert "xla_gpu_exclude_nondeterministic_ops=true" in gpu_flags(deterministic=True, kept=True)
    assert "xla_gpu_deterministic_ops=true" in gpu_flags(deterministic=True, kept=False)
    assert "deterministic" not in gpu_flags(deterministic=False, kept=True)
