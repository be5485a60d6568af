"""Training configs: the table of their keys, and the checks before anything starts."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from ml_collections import ConfigDict

from lma_jax.errors import UserError, nearest
from lma_jax.recipes import defaults
from lma_jax.registry import RECORDED, problem_with, recorded_names, recorded_options
from lma_jax.resnet import STEMS
from lma_jax.training.schedule import LARGEST
from lma_jax.training.selection import is_frozen, parameter_names, require_match


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


def whole_number(least: int, most: int = 2**31 - 1) -> Kind:
    """An int from `least` to `most`; no bool."""
    return Kind(lambda value: _is_int(value) and least <= value <= most, f"a whole number from {least} to {most:,}")


def number(accepts: Callable[[float], bool], allowed: str) -> Kind:
    """An int or a float, no bool, that float32 can hold."""
    return Kind(lambda value: _is_number(value) and accepts(value), allowed)


def numbers(accepts: Callable[[Sequence[float]], bool], allowed: str) -> Kind:
    """A tuple or a list of such numbers."""
    return Kind(
        lambda value: isinstance(value, tuple | list) and all(map(_is_number, value)) and accepts(value), allowed
    )


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (_is_int(value) or isinstance(value, float)) and abs(value) <= LARGEST


def _is_text(value: Any) -> bool:
    """Whether a value is a string that can be part of a path."""
    return isinstance(value, str) and "\0" not in value and len(os.fsencode(value)) < LONGEST


def _increases(epochs: Sequence[float]) -> bool:
    return all(0 < epoch <= MOST_EPOCHS for epoch in epochs) and sorted(set(epochs)) == list(epochs)


def _are_patterns(value: Any) -> bool:
    return isinstance(value, tuple | list) and all(map(_is_pattern, value))


def _is_pattern(value: Any) -> bool:
    return _is_text(value) and value != ""


def _are_factors(value: Any) -> bool:
    """Whether a value is pairs of a pattern and a factor."""
    return isinstance(value, tuple | list) and all(
        isinstance(pair, tuple | list) and len(pair) == 2 and _is_pattern(pair[0]) and POSITIVE.check(pair[1])
        for pair in value
    )


def _are_betas(value: Sequence[float]) -> bool:
    return len(value) in (0, 2) and all(0 <= beta < 1 for beta in value)


def _is_scale(scale: Sequence[float]) -> bool:
    return len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1


# How much of a bad value an error shows.
SHOWN = 100
# Limits far beyond any use, above which memory or time would run out.
MOST_EPOCHS = 1_000_000
MOST_PIXELS = 1 << 13
MOST_IMAGES = 1 << 20
MOST_CHANNELS = 1 << 12
MOST_PICTURES = 64
LONGEST = 4096

MODEL = Kind(lambda name: problem_with(name) is None, "one of lma_jax.list_models()")
NAME = Kind(lambda value: _is_text(value) and value != "", "a name")
TEXT = Kind(_is_text, f"a string below {LONGEST:,} bytes, which may be empty")
FLAG = Kind(lambda value: isinstance(value, bool), "True or False")
SEED = Kind(lambda value: _is_int(value) and 0 <= value < 2**31, "from 0 to 2**31 - 1")
SIDE = whole_number(1, MOST_PIXELS)
BATCH = whole_number(1, MOST_IMAGES)
POSITIVE = number(lambda value: value > 0, "a number above 0 that float32 can hold")
NOT_NEGATIVE = number(lambda value: value >= 0, "a number of at least 0 that float32 can hold")
DURATION = number(lambda value: 0 < value <= MOST_EPOCHS, f"a number of epochs above 0, up to {MOST_EPOCHS:,}")
MIXING = number(lambda value: value == 0 or 1e-3 <= value <= 1000, "0, or a number from 0.001 to 1,000")
FRACTION = number(lambda value: 0 <= value < 1, "a number from 0 to below 1")
THRESHOLD = Kind(lambda value: value is None or FRACTION.check(value), "None, or from 0 to below 1")
MAGNITUDE = number(lambda value: 0 <= value <= 10, "a magnitude from 0 to 10")
PROBABILITY = number(lambda value: 0 <= value <= 1, "a probability from 0 to 1")
BETAS = numbers(_are_betas, "two numbers from 0 to below 1, or () for those that are usual with the optimizer")
PATTERNS = Kind(_are_patterns, 'patterns of parameter names such as ("conv1.*", "layer1.*"), or ()')
FACTORS = Kind(
    _are_factors, 'pairs of a pattern and a factor above 0 such as (("layer1.*", 0.1), ("fc.*", 2.0)), or ()'
)
EPOCHS = numbers(_increases, f"increasing numbers of epochs up to {MOST_EPOCHS:,}")
SCALE = numbers(_is_scale, "two fractions of the area, 0 < low <= high <= 1")
MEAN = numbers(lambda value: len(value) == 3 and 0 <= min(value) <= max(value) <= 1000, "three numbers from 0 to 1,000")
STD = numbers(
    lambda value: len(value) == 3 and 1e-6 <= min(value) <= max(value) <= 1000, "three numbers from 1e-6 to 1,000"
)

# The defaults are in configs/common.py, which a test holds equal to this table.
KEYS = {
    "model": Key(MODEL, "network"),
    "init_from": Key(TEXT, "workdir, weights file or hub folder to start from; other classes get a new head", True),
    "warm_start": Key(
        one_of("", "exact"),
        '"exact": init_from is the plain network, and the LMA network starts as the same function',
        True,
    ),
    "stem": Key(one_of(*STEMS), 'first layers of a ResNet: "small" is a 3x3 convolution of stride 1, for small images'),
    "width": Key(whole_number(1, MOST_CHANNELS), "channels of a ResNet's first stage"),
    "width_mult": Key(
        number(lambda value: 0.01 <= value <= 100, "from 0.01 to 100"), "factor on MobileNetV2's channels"
    ),
    "drop_path": Key(FRACTION, "rate of stochastic depth in the last block, from 0 in the first"),
    "zero_init_residual": Key(FLAG, "start the last normalisation of a ResNet's branches from 0"),
    "freeze": Key(
        PATTERNS,
        "patterns of parameters that stay as they are; a BatchNorm among them keeps its statistics and uses them",
    ),
    "seed": Key(SEED, "seed of weights, order of the data, augmentation, dropout, erasing and mixing"),
    "dtype": Key(
        one_of("float32", "bfloat16", "float64"), "of the computation; weights and statistics are float32 or wider"
    ),
    "batch_norm": Key(one_of("local", "sync"), "batch statistics of each device, or over all devices"),
    "dataset": Key(NAME, 'TFDS image-classification build in array_record format, "folder" or "digits"'),
    "data_dir": Key(TEXT, "folder of TFDS builds (empty: ~/tensorflow_datasets), or the image folder", True),
    "train_split": Key(NAME, "split to train on"),
    "val_split": Key(NAME, "split to evaluate on"),
    "data_threads": Key(
        whole_number(0, 1024), "threads that decode images, in each process or worker; 0: one for each core", True
    ),
    "data_workers": Key(whole_number(0, 256), "processes that decode images instead of the threads of this one", True),
    "on_bad_image": Key(
        one_of("error", "skip"),
        '"skip": the next image replaces an undecodable one in training; evaluation leaves it out',
        True,
    ),
    "image_size": Key(SIDE, "side of evaluation images, in pixels"),
    "train_image_size": Key(SIDE, "side of training images, in pixels"),
    "resize_size": Key(SIDE, "shorter side before the centre crop of evaluation, in pixels"),
    "crop_scale": Key(SCALE, "area of the random crop, as fractions of the image's"),
    "crop_padding": Key(
        whole_number(0, MOST_PIXELS),
        "above 0: the random crop is a square of the whole image, resized to train_image_size and padded by so many "
        "pixels",
    ),
    "flip": Key(FLAG, "mirror half of the training images"),
    "rand_augment": Key(MAGNITUDE, "magnitude of RandAugment; 0 is off"),
    "random_erasing": Key(PROBABILITY, "probability that a rectangle of a training image is set to the mean colour"),
    "mean": Key(MEAN, "mean of each channel, on the scale 0 to 1"),
    "std": Key(STD, "standard deviation of each channel, on the scale 0 to 1"),
    "loss": Key(one_of("softmax", "sigmoid"), "softmax cross-entropy, or binary cross-entropy averaged over classes"),
    "label_smoothing": Key(FRACTION, "weight of the uniform distribution in the targets"),
    "target_threshold": Key(THRESHOLD, "targets above it become 1 and others 0, unless None"),
    "mixup": Key(MIXING, "alpha of the Beta distribution of Mixup's weight; 0 is off"),
    "cutmix": Key(MIXING, "the same for CutMix; with both, each takes half of the batches"),
    "batch_size": Key(BATCH, "global batch size"),
    "eval_batch_size": Key(BATCH, "global batch size of evaluation", True),
    "accumulate": Key(whole_number(1), "micro-batches whose gradients are averaged in a step, to save memory"),
    "remat": Key(FLAG, "recompute everything but convolutions in the backward pass, to save memory"),
    "epochs": Key(DURATION, "length of the run"),
    "optimizer": Key(one_of("sgd", "adamw", "lamb", "lion"), "PyTorch's SGD or AdamW, LAMB, or Lion"),
    "learning_rate": Key(POSITIVE, "peak learning rate"),
    "base_batch_size": Key(whole_number(0), "above 0: learning_rate is for this batch size and scaled to batch_size"),
    "lr_scales": Key(FACTORS, "factors on the learning rate of the parameters that match; the first match counts"),
    "momentum": Key(NOT_NEGATIVE, "momentum of sgd"),
    "betas": Key(BETAS, "decay rates of the moments of adamw and lamb, (0.9, 0.999), or lion, (0.9, 0.99)"),
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
    "eval_every": Key(DURATION, "epochs between evaluations, each of which saves a checkpoint"),
    "save_every": Key(NOT_NEGATIVE, "minutes between saves from one evaluation to the next; 0 is off", True),
    "save_every_steps": Key(whole_number(0), "the same in steps", True),
    "save_wait": Key(NOT_NEGATIVE, "minutes to try again at the end if the last state cannot be saved", True),
    "step_timeout": Key(
        NOT_NEGATIVE, "minutes without a step after which the run ends with exit code 75; 0 waits for ever", True
    ),
    "keep_checkpoints": Key(whole_number(1), "newest checkpoints to keep; the best by top-1 is kept as well", True),
    "gradcam_images": Key(
        whole_number(0, MOST_PICTURES), "validation images with Grad-CAM++ in TensorBoard after each evaluation", True
    ),
    "wandb_project": Key(TEXT, "project of Weights & Biases that receives the metrics, or empty", True),
}

# What a run started from: a resumed run may leave it out, since it is behind it.
START = ("init_from", "warm_start")
# The keys that decide the result of a run.
DECISIVE = {name for name, key in KEYS.items() if not key.resumable} | {*START}


def validate(config: ConfigDict) -> None:
    """Checks every value of a training config, and those that depend on each other.

    Raises:
        UserError: a value is missing or not allowed; the message says what is.
    """
    for name, key in KEYS.items():
        _require(config, name, key)
    _require_known(config)
    _require_related(config, "warmup_epochs", config.warmup_epochs < config.epochs, f"below epochs ({config.epochs})")
    _require_related(
        config, "resize_size", config.resize_size >= config.image_size, f"image_size ({config.image_size}) or more"
    )
    padding_fits = config.crop_padding < config.train_image_size
    _require_related(config, "crop_padding", padding_fits, f"below train_image_size ({config.train_image_size})")
    _require_options(config)
    _require_optimizer(config)
    _require_start(config)
    _require_divisible(config)
    _require_memory(config)


def differences(config: ConfigDict, saved: Mapping[str, Any]) -> list[str]:
    """The keys that affect the result and whose values differ from `saved`, with both values.

    A key that did not exist when the run was saved had its default.
    """
    current = json.loads(json.dumps(config.to_dict()))
    saved = {**defaults(), **saved}
    resumable = {name for name, key in KEYS.items() if key.resumable}
    return [
        f"{key}={current.get(key)!r} (checkpoint: {saved.get(key)!r})"
        for key in sorted({*current, *saved} - resumable)
        if current.get(key) != saved.get(key)
    ]


def _require(config: ConfigDict, name: str, key: Key) -> None:
    if name not in config:
        raise UserError(f"the config has no key {name!r} ({key.description}): start it from the recipe common")
    value = _value(config, name)
    try:
        accepted = key.kind.check(value)
    except (TypeError, ValueError, AttributeError):
        accepted = False
    if accepted:
        return
    if name == "model" and isinstance(value, str):
        raise UserError(f"config.model={_shown(value)} is not allowed: {problem_with(value[:SHOWN])}")
    suggests = key.kind.choices and isinstance(value, str)
    hint = f", did you mean {nearest(value, key.kind.choices)!r}?" if suggests else ":"
    allowed = f"{key.kind.allowed}{', in types of Python' if type(value).__module__ == 'numpy' else ''}"
    raise UserError(f"config.{name}={_shown(value)} is not allowed{hint} it must be {allowed} ({key.description})")


def _require_known(config: ConfigDict) -> None:
    for name in config:
        if name not in KEYS:
            raise UserError(
                f"the config has a key {name!r} that does nothing, did you mean {nearest(str(name), KEYS)!r}?"
            )


def _value(config: ConfigDict, name: str) -> Any:
    try:
        return config[name]
    except Exception as error:  # a placeholder without a value, or a reference whose computation fails
        raise UserError(f"config.{name} has no value: {error}") from error


def _shown(value: Any) -> str:
    """The value as an error shows it."""
    try:
        shown = repr(value)
    except ValueError:
        return "<a number with thousands of digits>"
    return shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."


def _require_related(config: ConfigDict, name: str, accepted: bool, allowed: str) -> None:
    if not accepted:
        raise UserError(f"config.{name}={config[name]!r} is not allowed: it must be {allowed}")


def _require_options(config: ConfigDict) -> None:
    """Checks that options of networks which the backbone does not have are left at their defaults."""
    common, known = defaults(), recorded_names(config.model)
    others = f", only {', '.join(known)}" if known else ""
    for name in RECORDED:
        accepted = name in known or config[name] == common[name]
        allowed = f"left at {common[name]!r}: {config.model} has no such option{others}"
        _require_related(config, name, accepted, allowed)


def _require_optimizer(config: ConfigDict) -> None:
    if config.betas and config.optimizer == "sgd":
        raise UserError(f"config.betas={config.betas!r} is not allowed: sgd has config.momentum instead")
    patterns = {"freeze": config.freeze, "lr_scales": [pattern for pattern, _ in config.lr_scales]}
    if not any(patterns.values()):
        return
    names = parameter_names(config.model, **recorded_options(config.model, config))
    for key, given in patterns.items():
        for pattern in given:
            try:
                require_match(pattern, names)
            except ValueError as error:
                raise UserError(f"config.{key}: {_shown(pattern)} of {config.model} {error}") from error
    if all(is_frozen(name, config.freeze) for name in names):
        raise UserError(f"config.freeze={_shown(config.freeze)} leaves nothing to train")


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


def _require_memory(config: ConfigDict) -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for batch, side in (("batch_size", "train_image_size"), ("eval_batch_size", "image_size")):
        size = config[batch] // jax.process_count() * config[side] ** 2 * 3
        images = f"images of {config[side]} x {config[side]} pixels"
        allowed = f"smaller: its {images} take {size / 1e9:,.0f} GB, and this machine has {memory / 1e9:,.0f} GB"
        _require_related(config, batch, size < memory, allowed)
