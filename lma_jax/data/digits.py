"""The embedded data set: scikit-learn's 1,797 handwritten digits, 8 x 8 pixels in grey, as a TFDS build."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,437 digits for training and 360, every fifth one, for testing, so that every writer is in both splits."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Optical recognition of handwritten digits (UCI), as shipped by scikit-learn.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {"train": self._generate_examples(held_out=False), "test": self._generate_examples(held_out=True)}

    def _generate_examples(self, held_out: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        for index, (pixels, label) in enumerate(zip(digits.images, digits.target)):
            if (index % 5 == 0) == held_out:
                png = io.BytesIO()
                Image.fromarray(np.round(pixels * (255 / 16)).astype(np.uint8)).save(png, "png")
                yield index, {"image": png.getvalue(), "label": int(label)}
