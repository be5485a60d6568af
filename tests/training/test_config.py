"""The table of config keys, the recipes, and what a config is refused for."""

import json
from importlib import import_module

import pytest
from ml_collections import ConfigDict

from configs import common
from lma_jax.errors import UserError
from lma_jax.preprocessing import IMAGENET, preprocessing_from
from lma_jax.training.config import KEYS, differences, validate
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
        *("init_from", "warm_start", "wandb_project", "on_bad_image", "on_nonfinite"),
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
    ],
)
def test_a_value_that_is_not_allowed_is_named_with_what_is(values, expected, tmp_path):
    config = import_module("configs.digits").get_config()
    config.update(values)
    with pytest.raises(UserError) as error:
        Trainer(config, tmp_path / "run")
    assert expected in str(error.value)
    assert not (tmp_path / "run").exists()


def test_every_recipe_names_its_command():
    for recipe in RECIPES:
        text = (ROOT / f"configs/{recipe}.py").read_text()
        assert f"python -m lma_jax.train --config configs/{recipe}.py" in text
        assert "Hardware: " in text
        assert "Expected: " in text
