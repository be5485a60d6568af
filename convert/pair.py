"""Networks in both frameworks with the same weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import lma_jax
import lma_torch.registry
from convert.weights import to_torch
from lma_jax.checkpoint.format import Checkpoint
from lma_jax.checkpoint.restore import restore_model
from lma_jax.errors import UserError
from lma_jax.preprocessing import IMAGENET, Preprocessing, normalize
from lma_jax.state_dict import require_fit
from lma_jax.weight_files import open_weights, to_tensor
from lma_torch.layers import Network


@dataclass(frozen=True)
class Pair:
    """A network in both frameworks.

    Attributes:
        jax_model, torch_model: the network.
        preprocessing: that of its images.
    """

    jax_model: nnx.Module
    torch_model: Network
    preprocessing: Preprocessing


def random_pair(name: str) -> Pair:
    """A network of `list_models()` with random weights, for ImageNet.

    Raises:
        UserError: there is no such network.
    """
    try:
        jax_model = nnx.jit(lambda: lma_jax.create_model(name, rngs=nnx.Rngs(0)))()
    except ValueError as error:
        raise UserError(str(error)) from error
    return Pair(jax_model, _torch_model(name, to_torch(jax_model), 1000), IMAGENET)


def restored_pair(checkpoint: Checkpoint) -> Pair:
    """The network of a checkpoint, with its weights in both frameworks.

    Raises:
        UserError: PyTorch has no such network, or an attention of the user has variables without a name there.
    """
    metadata, jax_model = checkpoint.metadata, restore_model(checkpoint)
    try:
        tensors = to_torch(jax_model)
    except ValueError as error:
        raise UserError(str(error)) from error
    torch_model = _torch_model(metadata.model, tensors, metadata.num_classes, **metadata.model_options)
    return Pair(jax_model, torch_model, metadata.preprocessing)


def exported_pair(checkpoint: Checkpoint, weights: Path) -> Pair:
    """The network of a checkpoint, in PyTorch with the weights of its export.

    Raises:
        UserError: the file is unusable, or its weights are not those of the network.
    """
    file, metadata, jax_model = open_weights(weights), checkpoint.metadata, restore_model(checkpoint)
    try:
        require_fit(jax_model, file.tensors)
        tensors = {key: to_tensor(array) for key, array in file.read().items()}
        torch_model = _torch_model(metadata.model, tensors, metadata.num_classes, **metadata.model_options)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{weights} does not fit the checkpoint, a {metadata.model}: {error}") from error
    return Pair(jax_model, torch_model, metadata.preprocessing)


def images_for(preprocessing: Preprocessing, *, count: int, folder: str | None = None) -> np.ndarray:
    """Images to verify a pair on, normalised: (N, H, W, 3).

    Args:
        preprocessing: that of the network.
        count: number of random images.
        folder: folder of images to use instead, as evaluation sees them.

    Raises:
        UserError: the folder holds no images, or one of them cannot be read.
    """
    if folder is None:
        size = preprocessing.image_size
        return np.random.default_rng(0).normal(size=(count, size, size, 3))
    from lma_jax.images import image_files, read_image

    pixels = [read_image(path, preprocessing) for path in image_files(folder)]
    return np.asarray(normalize(jnp.stack(pixels), preprocessing))


def _torch_model(name: str, state_dict: dict[str, torch.Tensor], num_classes: int, **options: Any) -> Network:
    """A network of lma_torch with these weights; a RuntimeError if they do not fit.

    Raises:
        UserError: lma_torch has no such network.
    """
    if problem := lma_torch.registry.problem_with(name):
        raise UserError(f"{name} is to be registered in lma_torch too: {problem}")
    model = lma_torch.create_model(name, num_classes=num_classes, device="meta", **options)
    model.load_state_dict(state_dict, assign=True)
    return model
