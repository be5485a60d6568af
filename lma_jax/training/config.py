"""Training configs: checked once, before anything starts."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from lma_jax.errors import UserError, nearest
from lma_jax.registry import list_models

CHOICES = {
    "dtype": ("float32", "bfloat16"),
    "batch_norm": ("local", "sync"),
    "schedule": ("step", "exponential"),
}


def validate(config: ConfigDict) -> None:
    """Checks every value of a training config against what the trainer takes.

    Raises:
        UserError: the first value that is missing or not allowed, with what is.
    """
    _require_known(config, "model", list_models())
    for key, choices in CHOICES.items():
        _require_known(config, key, choices)
    for key in ("dataset", "train_split", "val_split"):
        _require(config, key, lambda text: isinstance(text, str) and text != "", "a name")
    _require(config, "data_dir", lambda text: isinstance(text, str), "a folder, or empty for TFDS's own")
    _require(config, "flip", lambda flag: isinstance(flag, bool), "True or False")
    for key in ("batch_size", "eval_batch_size", "image_size", "data_threads", "log_every", "keep_checkpoints"):
        _require(config, key, lambda number: isinstance(number, int) and number >= 1, "a whole number of at least 1")
    for key in ("epochs", "eval_every", "learning_rate", "decay_factor"):
        _require(config, key, lambda number: 0 < number < math.inf, "a finite number above 0")
    for key in ("weight_decay", "momentum"):
        _require(config, key, lambda number: 0 <= number < math.inf, "a finite number of at least 0")
    _require(config, "decay_epochs", _increases, "increasing numbers of epochs")
    _require(config, "crop_scale", _is_scale, "two fractions of the area, 0 < low <= high <= 1")
    _require(config, "mean", lambda mean: len(mean) == 3 and min(mean) >= 0, "three numbers of at least 0")
    _require(config, "std", lambda std: len(std) == 3 and min(std) > 0, "three numbers above 0")
    _require(config, "seed", lambda seed: isinstance(seed, int) and 0 <= seed < 2**31, "from 0 to 2**31 - 1")
    _require(config, "resize_size", lambda size: size >= config.image_size, f"image_size ({config.image_size}) or more")
    devices = jax.device_count()
    for key in ("batch_size", "eval_batch_size"):
        _require(config, key, lambda size: size % devices == 0, f"a multiple of {devices}, the number of devices")


def _increases(epochs: Any) -> bool:
    return all(epoch > 0 for epoch in epochs) and sorted(set(epochs)) == list(epochs)


def _is_scale(scale: Any) -> bool:
    return len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1


def _require(config: ConfigDict, key: str, allowed: Callable[[Any], bool], description: str) -> None:
    value = _value(config, key)
    try:
        accepted = allowed(value)
    except TypeError:
        accepted = False
    if not accepted:
        raise UserError(f"config.{key}={value!r} is not allowed: it must be {description}")


def _require_known(config: ConfigDict, key: str, choices: Sequence[str]) -> None:
    value = _value(config, key)
    if value not in choices:
        raise UserError(
            f"config.{key}={value!r} is unknown, did you mean {nearest(str(value), choices)!r}? "
            f"It must be one of: {', '.join(choices)}"
        )


def _value(config: ConfigDict, key: str) -> Any:
    if key not in config:
        raise UserError(f"the config has no key {key!r}: start it from configs/common.py")
    return config[key]
