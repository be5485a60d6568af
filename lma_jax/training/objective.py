"""The objective of training: the loss, its targets, and the mixing of images."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import optax


@dataclass(frozen=True)
class Objective:
    """A loss over targets (N, num_classes), which mixing and smoothing move away from one-hot.

    Attributes:
        num_classes: number of classes.
        loss: "softmax" for cross-entropy, "sigmoid" for binary cross-entropy averaged over the classes.
        label_smoothing: weight of the uniform distribution in the targets.
        target_threshold: targets above it become 1 and others 0, unless it is None ("ResNet strikes back", section 3).
        mixup: alpha of the Beta distribution of the mixing weight; 0 is off.
        cutmix: the same for CutMix; with both, each takes half of the batches.
    """

    num_classes: int
    loss: str = "softmax"
    label_smoothing: float = 0.0
    target_threshold: float | None = None
    mixup: float = 0.0
    cutmix: float = 0.0

    def mix(self, key: jax.Array, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Images (N, H, W, C), mixed with their neighbours in the batch if asked for, and targets (N, num_classes)."""
        targets = jax.nn.one_hot(labels, self.num_classes, dtype=images.dtype)
        targets = optax.smooth_labels(targets, self.label_smoothing)
        mix_key, choice_key = jax.random.split(key)
        if self.mixup and self.cutmix:
            use_cutmix = jax.random.bernoulli(choice_key)
            images, targets = jax.lax.cond(use_cutmix, self._cutmix, self._mixup, mix_key, images, targets)
        elif self.mixup:
            images, targets = self._mixup(mix_key, images, targets)
        elif self.cutmix:
            images, targets = self._cutmix(mix_key, images, targets)
        if self.target_threshold is not None:
            targets = (targets > self.target_threshold).astype(targets.dtype)
        return images, targets

    def losses(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """The loss (N,) of each example."""
        if self.loss == "sigmoid":
            return optax.sigmoid_binary_cross_entropy(logits, targets).mean(-1)
        return optax.softmax_cross_entropy(logits, targets)

    def _mixup(self, key: jax.Array, images: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        return mixup(images, targets, jax.random.beta(key, self.mixup, self.mixup, dtype=images.dtype))

    def _cutmix(self, key: jax.Array, images: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        weight_key, *centre_keys = jax.random.split(key, 3)
        weight = jax.random.beta(weight_key, self.cutmix, self.cutmix, dtype=images.dtype)
        rows, columns = (jax.random.randint(k, (), 0, size) for k, size in zip(centre_keys, images.shape[1:3]))
        return cutmix(images, targets, weight, (rows, columns))


def objective_from(values: Mapping[str, Any], *, num_classes: int) -> Objective:
    """The Objective among the `values` of a training config."""
    names = ("loss", "label_smoothing", "target_threshold", "mixup", "cutmix")
    return Objective(num_classes, **{name: values[name] for name in names})


def loss_name(values: Mapping[str, Any]) -> str:
    """What the softmax cross-entropy of the labels, which evaluation measures, is called among the metrics.

    It is "loss" if the training config `values` minimises it or says nothing, and "cross_entropy" otherwise.
    """
    options = {item.name: values[item.name] for item in fields(Objective) if item.name in values}
    return "loss" if Objective(**{"num_classes": 0, **options}) == Objective(num_classes=0) else "cross_entropy"


def mixup(images: jax.Array, targets: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Blends each example with the previous one of the batch, which gets 1 - weight (Zhang et al., ICLR 2018)."""
    return _blend(images, weight), _blend(targets, weight)


def cutmix(
    images: jax.Array, targets: jax.Array, weight: jax.Array, centre: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Pastes a box of the previous example into each example (Yun et al., ICCV 2019).

    The box is centred at `centre`, (row, column), and has 1 - weight of the area before it is clipped to the image.
    The targets are blended by the clipped area.
    """
    height, width = images.shape[1:3]
    inside = jnp.ones((height, width), bool)
    for axis, (middle, size) in enumerate(zip(centre, (height, width))):
        half = (0.5 * jnp.sqrt(1 - weight) * size).astype(jnp.int32)
        positions = jax.lax.broadcasted_iota(jnp.int32, (height, width), axis)
        inside &= (positions >= middle - half) & (positions < middle + half)
    mixed = jnp.where(inside[:, :, None], jnp.roll(images, 1, axis=0), images)
    return mixed, _blend(targets, 1 - inside.mean(dtype=targets.dtype))


def _blend(values: jax.Array, weight: jax.Array) -> jax.Array:
    return weight * values + (1 - weight) * jnp.roll(values, 1, axis=0)
