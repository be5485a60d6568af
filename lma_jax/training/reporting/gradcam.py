"""Where a network looks in a few validation images, as it learns."""

import io

import jax
import numpy as np

from lma_jax import figures
from lma_jax.data.sources import Source
from lma_jax.definition import Definition, Tree
from lma_jax.errors import UserError
from lma_jax.images import BadImageError, eval_image
from lma_jax.preprocessing import Preprocessing


class GradCam:
    """Draws Grad-CAM++ of images that are spread evenly over a validation set, the same ones each time.

    Args:
        definition: the network without its weights.
        source: the validation set.
        count: number of images; those that cannot be decoded are left out.
        preprocessing: of evaluation.
        model: name of the network.
        loss: of the training, "softmax" or "sigmoid".
    """

    def __init__(
        self, definition: Definition, source: Source, count: int, *, preprocessing: Preprocessing, model: str, loss: str
    ):
        self._definition = definition
        self._source = source
        self._preprocessing = preprocessing
        self._model = model
        self._loss = loss
        self._indices = np.unique(np.linspace(0, len(source) - 1, count).round().astype(int)).tolist()
        self._images: dict[str, np.ndarray] = {}

    def draw(self, step: int, params: Tree, batch_stats: Tree) -> bytes:
        """A picture (PNG) of the images and their maps, by weights and statistics after `step`.

        It is computed by this process alone, from its own copy of the weights.

        Raises:
            UserError: the network has no Grad-CAM, or none of the images can be decoded.
        """
        own = jax.tree.map(lambda leaf: leaf.addressable_data(0), (params, batch_stats))
        self._images = self._images or self._read()
        if not self._images:
            raise UserError("no picture of Grad-CAM: none of its images can be decoded")
        try:
            figure = figures.draw_maps(
                self._definition.bind(*own),
                self._images,
                self._preprocessing,
                f"{self._model}, step {step:,}",
                class_names=self._source.class_names,
                loss=self._loss,
                report=lambda line: None,
            )
        except ValueError as error:
            raise UserError(f"no picture of Grad-CAM: {error}") from error
        buffer = io.BytesIO()
        figures.write(figure, buffer, dpi=100)
        return buffer.getvalue()

    def _read(self) -> dict[str, np.ndarray]:
        """The images by their numbers and classes."""
        images, name_of = {}, figures.labels(self._source.class_names)
        for index in self._indices:
            try:
                record = self._source.records[index]
                name = f"image {index:,}, {name_of(int(record['label']))}"
                images[name] = eval_image(record["image"], self._preprocessing)
            except (BadImageError, OSError):
                continue  # evaluation has said so
        return images
