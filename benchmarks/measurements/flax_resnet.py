"""ResNet-50 as Flax's ImageNet example builds it (flax/examples/imagenet), from flax.linen's own layers.

It has the convolutions and the number of parameters of this project's ResNet-50: both are the v1.5 form.
"""

from functools import partial

import jax
from flax import linen

DEPTHS = (3, 4, 6, 3)
WIDTH = 64

convolution = partial(linen.Conv, use_bias=False)


class Bottleneck(linen.Module):
    """1x1, 3x3 and 1x1 convolutions and the shortcut. Its output has 4 * planes channels."""

    planes: int
    stride: int
    training: bool

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = partial(linen.BatchNorm, use_running_average=not self.training, momentum=0.9)
        strides, channels = (self.stride, self.stride), 4 * self.planes
        y = linen.relu(norm()(convolution(self.planes, (1, 1))(x)))
        y = linen.relu(norm()(convolution(self.planes, (3, 3), strides)(y)))
        y = norm(scale_init=linen.initializers.zeros)(convolution(channels, (1, 1))(y))
        if x.shape != y.shape:
            x = norm()(convolution(channels, (1, 1), strides)(x))
        return linen.relu(x + y)


class ResNet50(linen.Module):
    """ResNet-50 for images of shape (N, H, W, 3); "params" and "batch_stats" are its variables."""

    num_classes: int = 1000

    @linen.compact
    def __call__(self, x: jax.Array, *, training: bool) -> jax.Array:
        x = convolution(WIDTH, (7, 7), (2, 2), padding=3)(x)
        x = linen.relu(linen.BatchNorm(use_running_average=not training, momentum=0.9)(x))
        x = linen.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for stage, depth in enumerate(DEPTHS):
            for number in range(depth):
                stride = 2 if stage > 0 and number == 0 else 1
                x = Bottleneck(WIDTH * 2**stage, stride, training)(x)
        return linen.Dense(self.num_classes)(x.mean((1, 2)))
