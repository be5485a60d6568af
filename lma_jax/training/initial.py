"""The weights from which a run starts: those of another run, of a file, or of a plain network."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

from lma_jax import files, state_dict
from lma_jax.checkpoint.format import Arrays, load_checkpoint, to_arrays
from lma_jax.checkpoint.restore import fill, restore_model
from lma_jax.definition import split
from lma_jax.errors import UserError
from lma_jax.recipes import defaults
from lma_jax.registry import create_model, recorded_options
from lma_jax.training.graft import graft_lma
from lma_jax.training.state import TrainState
from lma_jax.weight_files import SUFFIXES, differing_options, open_weights, options_of, within

# The options of networks that give weights their shapes, all of which a file shows.
SHAPING = ("stem", "width", "width_mult")
HEADS = tuple(f"params/{name.removesuffix('weight').replace('.', '/')}" for name in state_dict.HEADS)


def load_initial(
    config: ConfigDict, state: TrainState, *, class_names: Sequence[str] | None = None
) -> tuple[TrainState, str]:
    """Replaces the weights of `state` by those of config.init_from.

    The head keeps its random weights if it was trained on other classes, by their count or their names. Where the names
    are the same in another order, its classes are brought into the order of `class_names`.

    Args:
        config: the recipe.
        state: the state of a new run.
        class_names: names of the classes of its data; None where they are unknown.

    Returns:
        The state, and a message that says where the weights came from.

    Raises:
        UserError: the weights are missing or damaged, or of another network; the differences are named.
    """
    exact = config.warm_start == "exact"
    name = config.model.removesuffix("_lma") if exact else config.model
    model, known, shown = _read_model(files.path_of(config.init_from), name)
    origin = f"weights of {config.init_from}"
    if exact:
        options = recorded_options(config.model, config)
        model = graft_lma(model, _shapes(config.model, num_classes=_num_classes(_arrays_of(model)), **options))
        origin += ", with LMA layers that leave its function unchanged"
    arrays, wanted = _arrays_of(model), to_arrays({"params": state.params, "batch_stats": state.batch_stats})
    head, said = _fitted_head(arrays, wanted, known, class_names)
    arrays, origin = arrays | head, origin + said
    arrays = {path: array.astype(wanted[path].dtype) if path in wanted else array for path, array in arrays.items()}

    def filled() -> dict[str, Any]:
        options: dict[str, Any] = dict(sharding=state.step.sharding, source=config.init_from)
        return {
            "params": fill(state.params, arrays, prefix="params/", **options),
            "batch_stats": fill(state.batch_stats, arrays, prefix="batch_stats/", **options),
        }

    try:
        # Two copies: the step donates both.
        return replace(state, **filled(), ema=filled() if state.ema else None), origin
    except UserError:
        _require_shape(config, shown)
        raise


def _fitted_head(
    arrays: Arrays, wanted: Arrays, known: Sequence[str] | None, class_names: Sequence[str] | None
) -> tuple[Arrays, str]:
    """What takes the place of the head in `arrays`, whose classes are `known`, and what to say about it."""
    fresh = {path: array for path, array in wanted.items() if path.startswith(HEADS)}
    new_head = fresh, f", with a new head of {_num_classes(wanted):,} classes"
    if any(path in arrays and arrays[path].shape != array.shape for path, array in fresh.items()):
        return new_head
    if known is None or class_names is None or list(known) == list(class_names):
        return {}, ""
    if set(known) != set(class_names):
        return new_head
    order = [list(known).index(name) for name in class_names]
    in_order = {path: arrays[path][..., order] for path in fresh}
    return in_order, ", with its classes in the order of this data"


def _require_shape(config: ConfigDict, shown: Mapping[str, Any]) -> None:
    """Raises a UserError if the network of a config has other options than the weights that it starts from, `shown`."""
    common = defaults()
    theirs = {name: shown.get(name, common[name]) for name in SHAPING}
    others = differing_options(theirs, config)
    if others:
        has, wants = (", ".join(f"{name}={values[name]!r}" for name in others) for values in (theirs, config))
        remedy = " ".join(f"--config.{name}={theirs[name]}" for name in others)
        raise UserError(f"config.init_from={config.init_from} has {has}, the config {wants}: add {remedy}")


def _read_model(path: Path, name: str) -> tuple[nnx.Module, Sequence[str] | None, Mapping[str, Any]]:
    """The network `name` with the weights of a workdir, a weights file or a folder of the Hugging Face Hub.

    Returns:
        The network, its class names if they are known, and its options.
    """
    path = within(path)
    if path.suffix not in SUFFIXES:
        checkpoint = load_checkpoint(path)
        if checkpoint.metadata.model != name:
            raise UserError(f"config.init_from={path} is a {checkpoint.metadata.model}, but a {name} is needed")
        return restore_model(checkpoint), checkpoint.metadata.class_names, checkpoint.metadata.model_options
    file = open_weights(path)
    num_classes = state_dict.num_classes_of(file.tensors) or 1000
    options = recorded_options(name, options_of(file.tensors))
    try:
        model = _shapes(name, num_classes=num_classes, **options)
        state_dict.require_fit(model, file.tensors)
    except ValueError as error:
        raise UserError(f"cannot use {path} as weights of {name}: {error}") from error
    return state_dict.from_state_dict(model, file.read()), _class_names(file.metadata.get("class_names")), options


def _class_names(described: Any) -> list[str] | None:
    """Class names in the metadata of a file; None if they are none."""
    named = isinstance(described, list) and all(isinstance(name, str) for name in described)
    return described if named else None


def _shapes(name: str, **options: Any) -> nnx.Module:
    """A network whose variables hold shapes alone."""
    return nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0), **options))


def _arrays_of(model: nnx.Module) -> Arrays:
    _, params, batch_stats = split(model)
    return to_arrays({"params": params, "batch_stats": batch_stats})


def _num_classes(arrays: Arrays) -> int:
    """The size of the head."""
    return next(len(array) for path, array in arrays.items() if path.startswith(HEADS) and path.endswith("bias"))
