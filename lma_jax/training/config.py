"""Training configs: checked once, before anything starts."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from lma_jax.errors import UserError, nearest
from lma_jax.registry import problem_with

CHOICES = {
    "dtype": ("float32", "bfloat16", "float64"),
    "batch_norm": ("local", "sync"),
    "schedule": ("step", "exponential", "cosine"),
    "optimizer": ("sgd", "lamb"),
    "loss": ("softmax", "sigmoid"),
    "on_bad_image": ("error", "skip"),
    "on_nonfinite": ("stop", "skip"),
    "warm_start": ("", "exact"),
}
NAMES = ("dataset", "train_split", "val_split")
TEXTS = ("data_dir", "init_from", "wandb_project")
FLAGS = ("flip", "decay_norm_and_bias", "remat")
COUNTS = (
    *("batch_size", "eval_batch_size", "accumulate", "image_size", "train_image_size", "data_threads"),
    *("log_every", "keep_checkpoints"),
)
POSITIVE = ("epochs", "eval_every", "learning_rate", "decay_factor")
NOT_NEGATIVE = ("weight_decay", "momentum", "warmup_epochs", "clip_norm", "mixup", "cutmix")
FRACTIONS = ("label_smoothing", "ema_decay")
# What a run may change on its way without ending elsewhere.
FREE_TO_CHANGE = (
    *("data_dir", "data_threads", "data_workers", "eval_batch_size", "log_every", "keep_checkpoints"),
    *("init_from", "warm_start", "wandb_project", "on_bad_image", "on_nonfinite"),
)


def validate(config: ConfigDict) -> None:
    """Checks every value of a training config against what the trainer takes.

    Raises:
        UserError: the first value that is missing or not allowed, with what is.
    """
    if problem := problem_with(config.model):
        raise UserError(f"config.model={config.model!r} is not allowed: {problem}")
    for key, choices in CHOICES.items():
        _require_known(config, key, choices)
    for key in NAMES:
        _require(config, key, lambda text: isinstance(text, str) and text != "", "a name")
    for key in TEXTS:
        _require(config, key, lambda text: isinstance(text, str), "a text, or empty")
    for key in FLAGS:
        _require(config, key, lambda flag: isinstance(flag, bool), "True or False")
    for key in COUNTS:
        _require(config, key, lambda number: _is_count(number) and number >= 1, "a whole number of at least 1")
    for key in ("data_workers", "base_batch_size"):
        _require(config, key, _is_count, "a whole number of at least 0")
    for key in POSITIVE:
        _require(config, key, lambda number: 0 < number < math.inf, "a finite number above 0")
    for key in NOT_NEGATIVE:
        _require(config, key, lambda number: 0 <= number < math.inf, "a finite number of at least 0")
    for key in FRACTIONS:
        _require(config, key, lambda number: 0 <= number < 1, "a number from 0 to below 1")
    _require(config, "target_threshold", lambda number: number is None or 0 <= number < 1, "None, or from 0 to below 1")
    _require(config, "rand_augment", lambda number: 0 <= number <= 10, "a magnitude from 0 to 10")
    _require(config, "decay_epochs", _increases, "increasing numbers of epochs")
    _require(config, "warmup_epochs", lambda epochs: epochs < config.epochs, f"below epochs ({config.epochs})")
    _require(config, "crop_scale", _is_scale, "two fractions of the area, 0 < low <= high <= 1")
    _require(config, "mean", lambda mean: len(mean) == 3 and min(mean) >= 0, "three numbers of at least 0")
    _require(config, "std", lambda std: len(std) == 3 and min(std) > 0, "three numbers above 0")
    _require(config, "seed", lambda seed: _is_count(seed) and seed < 2**31, "from 0 to 2**31 - 1")
    _require(config, "resize_size", lambda size: size >= config.image_size, f"image_size ({config.image_size}) or more")
    _require_start(config)
    _require_divisible(config)


def _require_start(config: ConfigDict) -> None:
    if config.dataset == "folder" and not config.data_dir:
        raise UserError("config.dataset='folder' needs config.data_dir: the folder that holds train/ and val/")
    if config.warm_start and not (config.init_from and config.model.endswith("_lma")):
        raise UserError(
            f"config.warm_start={config.warm_start!r} needs config.init_from, the weights of a plain network, and a "
            f"config.model that ends in _lma, not {config.model!r}"
        )
    if config.dtype == "float64" and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise UserError("config.dtype='float64' needs the environment variable JAX_ENABLE_X64=1")


def _require_divisible(config: ConfigDict) -> None:
    devices = jax.device_count()
    parts = devices * config.accumulate
    times = f" times accumulate ({config.accumulate})" if parts > devices else ""
    _require(
        config, "batch_size", lambda size: size % parts == 0, f"a multiple of {devices}, the number of devices{times}"
    )
    _require(
        config, "eval_batch_size", lambda size: size % devices == 0, f"a multiple of {devices}, the number of devices"
    )


def differences(config: ConfigDict, saved: Mapping[str, Any]) -> list[str]:
    """The keys whose values differ from those `saved` with a checkpoint and lead a run elsewhere, with both values."""
    current = json.loads(json.dumps(config.to_dict()))
    return [
        f"{key}={current.get(key)!r} (checkpoint: {saved.get(key)!r})"
        for key in sorted({*current, *saved} - {*FREE_TO_CHANGE})
        if current.get(key) != saved.get(key)
    ]


def _is_count(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 0


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
