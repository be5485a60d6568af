"""PyTorch weights as a checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

from convert.files import read_weights
from convert.origins import recognise
from convert.weights import to_jax
from lma_jax import create_model
from lma_jax.errors import UserError


def import_weights(weights: Path, output: Path, *, model: str | None = None) -> str:
    """Writes the weights of a file as the checkpoint 0 of a new workdir, and says what was done.

    Raises:
        UserError: the file is bad or of another network, or the workdir exists or cannot be written.
    """
    from lma_jax.training.checkpoint import Checkpoints
    from lma_jax.training.state import TrainState, split

    if output.exists():
        raise UserError(f"{output} exists already: give a new folder as --output")
    state_dict, described = read_weights(weights)
    try:
        name, num_classes = recognise(state_dict, name=model)
    except UserError as error:
        raise UserError(f"cannot import {weights}: {error}") from error
    network = nnx.eval_shape(lambda: create_model(name, num_classes=num_classes, rngs=nnx.Rngs(0)))
    _, params, batch_stats = split(to_jax(state_dict, network))
    metadata = _metadata(name, num_classes, described) | {"imported_from": str(weights.absolute())}
    try:
        with Checkpoints(output, keep=1) as checkpoints:
            checkpoints.save(TrainState(jnp.int32(0), params, batch_stats, None), metadata, top1=-1.0)
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error.strerror}") from error
    if checkpoints.newest is None:
        raise UserError(f"cannot write to {output}")
    return f"{name} with {num_classes:,} classes: {len(state_dict)} tensors of {weights} written to {output}"


def _metadata(name: str, num_classes: int, described: Mapping[str, Any]) -> dict[str, Any]:
    """What a training run would say of its checkpoint: the preprocessing of the file, or ImageNet's."""
    from configs import common
    from lma_jax.data.transforms import preprocessing_from

    config = common.get_config()
    config.model = name
    try:
        preprocessing = preprocessing_from(described["preprocessing"])
    except (KeyError, TypeError):
        preprocessing = preprocessing_from(config)
    network = {"model": name, "num_classes": num_classes, "preprocessing": vars(preprocessing)}
    return {**network, "config": config.to_dict(), "metrics": {}, "sums": {}}
