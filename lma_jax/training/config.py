"""Training configs: the table of their keys, and the checks before anything starts."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from ml_collections import ConfigDict

from lma_jax.errors import UserError, nearest
from lma_jax.registry import problem_with


@dataclass(frozen=True)
class Kind:
    """A kind of value: the check, what it allows, and the names among which the nearest one is suggested."""

    check: Callable[[Any], bool]
    allowed: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Key:
    """A key of a config.

    Attributes:
        kind: the values that are allowed.
        description: what it does.
        resumable: whether a run may be resumed with another value, since the value does not affect its result.
    """

    kind: Kind
    description: str
    resumable: bool = False


def one_of(*choices: str) -> Kind:
    """One of some words."""
    return Kind(lambda value: value in choices, f"one of: {', '.join(choices)}", choices)


def whole_number(least: int) -> Kind:
    """An int of at least `least`; no bool."""
    return Kind(lambda value: _is_int(value) and value >= least, f"a whole number of at least {least}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _increases(epochs: Any) -> bool:
    return all(epoch > 0 for epoch in epochs) and sorted(set(epochs)) == list(epochs)


def _is_scale(scale: Any) -> bool:
    return len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1


MODEL = Kind(lambda name: problem_with(name) is None, "one of lma_jax.list_models()")
NAME = Kind(lambda value: isinstance(value, str) and value != "", "a name")
TEXT = Kind(lambda value: isinstance(value, str), "a string, which may be empty")
FLAG = Kind(lambda value: isinstance(value, bool), "True or False")
SEED = Kind(lambda value: _is_int(value) and 0 <= value < 2**31, "from 0 to 2**31 - 1")
POSITIVE = Kind(lambda value: 0 < value < math.inf, "a finite number above 0")
NOT_NEGATIVE = Kind(lambda value: 0 <= value < math.inf, "a finite number of at least 0")
FRACTION = Kind(lambda value: 0 <= value < 1, "a number from 0 to below 1")
THRESHOLD = Kind(lambda value: value is None or 0 <= value < 1, "None, or from 0 to below 1")
MAGNITUDE = Kind(lambda value: 0 <= value <= 10, "a magnitude from 0 to 10")
EPOCHS = Kind(_increases, "increasing numbers of epochs")
SCALE = Kind(_is_scale, "two fractions of the area, 0 < low <= high <= 1")
MEAN = Kind(lambda value: len(value) == 3 and min(value) >= 0, "three numbers of at least 0")
STD = Kind(lambda value: len(value) == 3 and min(value) > 0, "three numbers above 0")

# The defaults are in configs/common.py, which a test holds equal to this table.
KEYS = {
    "model": Key(MODEL, "network"),
    "init_from": Key(TEXT, "workdir or weights file to start from; other classes get a new head", True),
    "warm_start": Key(
        one_of("", "exact"),
        '"exact": init_from is the plain network, and the LMA network starts as the same function',
        True,
    ),
    "seed": Key(SEED, "seed of weights, order of the data, augmentation, dropout and mixing"),
    "dtype": Key(
        one_of("float32", "bfloat16", "float64"), "of the computation; weights and statistics are float32 or wider"
    ),
    "batch_norm": Key(one_of("local", "sync"), "batch statistics of each device, or over all devices"),
    "dataset": Key(NAME, 'TFDS image-classification build in array_record format, "folder" or "digits"'),
    "data_dir": Key(TEXT, "folder of TFDS builds (empty: ~/tensorflow_datasets), or the image folder", True),
    "train_split": Key(NAME, "split to train on"),
    "val_split": Key(NAME, "split to evaluate on"),
    "data_threads": Key(whole_number(1), "threads that decode images, in each process or worker", True),
    "data_workers": Key(whole_number(0), "processes that decode images instead of the threads of this one", True),
    "on_bad_image": Key(
        one_of("error", "skip"),
        '"skip": the next image replaces an undecodable one in training; evaluation leaves it out',
        True,
    ),
    "image_size": Key(whole_number(1), "side of evaluation images, in pixels"),
    "train_image_size": Key(whole_number(1), "side of training images, in pixels"),
    "resize_size": Key(whole_number(1), "shorter side before the centre crop of evaluation, in pixels"),
    "crop_scale": Key(SCALE, "area of the random crop, as fractions of the image's"),
    "flip": Key(FLAG, "mirror half of the training images"),
    "rand_augment": Key(MAGNITUDE, "magnitude of RandAugment; 0 is off"),
    "mean": Key(MEAN, "mean of each channel, on the scale 0 to 1"),
    "std": Key(STD, "standard deviation of each channel, on the scale 0 to 1"),
    "loss": Key(one_of("softmax", "sigmoid"), "softmax cross-entropy, or binary cross-entropy averaged over classes"),
    "label_smoothing": Key(FRACTION, "weight of the uniform distribution in the targets"),
    "target_threshold": Key(THRESHOLD, "targets above it become 1 and others 0, unless None"),
    "mixup": Key(NOT_NEGATIVE, "alpha of the Beta distribution of Mixup's weight; 0 is off"),
    "cutmix": Key(NOT_NEGATIVE, "the same for CutMix; with both, each takes half of the batches"),
    "batch_size": Key(whole_number(1), "global batch size"),
    "eval_batch_size": Key(whole_number(1), "global batch size of evaluation", True),
    "accumulate": Key(whole_number(1), "micro-batches whose gradients are averaged in a step, to save memory"),
    "remat": Key(FLAG, "recompute everything but convolutions in the backward pass, to save memory"),
    "epochs": Key(POSITIVE, "length of the run"),
    "optimizer": Key(one_of("sgd", "lamb"), "PyTorch's SGD, or LAMB"),
    "learning_rate": Key(POSITIVE, "peak learning rate"),
    "base_batch_size": Key(whole_number(0), "above 0: learning_rate is for this batch size and scaled to batch_size"),
    "momentum": Key(NOT_NEGATIVE, "momentum of sgd"),
    "weight_decay": Key(NOT_NEGATIVE, "weight decay"),
    "decay_norm_and_bias": Key(FLAG, "whether weight decay acts on normalisation and biases too"),
    "clip_norm": Key(NOT_NEGATIVE, "global norm to which larger gradients are scaled down; 0 is off"),
    "schedule": Key(
        one_of("step", "exponential", "cosine"), "decay after each of decay_epochs, after every epoch, or by a cosine"
    ),
    "warmup_epochs": Key(NOT_NEGATIVE, "length of the linear warm-up"),
    "decay_epochs": Key(EPOCHS, "epochs after which the step schedule decays"),
    "decay_factor": Key(POSITIVE, "factor of each decay"),
    "ema_decay": Key(FRACTION, "above 0: a moving average of the weights is evaluated and exported"),
    "on_nonfinite": Key(
        one_of("stop", "skip"), '"skip": leave out an update whose loss or gradient is not finite', True
    ),
    "log_every": Key(whole_number(1), "steps between lines of progress", True),
    "eval_every": Key(POSITIVE, "epochs between evaluations, each of which saves a checkpoint"),
    "keep_checkpoints": Key(whole_number(1), "newest checkpoints to keep; the best by top-1 is kept as well", True),
    "wandb_project": Key(TEXT, "project of Weights & Biases that receives the metrics, or empty", True),
}


def validate(config: ConfigDict) -> None:
    """Checks every value of a training config, and those that depend on each other.

    Raises:
        UserError: a value is missing or not allowed; the message says what is.
    """
    for name, key in KEYS.items():
        _require(config, name, key)
    _require_related(config, "warmup_epochs", config.warmup_epochs < config.epochs, f"below epochs ({config.epochs})")
    _require_related(
        config, "resize_size", config.resize_size >= config.image_size, f"image_size ({config.image_size}) or more"
    )
    _require_start(config)
    _require_divisible(config)


def differences(config: ConfigDict, saved: Mapping[str, Any]) -> list[str]:
    """The keys that affect the result and whose values differ from `saved`, with both values."""
    current = json.loads(json.dumps(config.to_dict()))
    resumable = {name for name, key in KEYS.items() if key.resumable}
    return [
        f"{key}={current.get(key)!r} (checkpoint: {saved.get(key)!r})"
        for key in sorted({*current, *saved} - resumable)
        if current.get(key) != saved.get(key)
    ]


def _require(config: ConfigDict, name: str, key: Key) -> None:
    if name not in config:
        raise UserError(f"the config has no key {name!r} ({key.description}): start it from configs/common.py")
    value = config[name]
    try:
        accepted = key.kind.check(value)
    except (TypeError, ValueError, AttributeError):
        accepted = False
    if accepted:
        return
    if name == "model" and isinstance(value, str):
        raise UserError(f"config.model={value!r} is not allowed: {problem_with(value)}")
    hint = f", did you mean {nearest(str(value), key.kind.choices)!r}?" if key.kind.choices else ""
    raise UserError(
        f"config.{name}={value!r} is not allowed{hint or ':'} it must be {key.kind.allowed} ({key.description})"
    )


def _require_related(config: ConfigDict, name: str, accepted: bool, allowed: str) -> None:
    if not accepted:
        raise UserError(f"config.{name}={config[name]!r} is not allowed: it must be {allowed}")


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
    multiple = f"a multiple of {devices}, the number of devices"
    _require_related(config, "batch_size", config.batch_size % parts == 0, multiple + times)
    _require_related(config, "eval_batch_size", config.eval_batch_size % devices == 0, multiple)
