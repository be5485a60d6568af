"""What a config may say but hardly means."""

from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

# Of the shorter side, below which a centre crop of evaluation gets a warning; the usual ones are 0.87 to 1.
LEAST_SHARE = 0.8
# Learning rate of optimizers that divide by the size of the gradient; a usual one is 0.001 or less.
LARGE_ADAPTIVE_RATE = 0.01


def doubts(config: ConfigDict, replaced: Mapping[str, Any] | None = None) -> list[str]:
    """A line for each thing that is allowed but hardly meant.

    Args:
        config: a valid training config.
        replaced: of the keys that the command line sets, the values in the recipe.
    """
    return [
        *_of_images(config),
        *_of_rates(config, replaced or {}),
        *_of_targets(config),
        *_idle(config, replaced or {}),
    ]


def _of_images(config: ConfigDict) -> Iterator[str]:
    share = config.image_size / config.resize_size
    if share < LEAST_SHARE:
        yield (
            f"evaluation sees the central {100 * share:.0f} % of the shorter side only: config.image_size="
            f"{config.image_size} of config.resize_size={config.resize_size}"
        )


def _of_rates(config: ConfigDict, replaced: Mapping[str, Any]) -> Iterator[str]:
    before = replaced.get("batch_size", config.batch_size)
    if before != config.batch_size and not config.base_batch_size and "learning_rate" not in replaced:
        yield (
            f"config.learning_rate={config.learning_rate} was chosen for batches of {before}, not of "
            f"{config.batch_size}: scale it by config.base_batch_size={before}, or set config.learning_rate"
        )
    if config.optimizer in ("adamw", "lion") and config.learning_rate > LARGE_ADAPTIVE_RATE:
        yield f"config.learning_rate={config.learning_rate} is large for {config.optimizer}, which takes 0.001 or less"
    if config.warmup_epochs > config.epochs / 2:
        yield f"the warm-up takes {config.warmup_epochs} of {config.epochs} epochs"
    if config.schedule == "step":
        late = [epoch for epoch in config.decay_epochs if epoch >= config.epochs]
        if late:
            yield f"of config.decay_epochs, {late} are not reached: the run ends after config.epochs={config.epochs}"
        if config.decay_epochs and config.decay_epochs[0] < config.warmup_epochs:
            yield (
                f"the learning rate decays after epoch {config.decay_epochs[0]}, within the warm-up of "
                f"{config.warmup_epochs} epochs, so that its peak is never reached"
            )


def _of_targets(config: ConfigDict) -> Iterator[str]:
    threshold, mixes = config.target_threshold, config.mixup or config.cutmix
    if threshold is None:
        return
    if mixes and config.loss == "softmax":
        yield (
            "Mixup and CutMix with config.target_threshold give images of two classes targets of 1 for both, which a "
            "softmax cannot reach: take config.loss=sigmoid"
        )
    if mixes and threshold >= 0.5:
        yield f"with config.target_threshold={threshold}, an image that is mixed in equal parts has no class at all"
    if config.label_smoothing:
        yield (
            f"config.label_smoothing={config.label_smoothing} has hardly an effect: config.target_threshold makes "
            "targets 0 or 1"
        )


def _idle(config: ConfigDict, replaced: Mapping[str, Any]) -> Iterator[str]:
    """Of the keys that the command line sets, those that do nothing beside the others."""
    idle = {
        "momentum": config.optimizer != "sgd" and "optimizer",
        "decay_epochs": config.schedule != "step" and "schedule",
        "decay_factor": config.schedule == "cosine" and "schedule",
    }
    for key, cause in idle.items():
        if key in replaced and cause:
            yield f"config.{key} does nothing with config.{cause}={config[cause]}"
