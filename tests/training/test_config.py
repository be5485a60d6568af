"""The table of config keys, the recipes, and what a config is refused for."""

import contextlib
import json
import math
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from configs import common
from lma_jax.errors import UserError
from lma_jax.preprocessing import IMAGENET, preprocessing_from
from lma_jax.training.config import KEYS, differences, validate
from lma_jax.training.doubts import doubts
from lma_jax.training.schedule import EpochClock, eval_steps, learning_rate_schedule
from lma_jax.training.trainer import Trainer
from tests.helpers.commands import ROOT

RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*_lma*.py"))


def test_the_table_has_the_keys_of_the_default_config():
    assert sorted(KEYS) == sorted(common.get_config())


def test_every_key_is_described_and_its_default_is_allowed():
    config = common.get_config()
    assert all(key.description and key.kind.allowed for key in KEYS.values())
    assert [name for name, key in KEYS.items() if not key.kind.check(config[name])] == []
    assert preprocessing_from(config) == IMAGENET


@pytest.mark.parametrize("name", KEYS)
def test_every_key_must_be_there_and_refuses_other_types(name):
    values = common.get_config().to_dict()
    with pytest.raises(UserError, match=rf"config\.{name}=.* is not allowed"):
        validate(ConfigDict({**values, name: [None]}))
    del values[name]
    with pytest.raises(UserError, match=f"has no key '{name}' "):
        validate(ConfigDict(values))


def test_what_differs_is_named_unless_it_does_not_affect_the_result():
    config = common.get_config()
    saved = json.loads(json.dumps(config.to_dict()))
    for name, key in KEYS.items():
        if key.resumable:
            saved[name] = "another"
    assert differences(config, saved) == []
    assert differences(config, {**saved, "seed": 7}) == ["seed=0 (checkpoint: 7)"]
    assert {name for name, key in KEYS.items() if key.resumable} == {
        *("data_dir", "data_threads", "data_workers", "eval_batch_size", "log_every", "keep_checkpoints"),
        "step_timeout",
        *("init_from", "warm_start", "wandb_project", "gradcam_images", "on_bad_image", "on_nonfinite"),
        *("save_every", "save_every_steps", "save_wait"),
    }


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_imagenet_recipe_says_how_to_prepare_the_missing_data(recipe, tmp_path):
    config = import_module(f"configs.{recipe}").get_config()
    config.data_dir = str(tmp_path / "data")
    with pytest.raises(UserError, match=r"imagenet2012.*python -m lma_jax.data.prepare --archives="):
        Trainer(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (dict(batch_size=0), "config.batch_size=0 is not allowed"),
        (dict(learning_rate=float("inf")), "config.learning_rate=inf is not allowed"),
        (dict(model="resnet18_lna"), "did you mean 'resnet18_lma'?"),
        (dict(dtype="bfloat"), "did you mean 'bfloat16'?"),
        (dict(dataset="digit"), "TFDS knows no data set 'digit'"),
        (dict(val_split="validation"), "has no split 'validation'"),
        (dict(epochs=1e-4), "less than one step"),
        (dict(schedule="cosin"), "did you mean 'cosine'?"),
        (dict(accumulate=3), "a multiple of 4, the number of devices times accumulate (3)"),
        (dict(batch_size=6), "config.batch_size=6 is not allowed: it must be a multiple of 4, the number of devices"),
        (dict(dtype="float64"), "needs the environment variable JAX_ENABLE_X64=1"),
        (dict(warm_start="exact"), "needs config.init_from"),
        (dict(warmup_epochs=20.0), "must be below epochs (10.0)"),
        (dict(label_smoothing=1.0), "from 0 to below 1"),
        (dict(rand_augment=11.0), "a magnitude from 0 to 10"),
        (dict(crop_scale=(0.5, 0.1)), "two fractions of the area"),
        (dict(dataset="folder"), "needs config.data_dir"),
        (dict(freeze=("conv1.*", "layr1.*")), "config.freeze: 'layr1.*' of resnet18_lma matches no parameter, did you"),
        (dict(freeze=("fc.weight",)), "did you mean 'fc.bias'?"),
        (dict(freeze=("*",)), "leaves nothing to train"),
        (dict(lr_scales=(("layer1", 0.5),)), "did you mean 'layer1.*'?"),
        (dict(model="mobilenetv2", width=8), "left at 64: mobilenetv2 has no such option, only width_mult, drop_path"),
        (dict(betas=(0.9, 0.99)), "sgd has config.momentum instead"),
    ],
)
def test_a_value_that_is_not_allowed_is_named_with_what_is(values, expected, tmp_path):
    config = import_module("configs.digits").get_config()
    config.update(values)
    with pytest.raises(UserError) as error:
        Trainer(config, tmp_path / "run")
    assert expected in str(error.value)
    assert not (tmp_path / "run").exists()


REFUSED: list[dict[str, Any]] = [
    *({name: (value, 0.5, 0.5)} for name in ("mean", "std") for value in (math.inf, math.nan, -1.0, True, "0.5")),
    *(
        {name: value}
        for name in ("mean", "std", "crop_scale")
        for value in (np.ones(3), {0: 1, 1: 1, 2: 1}, "abc", 1.0)
    ),
    *({"std": (value, 0.5, 0.5)} for value in (0, 1e-300)),
    *({"crop_scale": value} for value in ((math.nan, 1.0), (True, True), (0.5, math.inf), (0, 1), (0.5, 0.6, 0.7))),
    *({"decay_epochs": value} for value in ((math.inf,), (math.nan,), (1e300,), (True, 2), "12", {1: 2})),
    *({"epochs": value} for value in (1e9, math.nan, 10**5000, True, np.float32(9))),
    *({"eval_every": value} for value in (math.inf, 1e9, False)),
    *({name: 10**6} for name in ("image_size", "train_image_size", "resize_size", "data_threads", "data_workers")),
    *({name: 10**12} for name in ("batch_size", "eval_batch_size", "keep_checkpoints", "log_every", "accumulate")),
    *({name: np.int64(64)} for name in ("batch_size", "seed", "log_every")),
    *({name: True} for name in ("seed", "batch_size", "momentum", "learning_rate", "mixup", "label_smoothing")),
    *({name: 10**400} for name in ("learning_rate", "weight_decay", "clip_norm", "base_batch_size", "seed")),
    *({"mixup": value} for value in (1e-300, 1e30)),
    *({"data_dir": value} for value in ("a\0b", "\ud800", "a" * 5000)),
    *({"model": value} for value in (5, ["resnet18"], "x" * 10**6, "a\nb")),
    *({"freeze": value} for value in ("conv1.*", ("",), (3,), {1: 2}, ("a\0b",))),
    *({"lr_scales": value} for value in ("fc.*", ("fc.*", 2.0), (("fc.*", 0),), (("fc.*",),), ((1, 2),), (("", 1),))),
    *({"betas": value} for value in ((0.9,), (0.9, 1), (0.9, math.nan), (0.9, 0.9, 0.9), ("0.9", "0.9"))),
    *({"random_erasing": value} for value in (1.5, math.nan, True)),
    {"gradcam_images": 65},
    {"target_threshold": True},
    {"flip": 1},
    {"batch_size": 1 << 20, "train_image_size": 8192},
    {"a_key_of_nothing": 1},
]


@pytest.mark.parametrize("values", REFUSED, ids=lambda values: next(iter(values)))
def test_a_value_out_of_bounds_is_refused_briefly(values):
    with pytest.raises(UserError) as error:
        validate(ConfigDict({**common.get_config().to_dict(), **values}))
    assert next(iter(values)) in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (dict(eval_every=1e-12), "config.eval_every=1e-12 of 1,437 examples in batches of 64 are less than one step"),
        (dict(epochs=1e6), "config.eval_every=1.0 makes 1,000,000 evaluations"),
        (dict(epochs=1e6, eval_every=1e5, batch_size=4, dataset="folder", data_dir="/none"), "does not exist"),
        (dict(learning_rate=3e38, base_batch_size=1), "config.learning_rate=3e+38 scaled"),
        (dict(train_split="train[:10%]"), "no split 'train[:10%]' (a part or a sum of splits is none)"),
        (dict(dataset="digits:2.0.0"), "2.0.0"),
        (dict(dataset="imagenet2012:1.0.0"), "cannot be loaded at version 1.0.0"),
        (dict(dataset="imagenet2012:5.1.0"), "lma_jax.data.prepare --archives="),
    ],
)
def test_durations_and_data_out_of_bounds_are_refused_before_anything_starts(values, expected, tmp_path):
    config = import_module("configs.digits").get_config()
    config.update(values)
    with pytest.raises(UserError) as error:
        Trainer(config, tmp_path / "run")
    assert expected in str(error.value)
    assert not (tmp_path / "run").exists()


def test_the_digits_may_be_named_with_their_version(tmp_path):
    config = import_module("configs.digits").get_config()
    config.dataset = "digits:1.0.0"
    assert len(Trainer(config, tmp_path / "run").train_source) == 1437


def test_a_value_that_cannot_be_computed_is_named():
    config = common.get_config()
    config.base_batch_size = 1
    config.batch_size = config.get_ref("image_size") // config.get_ref("base_batch_size")
    config.base_batch_size = 0
    with pytest.raises(UserError, match=r"config.batch_size has no value: .*zero"):
        validate(config)


WILD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**6), 10**6),
    st.floats(),
    st.floats(0, 1),
    st.text(max_size=20),
    st.sampled_from([choice for key in KEYS.values() for choice in key.kind.choices]),
    st.sampled_from([10**5000, -(2**31), 2**63, 5e-324, np.float32(0.5), np.int64(8), np.ones(3), object(), b"sgd"]),
    st.lists(st.one_of(st.floats(), st.integers(), st.booleans(), st.text(max_size=3)), max_size=4),
    st.tuples(st.floats(), st.floats()),
    st.tuples(*[st.floats(0, 2)] * 3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=3),
)


@given(st.dictionaries(st.sampled_from([*KEYS, "unknown"]), WILD, min_size=1, max_size=4))
def test_wild_values_are_accepted_or_refused(values):
    """What is accepted makes a schedule and JSON without an error of another kind."""
    config = ConfigDict({**common.get_config().to_dict(), **values}, convert_dict=False)
    with contextlib.suppress(UserError):
        validate(config)
        clock = EpochClock(1_281_167, config.batch_size)
        assert eval_steps(config, clock)[-1] <= 2**31 - 1
        learning_rate_schedule(config, clock)
        json.dumps(config.to_dict(), allow_nan=False)


def test_the_size_of_training_images_follows_that_of_evaluation_not_the_other_way_round():
    config = common.get_config()
    config.image_size = 32
    assert config.train_image_size == 32
    config.train_image_size = 24
    assert (config.image_size, config.train_image_size) == (32, 24)


def test_every_recipe_names_its_command():
    for recipe in RECIPES:
        text = (ROOT / f"configs/{recipe}.py").read_text()
        assert f"python -m lma_jax.train --config configs/{recipe}.py" in text
        assert "Hardware: " in text
        assert "Expected: " in text


def test_evaluation_sees_the_same_share_of_an_image_at_every_size_and_a_small_one_is_pointed_out():
    config = common.get_config()
    assert (config.resize_size, doubts(config)) == (256, [])
    config.image_size = 32
    assert (config.resize_size, doubts(config)) == (36, [])
    config.resize_size = 256
    assert doubts(config) == [
        "evaluation sees the central 12 % of the shorter side only: config.image_size=32 of config.resize_size=256"
    ]


DOUBTED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (dict(batch_size=512), {}, "config.learning_rate=0.1 was chosen for batches of 256, not of 512: scale it by"),
    (dict(epochs=60.0), {}, "of config.decay_epochs, [60.0, 90.0] are not reached: the run ends after"),
    (dict(epochs=10.0, warmup_epochs=8.0, schedule="cosine"), {}, "the warm-up takes 8.0 of 10.0 epochs"),
    (dict(warmup_epochs=40.0), {}, "decays after epoch 30.0, within the warm-up of 40.0 epochs"),
    (dict(mixup=0.2, target_threshold=0.2), {}, "which a softmax cannot reach: take config.loss=sigmoid"),
    (dict(mixup=0.2, target_threshold=0.5, loss="sigmoid"), {}, "mixed in equal parts has no class at all"),
    (dict(label_smoothing=0.1, target_threshold=0.2), {}, "config.label_smoothing=0.1 has hardly an effect"),
    (dict(optimizer="adamw"), {}, "config.learning_rate=0.1 is large for adamw"),
    (dict(optimizer="lamb"), dict(momentum=0.9), "config.momentum does nothing with config.optimizer=lamb"),
    (dict(schedule="cosine"), dict(decay_factor=0.1), "config.decay_factor does nothing with config.schedule=cosine"),
]


@pytest.mark.parametrize(("values", "replaced", "expected"), DOUBTED)
def test_what_is_hardly_meant_is_one_warning(values, replaced, expected):
    config = common.get_config()
    config.update(values)
    (line,) = doubts(config, {"batch_size": 256, **replaced})
    assert expected in line


def test_no_recipe_is_doubted_nor_a_batch_with_a_learning_rate_of_its_own():
    for name in RECIPES:
        assert doubts(import_module(f"configs.{name}").get_config()) == []
    config = common.get_config()
    config.batch_size = 512
    assert doubts(config, {"batch_size": 256, "learning_rate": 0.1}) == []
    config.base_batch_size = 256
    assert doubts(config, {"batch_size": 256}) == []
