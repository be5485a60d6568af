"""Every option of the recipes against PyTorch or optax, in float64."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import lma_torch
from lma_jax.checkpoint.format import to_arrays
from lma_jax.checkpoint.restore import fill
from lma_jax.preprocessing import normalize
from lma_jax.train import gpu_flags
from lma_jax.training.erasing import random_erasing
from lma_jax.training.objective import Objective, cutmix, mixup
from lma_jax.training.schedule import EpochClock, learning_rate_schedule
from lma_jax.training.selection import map_named
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


MIXES = [dict(mixup=0.4), dict(cutmix=1.0), dict(mixup=0.4, cutmix=1.0, random_erasing=0.5)]


@pytest.mark.parametrize("options", MIXES)
def test_mixed_targets_train_as_pytorchs_probabilities(options):
    """The mixed images and targets, seen through the objective, in PyTorch's loop; they are erased before."""
    run = trial(label_smoothing=0.1, **options)
    reference = TorchTrial(run, TorchTiny())
    for step in range(STEPS):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), step), 0)
        data = batch(step)
        images = normalize(jnp.asarray(data["image"]), PREPROCESSING)
        if "random_erasing" in options:
            images = jax.jit(random_erasing)(jax.random.fold_in(key, 2), images, options["random_erasing"])
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


@pytest.mark.parametrize("everywhere", [True, False])
def test_adamw_with_rates_of_some_layers_is_pytorchs_with_groups_of_parameters(everywhere):
    values = dict(weight_decay=0.5, decay_norm_and_bias=everywhere, betas=(0.8, 0.95), learning_rate=0.01)
    run = trial(optimizer="adamw", lr_scales=(("fc.b*", 3.0), ("fc.*", 10.0), ("*.bias", 0.5)), **values)
    factors = {"fc.bias": 3.0, "fc.weight": 10.0, "bn1.bias": 0.5}
    reference = TorchTrial(run, TorchTiny())
    groups = [
        dict(params=[weight], lr=0.01 * factors.get(name, 1.0), weight_decay=0.5 * (everywhere or weight.ndim > 1))
        for name, weight in reference.model.named_parameters()
    ]
    reference.optimizer = torch.optim.AdamW(groups, betas=(0.8, 0.95))  # type: ignore[assignment]
    reference.scheduler = torch.optim.lr_scheduler.StepLR(reference.optimizer, step_size=1, gamma=0.1)
    train(run)
    reference.train()
    assert_same_weights(run, reference.model)


@pytest.mark.parametrize("betas", [(), (0.8, 0.95)])
def test_lion_is_that_of_the_paper(betas):
    """Algorithm 2 of Chen et al. 2023."""
    ours = optimizer_from(tiny.recipe(optimizer="lion", weight_decay=0.1, betas=betas), lambda step: 0.01)
    b1, b2 = betas or (0.9, 0.99)
    rng = np.random.default_rng(0)
    weights = expected = rng.normal(size=(3, 4))
    momentum, state = np.zeros((3, 4)), ours.init(weights)
    for _ in range(STEPS):
        gradient = rng.normal(size=(3, 4))
        updates, state = ours.update(gradient, state, weights)
        weights = optax.apply_updates(weights, updates)
        update = np.sign(b1 * momentum + (1 - b1) * gradient)
        momentum = b2 * momentum + (1 - b2) * gradient
        expected = expected - 0.01 * (update + 0.1 * expected)
    np.testing.assert_allclose(weights, expected, rtol=1e-12)


FREEZE = ("conv1.*", "bn1.*", "attention.conv_h.*")


def test_frozen_parameters_and_statistics_keep_their_bits_and_the_others_train_as_in_pytorch():
    """Beside all that acts on weights otherwise. A frozen BatchNorm is in evaluation mode, as in PyTorch's idiom."""
    options = dict(weight_decay=0.1, clip_norm=0.05, ema_decay=0.9, accumulate=2, on_nonfinite="skip")
    run = trial(freeze=FREEZE, **options)
    run.state.params["conv1"]["kernel"] = run.state.params["conv1"]["kernel"].at[0, 0].set(-0.0)
    run.state.ema["params"]["conv1"]["kernel"] = run.state.params["conv1"]["kernel"].copy()
    start = jax.tree.map(np.array, run.state)
    reference = TorchTrial(run, TorchTiny(), parts=2, after_backward=lambda model: exactly_clipped(model, 0.05))
    for layer in ("conv1", "bn1", "attention.conv_h"):
        reference.model.get_submodule(layer).requires_grad_(False)
    reference.model.get_submodule("bn1").eval()
    train(run)
    reference.train()
    assert_same_weights(run, reference.model)
    assert_same_weights(run, reference.average.module, trees=run.state.evaluated)
    names = {"bn1.mean", "bn1.var", "bn1.scale", "bn1.bias", "conv1.kernel", "attention.conv_h.kernel"}
    for tree in (lambda state: (state.params, state.batch_stats), lambda state: state.evaluated):
        before, after = (named_bits(tree(state)) for state in (start, run.state))
        assert {name for name in before if before[name] == after[name]} == names


def named_bits(trees) -> dict[str, bytes]:
    bits: dict[str, bytes] = {}
    for tree in trees:
        map_named(lambda name, leaf: bits.setdefault(name, np.asarray(leaf).tobytes()), tree)
    return bits


def test_a_run_with_frozen_parameters_on_several_devices_resumes_from_what_is_saved():
    """The optimizer has no state for them, so that a checkpoint has none either."""
    run = Trial(devices=4, freeze=FREEZE, batch_norm="local")
    run.train(batch(0))
    arrays = to_arrays(run.state)
    traces = {path.rpartition("trace/")[2] for path in arrays if "trace" in path}
    assert traces == {"attention/conv_w/kernel", "fc/kernel", "fc/bias"}
    run.train(batch(1))
    expected = to_arrays(run.state)
    run.state = fill(run.state, arrays, sharding=run.state.step.sharding, source="saved")
    run.train(batch(1))
    assert {path: array.tobytes() for path, array in to_arrays(run.state).items()} == {
        path: array.tobytes() for path, array in expected.items()
    }


def torchvisions_shapes(height: int, width: int, number: int) -> np.ndarray:
    """Rectangles (number, 2) that torchvision's RandomErasing erases, by its definition in NumPy."""
    rng = np.random.default_rng(0)
    found: list[tuple[int, int]] = []
    while len(found) < number:
        area, ratio = height * width * rng.uniform(0.02, 0.33), math.exp(rng.uniform(math.log(0.3), math.log(3.3)))
        shape = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        found += [shape] if shape[0] < height and shape[1] < width else []
    return np.array(found)


def test_random_erasing_sets_the_rectangles_of_torchvision_to_the_mean_colour():
    single = jnp.ones((2, 1, 1, 3))  # nothing fits into it
    np.testing.assert_array_equal(jax.jit(random_erasing)(jax.random.key(0), single, 1.0), single)
    number, height, width = 8000, 24, 16
    images = jnp.ones((number, height, width, 1), jnp.float32)
    erased = np.asarray(jax.jit(random_erasing)(jax.random.key(0), images, 0.75))[..., 0] == 0
    shapes = np.stack([erased.any(2).sum(1), erased.any(1).sum(1)], 1)
    np.testing.assert_array_equal(shapes.prod(1), erased.sum((1, 2)))  # rectangles
    hit = erased.any((1, 2))
    assert hit.mean() == pytest.approx(0.75, abs=0.02)
    expected = torchvisions_shapes(height, width, hit.sum())
    for measure in (np.prod, lambda shape, axis: shape[:, 0] / shape[:, 1]):
        ours, theirs = (np.sort(measure(values, axis=1)) for values in (shapes[hit], expected))
        steps = np.unique(np.concatenate([ours, theirs]))
        distance = np.abs(np.searchsorted(ours, steps, "right") - np.searchsorted(theirs, steps, "right")).max()
        assert distance / hit.sum() < 0.03
    for axis, extent in ((1, height), (2, width)):  # places are uniform: the first one and the last one as likely
        first = erased.any(3 - axis).argmax(1)[hit]
        last = extent - shapes[hit, axis - 1]
        assert (first / last).mean() == pytest.approx(0.5, abs=0.02)


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
