"""Weight files: a state_dict of NumPy arrays and its metadata in .safetensors or .pth. Only .pth needs PyTorch.

The names are those of this project, which are torchvision's and those of the paper's authors. What training scripts
and other projects write differently is translated when a file is read.
"""

import contextlib
import io
import json
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import ml_dtypes
import numpy as np

from lma_jax import files
from lma_jax.errors import UserError

if TYPE_CHECKING:
    import torch

SUFFIXES = (".safetensors", ".pth")
# The keys under which training scripts keep the state_dict, and the prefixes that wrappers of modules add to names.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network")
PREFIXES = ("module.", "_orig_mod.", "model.")

StateDict = Mapping[str, np.ndarray]


def require_suffix(path: Path, suffixes: Iterable[str] = SUFFIXES) -> None:
    """Raises a UserError if a path ends with none of `suffixes`, by default those of weight files."""
    if path.suffix not in suffixes:
        raise UserError(f"{path} must end in {' or '.join(suffixes)}")


def write_weights(path: Path, state_dict: StateDict, metadata: Mapping[str, Any]) -> None:
    """Writes a weight file atomically.

    A .safetensors file has the metadata in its header, a JSON string for each key. A .pth file holds the state_dict,
    ready for `load_state_dict`, with the metadata as its attribute `metadata`.

    Raises:
        UserError: the suffix is another, a package is missing, or the file cannot be written.
    """
    require_suffix(path)
    serialize = _safetensors if path.suffix == ".safetensors" else _pth
    files.write(path, serialize(state_dict, metadata))


def read_weights(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The state_dict of a file in this project's names, and its metadata (empty if another program wrote the file).

    A state_dict within a dictionary of a training script is found, prefixes such as "module." are removed, and timm's
    names are translated. A .pth file is loaded as data: nothing in it is executed.

    Raises:
        UserError: the file is missing or damaged, needs code to load, or holds no state_dict, or a package is missing.
    """
    require_suffix(path)
    if not path.is_file():
        raise UserError(f"weights file {path} does not exist")
    content, metadata = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pth(path)
    try:
        state_dict = unwrap(content)
    except UserError as error:
        raise UserError(f"cannot use {path}: {error}") from error
    if path.suffix == ".pth":
        state_dict = {key: to_array(tensor) for key, tensor in state_dict.items()}
    return state_dict, metadata


def unwrap(content: Any) -> dict[str, Any]:
    """The state_dict within the content of a file, in this project's names.

    Args:
        content: arrays or tensors by name, or a dictionary that holds them as a training script does.

    Raises:
        UserError: there is none.
    """
    while isinstance(content, Mapping) and not _is_state_dict(content):
        inside = [content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)]
        if not inside:
            break
        content = inside[0]
    if not _is_state_dict(content):
        found = f"entries {', '.join(map(str, list(content)[:5]))}" if isinstance(content, Mapping) else type(content)
        raise UserError(f"it holds no state_dict (a mapping of names to tensors), but {found}")
    state_dict = dict(content)
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in state_dict)), None):
        state_dict = {key.removeprefix(prefix): value for key, value in state_dict.items()}
    # timm calls the attention of a block `se`.
    return {re.sub(r"^(layer\d\.\d+)\.se\.", r"\1.attention.", key): value for key, value in state_dict.items()}


def to_tensor(array: np.ndarray) -> "torch.Tensor":
    """A tensor with memory of its own and the dtype of the array."""
    import torch

    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(np.array(array, order="C").view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.array(array, order="C"))


def to_array(tensor: "torch.Tensor") -> np.ndarray:
    """The values of a tensor in its dtype; the memory may be shared."""
    import torch

    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _safetensors(state_dict: StateDict, metadata: Mapping[str, Any]) -> bytes:
    save = _safetensors_package().numpy.save
    arrays = {key: np.asarray(array, order="C") for key, array in state_dict.items()}
    return save(arrays, {key: json.dumps(value) for key, value in metadata.items()})


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    package = _safetensors_package()
    try:
        with package.safe_open(path, "np") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, _parsed(file.metadata() or {})  # noqa: SIM118
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, package.SafetensorError) as error:
        _refuse(path, error)


def _pth(state_dict: StateDict, metadata: Mapping[str, Any]) -> bytes:
    torch = _torch_package()
    ordered, buffer = OrderedDict((key, to_tensor(array)) for key, array in state_dict.items()), io.BytesIO()
    ordered.metadata = dict(metadata)  # type: ignore[attr-defined]
    torch.save(ordered, buffer)
    return buffer.getvalue()


def _read_pth(path: Path) -> tuple[Any, dict[str, Any]]:
    torch = _torch_package()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old pickle protocols
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        needed = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it needs the code of {needed[1]} to load" if needed else str(error).splitlines()[0]
        raise UserError(f"cannot read {path}: {reason}; save the state_dict() of the model alone") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
        _refuse(path, error)
    metadata = getattr(content, "metadata", {})
    return content, metadata if isinstance(metadata, dict) else {}


def _refuse(path: Path, error: Exception) -> NoReturn:
    raise UserError(f"cannot read {path}: {str(error).splitlines()[0] if str(error) else repr(error)}") from error


def _parsed(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The metadata that are JSON, as this project writes them; those of other programs ("format": "pt") are not."""
    parsed = {}
    for key, value in metadata.items():
        with contextlib.suppress(ValueError):
            parsed[key] = json.loads(value)
    return parsed


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(key, str) and hasattr(value, "shape") for key, value in content.items())
    )


def _safetensors_package() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise UserError("a .safetensors file needs safetensors: pip install safetensors") from error
    return safetensors


def _torch_package() -> Any:
    try:
        import torch
    except ImportError as error:
        raise UserError("a .pth file needs PyTorch: pip install torch") from error
    return torch
