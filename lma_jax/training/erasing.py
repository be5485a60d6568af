"""Random erasing (Zhong et al., AAAI 2020), as torchvision's RandomErasing with its defaults."""

import jax
import jax.numpy as jnp

AREA = (0.02, 0.33)
RATIO = (0.3, 3.3)
TRIES = 10


def random_erasing(key: jax.Array, images: jax.Array, probability: float) -> jax.Array:
    """Sets a rectangle of some images to 0, which is the mean colour of normalised images.

    Its area is uniform in AREA times that of the image, its ratio of height to width log-uniform in RATIO. Of TRIES
    rectangles the first that is smaller than the image in both directions is taken; without one, nothing is erased.

    Args:
        key: of the batch; each image has its own rectangle.
        images: normalised images (N, H, W, C).
        probability: that an image is erased.
    """
    return jax.vmap(lambda key, image: _erased(key, image, probability))(jax.random.split(key, len(images)), images)


def _erased(key: jax.Array, image: jax.Array, probability: float) -> jax.Array:
    size = jnp.asarray(image.shape[:2])
    choice_key, place_key, shape_key = jax.random.split(key, 3)
    shapes = rectangles(shape_key, image.shape[0], image.shape[1])
    fits = (shapes < size).all(1)
    shape = shapes[jnp.argmax(fits)]
    start = jax.random.randint(place_key, (2,), 0, size - shape + 1)
    axes = (jnp.arange(length) for length in image.shape[:2])
    rows, columns = ((axis >= first) & (axis < first + extent) for axis, first, extent in zip(axes, start, shape))
    erases = jax.random.bernoulli(choice_key, probability) & fits.any()
    return jnp.where((erases & rows[:, None] & columns)[..., None], 0, image)


def rectangles(key: jax.Array, height: int, width: int) -> jax.Array:
    """Draws TRIES rectangles for an image, (TRIES, 2): height and width in pixels, which may not fit into it."""
    area_key, ratio_key = jax.random.split(key)
    areas = height * width * jax.random.uniform(area_key, (TRIES,), minval=AREA[0], maxval=AREA[1])
    low, high = jnp.log(jnp.asarray(RATIO))
    ratios = jnp.exp(jax.random.uniform(ratio_key, (TRIES,), minval=low, maxval=high))
    return jnp.round(jnp.sqrt(jnp.stack([areas * ratios, areas / ratios], 1))).astype(jnp.int32)
