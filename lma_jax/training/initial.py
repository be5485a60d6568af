"""The weights from which a run starts: those of another run, of a file, or of a plain network."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

from lma_jax import state_dict
from lma_jax.checkpoint.format import Arrays, load_checkpoint, to_arrays
from lma_jax.checkpoint.restore import fill, restore_model
from lma_jax.definition import split
from lma_jax.errors import UserError
from lma_jax.registry import create_model
from lma_jax.training.graft import graft_lma
from lma_jax.training.state import TrainState
from lma_jax.weight_files import SUFFIXES, open_weights

HEADS = tuple(f"params/{name.removesuffix('weight').replace('.', '/')}" for name in state_dict.HEADS)


def load_initial(config: ConfigDict, state: TrainState) -> tuple[TrainState, str]:
    """Replaces the weights of `state` by those of config.init_from.

    A head of another class count keeps its random weights.

    Returns:
        The state, and a message that says where the weights came from.

    Raises:
        UserError: the weights are missing or damaged, or of another network; the differences are named.
    """
    exact = config.warm_start == "exact"
    model = _read_model(Path(config.init_from), config.model.removesuffix("_lma") if exact else config.model)
    origin = f"weights of {config.init_from}"
    if exact:
        model = graft_lma(model, _shapes(config.model, num_classes=_num_classes(_arrays_of(model))))
        origin += ", with LMA layers that leave its function unchanged"
    arrays, wanted = _arrays_of(model), to_arrays({"params": state.params, "batch_stats": state.batch_stats})
    head = {path: array for path, array in wanted.items() if path.startswith(HEADS)}
    if any(path in arrays and arrays[path].shape != array.shape for path, array in head.items()):
        arrays |= head
        origin += f", with a new head of {_num_classes(wanted):,} classes"
    arrays = {path: array.astype(wanted[path].dtype) if path in wanted else array for path, array in arrays.items()}

    def filled() -> dict[str, Any]:
        options: dict[str, Any] = dict(sharding=state.step.sharding, source=config.init_from)
        return {
            "params": fill(state.params, arrays, prefix="params/", **options),
            "batch_stats": fill(state.batch_stats, arrays, prefix="batch_stats/", **options),
        }

    # Two copies: the step donates both.
    return replace(state, **filled(), ema=filled() if state.ema else None), origin


def _read_model(path: Path, name: str) -> nnx.Module:
    """The network `name` with the weights of a workdir or of a weights file."""
    if path.suffix not in SUFFIXES:
        checkpoint = load_checkpoint(path)
        if checkpoint.metadata.model != name:
            raise UserError(f"config.init_from={path} is a {checkpoint.metadata.model}, but a {name} is needed")
        return restore_model(checkpoint)
    file = open_weights(path)
    model = _shapes(name, num_classes=state_dict.num_classes_of(file.tensors) or 1000)
    try:
        state_dict.require_fit(model, file.tensors)
    except ValueError as error:
        raise UserError(f"cannot use {path} as weights of {name}: {error}") from error
    return state_dict.from_state_dict(model, file.read())


def _shapes(name: str, *, num_classes: int) -> nnx.Module:
    """A network whose variables hold shapes alone."""
    return nnx.eval_shape(lambda: create_model(name, num_classes=num_classes, rngs=nnx.Rngs(0)))


def _arrays_of(model: nnx.Module) -> Arrays:
    _, params, batch_stats = split(model)
    return to_arrays({"params": params, "batch_stats": batch_stats})


def _num_classes(arrays: Arrays) -> int:
    """The size of the head."""
    return next(len(array) for path, array in arrays.items() if path.startswith(HEADS) and path.endswith("bias"))
