"""The images that a pair is verified on: random ones, or those of a folder."""

import numpy as np
import pytest
from PIL import Image

from convert.pair import images_for
from lma_jax.errors import UserError
from lma_jax.images import eval_image
from lma_jax.preprocessing import IMAGENET, Preprocessing

SMALL = Preprocessing(image_size=17, resize_size=20, mean=IMAGENET.mean, std=IMAGENET.std)


def test_the_images_of_a_folder_are_those_that_evaluation_sees(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / "a.png", tmp_path / "more/b.jpg"]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (24, 26, 3), np.uint8)).save(path)
    pixels = np.stack([eval_image(path.read_bytes(), SMALL) for path in paths])
    images = images_for(SMALL, count=4, folder=str(tmp_path))
    np.testing.assert_allclose(images, (pixels / 255 - np.array(SMALL.mean)) / np.array(SMALL.std), atol=1e-6)


def test_random_images_have_the_size_of_the_network_and_are_always_the_same():
    images = images_for(SMALL, count=4)
    assert (images.shape, images.dtype) == ((4, 17, 17, 3), np.float64)
    np.testing.assert_array_equal(images[:2], images_for(SMALL, count=2))


def test_unusable_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="missing does not exist"):
        images_for(SMALL, count=4, folder=str(tmp_path / "missing"))
    with pytest.raises(UserError, match="holds no images"):
        images_for(SMALL, count=4, folder=str(tmp_path))
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"bad.png cannot be decoded as an image"):
        images_for(SMALL, count=4, folder=str(tmp_path))
