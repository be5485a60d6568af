"""PyTorch weights as a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

from convert.files import read_weights
from convert.origins import recognise
from convert.weights import to_jax
from lma_jax import create_model
from lma_jax.errors import UserError


@dataclass(frozen=True)
class Imported:
    """A network with the weights of a file.

    Attributes:
        model: the network, in float32 and in training mode.
        name: one of list_models().
        num_classes: size of the output.
        described: the metadata of the file.
    """

    model: nnx.Module
    name: str
    num_classes: int
    described: Mapping[str, Any]


def read_network(weights: Path, *, model: str | None = None) -> Imported:
    """The network of a file of PyTorch weights, which must be `model` where that is given.

    Raises:
        UserError: the file is bad, or of another network; all differences are named.
    """
    state_dict, described = read_weights(weights)
    try:
        name, num_classes = recognise(state_dict, name=model)
    except UserError as error:
        raise UserError(f"cannot use {weights}: {error}") from error
    network = nnx.eval_shape(lambda: create_model(name, num_classes=num_classes, rngs=nnx.Rngs(0)))
    return Imported(to_jax(state_dict, network), name, num_classes, described)


def import_weights(weights: Path, output: Path, *, model: str | None = None) -> str:
    """Writes the weights of a file as the checkpoint 0 of a new workdir, and says what was done.

    Raises:
        UserError: the file is bad or of another network, or the workdir exists or cannot be written.
    """
    from lma_jax.checkpoint.manager import Checkpoints
    from lma_jax.definition import split
    from lma_jax.training.state import TrainState

    if output.exists():
        raise UserError(f"{output} exists already: give a new folder as --output")
    imported = read_network(weights, model=model)
    _, params, batch_stats = split(imported.model)
    metadata = _metadata(imported) | {"imported_from": str(weights.absolute())}
    try:
        with Checkpoints(output, keep=1) as checkpoints:
            checkpoints.save(TrainState(jnp.int32(0), params, batch_stats, None), metadata, top1=-1.0)
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error.strerror}") from error
    if checkpoints.newest is None:
        raise UserError(f"cannot write to {output}")
    return f"{imported.name} with {imported.num_classes:,} classes: weights of {weights} written to {output}"


def _metadata(imported: Imported) -> dict[str, Any]:
    """What a training run would say of its checkpoint: the preprocessing of the file, or ImageNet's."""
    from configs import common
    from lma_jax.preprocessing import preprocessing_from

    config = common.get_config()
    config.model = imported.name
    try:
        preprocessing = preprocessing_from(imported.described["preprocessing"])
    except (KeyError, TypeError):
        preprocessing = preprocessing_from(config)
    network = {"model": imported.name, "num_classes": imported.num_classes, "preprocessing": vars(preprocessing)}
    return {**network, "config": config.to_dict(), "metrics": {}, "sums": {}}
