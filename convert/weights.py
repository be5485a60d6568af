"""The weight map between lma_jax and lma_torch: one table of layers, used in both directions.

Module paths are equal in the two frameworks ("layer1.0.conv1"), so that only the variables of a layer are
named and laid out differently. Nothing here knows a network.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from lma_jax.attention.channel import SRM
from lma_jax.attention.mixed import MCA, SA, SGE
from lma_jax.layers import BatchNorm


@dataclass(frozen=True)
class Entry:
    """A variable of a layer: its two names, and the axes that `transpose` takes from JAX's layout to PyTorch's."""

    jax_name: str
    torch_name: str
    axes: tuple[int, ...] = (0,)

    @property
    def inverse_axes(self) -> tuple[int, ...]:
        return tuple(np.argsort(self.axes).tolist())


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
    SA: tuple(Entry(name, name) for name in ("weight_c", "bias_c", "weight_s", "bias_s")),
    SRM: (Entry("weight", "weight", (0, 1)),),
    SGE: (Entry("weight", "weight"), Entry("bias", "bias")),
    MCA: tuple(Entry(name, name) for name in ("weight_c", "weight_h", "weight_w")),
}
# PyTorch's BatchNorm counts its batches; nothing in these networks reads the count.
BATCH_COUNT = "num_batches_tracked"


def to_torch(jax_model: nnx.Module) -> dict[str, torch.Tensor]:
    """The weights of `jax_model` as a state_dict for `lma_torch.create_model` of the same name.

    The tensors own their memory and keep their dtype.

    Raises:
        ValueError: some variables of the model stand in no row of the table; all are named.
    """
    _require_known_variables(jax_model)
    state_dict = {}
    for layer, entry, variable in _variables(jax_model):
        state_dict[f"{layer}{entry.torch_name}"] = _to_tensor(np.asarray(variable[...]).transpose(entry.axes))
        if entry.torch_name == "running_var":
            state_dict[f"{layer}{BATCH_COUNT}"] = torch.tensor(0)
    return state_dict


def to_jax(state_dict: Mapping[str, torch.Tensor], jax_model: nnx.Module) -> nnx.Module:
    """Fills `jax_model` with the weights of a PyTorch `state_dict` and returns it.

    Values are cast to the dtypes of the model. The model is left as it was when an error is raised.

    Raises:
        ValueError: entries are missing, unexpected or of another shape; all are named.
    """
    _require_known_variables(jax_model)
    unexpected = [key for key in state_dict if key.rpartition(".")[2] != BATCH_COUNT]
    problems = []
    values = []
    for layer, entry, variable in _variables(jax_model):
        key = f"{layer}{entry.torch_name}"
        expected = tuple(variable.shape[axis] for axis in entry.axes)
        if key not in state_dict:
            problems.append(f"missing {key} {expected}")
            continue
        unexpected.remove(key)
        tensor = state_dict[key]
        if tuple(tensor.shape) != expected:
            problems.append(f"mis-shaped {key} {tuple(tensor.shape)}, the model has {expected}")
            continue
        values.append((variable, _to_numpy(tensor).transpose(entry.inverse_axes)))
    problems += [f"unexpected {key} {tuple(state_dict[key].shape)}" for key in unexpected]
    if problems:
        raise ValueError(f"the weights do not fit the model, {len(problems)} problems: " + "; ".join(problems))
    for variable, value in values:
        variable.set_value(jnp.array(value, variable.dtype))  # a copy: the tensors may change
    return jax_model


def _variables(model: nnx.Module) -> Iterator[tuple[str, Entry, nnx.Variable]]:
    """Every variable of the model that the table names, with the prefix of its layer's names ("layer1.0.conv1.")."""
    for path, module in nnx.iter_modules(model):
        for entry in next((LAYERS[kind] for kind in type(module).__mro__ if kind in LAYERS), ()):
            variable = getattr(module, entry.jax_name)
            if variable is not None:
                yield "".join(f"{part}." for part in path), entry, variable


def _require_known_variables(model: nnx.Module) -> None:
    state = nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    known = {f"{layer}{entry.jax_name}" for layer, entry, _ in _variables(model)}
    unknown = sorted({".".join(map(str, path)) for path, _ in state} - known)
    if unknown:
        raise ValueError("no row of convert.weights.LAYERS covers " + ", ".join(unknown))


def _to_tensor(array: np.ndarray) -> torch.Tensor:
    if array.dtype == jnp.bfloat16:
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(np.array(array, order="C"))


def _to_numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    tensor = tensor.detach().cpu()
    return tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
