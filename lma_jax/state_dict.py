"""The weights of a network as a PyTorch state_dict of NumPy arrays, and back.

Module paths are the same in both frameworks ("layer1.0.conv1"). Only the variables of a layer have other names and
axes, and the table LAYERS lists them by the kind of layer. Nothing here knows a network, and PyTorch is not needed.

A module with variables of its own declares those that have the same name and axes in PyTorch:

    class Scale(nnx.Module):
        same_in_torch = ("weight", "bias")
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lma_jax.layers import BatchNorm

Model = TypeVar("Model", bound=nnx.Module)
StateDict = Mapping[str, np.ndarray]


class Shaped(Protocol):
    """An array or a tensor, or what is known of one in a file."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...


@dataclass(frozen=True)
class Entry:
    """A variable of a layer.

    Attributes:
        jax_name, torch_name: its name in each framework.
        axes: the order in which PyTorch has JAX's axes; None where it is the same.
    """

    jax_name: str
    torch_name: str
    axes: tuple[int, ...] | None = None

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """A view of a variable with PyTorch's axes."""
        return array if self.axes is None else array.transpose(self.axes)

    def to_jax(self, array: np.ndarray) -> np.ndarray:
        """A view of a variable with JAX's axes."""
        return array if self.axes is None else array.transpose(np.argsort(self.axes).tolist())

    def torch_shape(self, jax_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in PyTorch of a variable with `jax_shape` in JAX."""
        return tuple(jax_shape) if self.axes is None else tuple(jax_shape[axis] for axis in self.axes)


LAYERS: dict[type[nnx.Module], tuple[Entry, ...]] = {
    nnx.Conv: (Entry("kernel", "weight", (3, 2, 0, 1)), Entry("bias", "bias")),  # HWIO -> OIHW
    nnx.Linear: (Entry("kernel", "weight", (1, 0)), Entry("bias", "bias")),
    BatchNorm: (
        Entry("scale", "weight"),
        Entry("bias", "bias"),
        Entry("mean", "running_mean"),
        Entry("var", "running_var"),
    ),
    nnx.LayerNorm: (Entry("scale", "weight"), Entry("bias", "bias")),
    nnx.GroupNorm: (Entry("scale", "weight"), Entry("bias", "bias")),
}
# PyTorch's BatchNorm counts its batches. Nothing in these networks reads the count.
BATCH_COUNT = "num_batches_tracked"
# The last linear layer of the backbones.
HEADS = ("fc.weight", "classifier.1.weight")


def to_state_dict(model: nnx.Module) -> dict[str, np.ndarray]:
    """The weights of `model` by PyTorch's names and with PyTorch's axes.

    The arrays keep the dtypes of the model (bfloat16 is that of ml_dtypes). They may share its memory.

    Raises:
        ValueError: the table does not cover some variables of the model; all are named.
    """
    _require_known_variables(model)
    state_dict: dict[str, np.ndarray] = {}
    for layer, entry, variable in _variables(model):
        state_dict[f"{layer}{entry.torch_name}"] = entry.to_torch(np.asarray(variable[...]))
        if entry.torch_name == "running_var":
            state_dict[f"{layer}{BATCH_COUNT}"] = np.array(0)
    return state_dict


def from_state_dict(model: Model, state_dict: StateDict) -> Model:
    """Fills `model` with the weights of a state_dict and returns it.

    Values are copied and cast to the dtypes of the model, which may hold shapes alone (`nnx.eval_shape`). An error
    leaves the model unchanged.

    Raises:
        ValueError: entries are missing, unexpected, of another shape or no floating-point numbers, or the table does
            not cover some variables of the model; all are named.
    """
    require_fit(model, state_dict)
    for layer, entry, variable in _variables(model):
        value = entry.to_jax(state_dict[f"{layer}{entry.torch_name}"])
        # A copy, since the array may change. NumPy casts it: jnp.array would compile a program for each shape.
        variable.set_value(jax.device_put(np.array(value, variable.dtype, order="C")))
    return model


def require_fit(model: nnx.Module, given: Mapping[str, Shaped]) -> None:
    """Checks that entries are those of a network, of which only names, shapes and dtypes matter.

    Raises:
        ValueError: as `from_state_dict`.
    """
    _require_known_variables(model)
    unexpected = {key: None for key in given if key.rpartition(".")[2] != BATCH_COUNT}
    problems = []
    for layer, entry, variable in _variables(model):
        key = f"{layer}{entry.torch_name}"
        expected = entry.torch_shape(variable.shape)
        if key not in given:
            problems.append(f"missing {key} {expected}")
            continue
        del unexpected[key]
        shape, dtype = tuple(given[key].shape), given[key].dtype
        if shape != expected:
            problems.append(f"mis-shaped {key} {shape}, the model has {expected}")
        elif not jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
            problems.append(f"{key} of {dtype}, not of floating-point numbers")
    problems += [f"unexpected {key} {tuple(given[key].shape)}" for key in unexpected]
    if problems:
        raise ValueError(f"the weights do not fit the model, {len(problems)} problems: " + "; ".join(problems))


def num_classes_of(state_dict: Mapping[str, Shaped]) -> int | None:
    """The number of outputs of a network's last layer; None if a state_dict (arrays or tensors) has no such layer."""
    return next(
        (state_dict[key].shape[0] for key in HEADS if key in state_dict and len(state_dict[key].shape) == 2), None
    )


def _variables(model: nnx.Module) -> Iterator[tuple[str, Entry, nnx.Variable]]:
    """The variables that are known, each with the prefix of its layer ("layer1.0.conv1.") and its entry."""
    for path, module in nnx.iter_modules(model):
        for entry in _entries(module):
            variable = getattr(module, entry.jax_name)
            if variable is not None:
                yield "".join(f"{part}." for part in path), entry, variable


def _entries(module: nnx.Module) -> tuple[Entry, ...]:
    layer = next((LAYERS[kind] for kind in type(module).__mro__ if kind in LAYERS), ())
    return (*layer, *(Entry(name, name) for name in getattr(module, "same_in_torch", ())))


def _require_known_variables(model: nnx.Module) -> None:
    state = nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    known = {f"{layer}{entry.jax_name}" for layer, entry, _ in _variables(model)}
    unknown = sorted({".".join(map(str, path)) for path, _ in state} - known)
    if unknown:
        shown = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        raise ValueError(
            f"{shown} cannot be named in PyTorch: a layer declares variables of its own, such as "
            f"same_in_torch = ({unknown[0].rpartition('.')[2]!r},)"
        )
