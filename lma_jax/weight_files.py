"""Weight files: a state_dict of NumPy arrays and its metadata in .safetensors or .pth. Only .pth needs PyTorch.

The names are those of this project, which are torchvision's and those of the paper's authors. What training scripts
and other libraries write differently is translated when a file is read (naming.py).

A file is opened before it is read: names, shapes, dtypes and metadata first, which are bounded, and the tensors when
they are those of the network. A digest of tensors and metadata, which every file of this project carries, shows damage.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import struct
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from lma_jax import files
from lma_jax.errors import UserError
from lma_jax.naming import to_own_names
from lma_jax.pickled import Contents, NeedsCodeError, read_pickled
from lma_jax.stored import HEADER_LIMIT, Stored, UnusableError, require_apart

if TYPE_CHECKING:
    import torch

SUFFIXES = (".safetensors", ".pth")
# The keys under which training scripts keep the state_dict, and the prefixes that wrappers of modules add to names.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network")
PREFIXES = ("module.", "_orig_mod.", "model.")
DIGEST = "digest"
# The weights in a folder of the Hugging Face Hub.
HUB_WEIGHTS = "model.safetensors"
# Ten times the entries of the largest network here, and twice their longest name.
MOST_ENTRIES = 10_000
LONGEST_NAME = 200
# The dtypes of .safetensors that can be read, by PyTorch's names.
SAFETENSORS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64"}

StateDict = Mapping[str, np.ndarray]


def require_suffix(path: Path, suffixes: Iterable[str] = SUFFIXES) -> None:
    """Raises a UserError if a path ends with none of `suffixes`, by default those of weight files."""
    if path.suffix not in suffixes:
        raise UserError(f"{path} must end in {' or '.join(suffixes)}")


def within(path: Path) -> Path:
    """The weights in a folder of the Hugging Face Hub; any other path, such as that of a run, stays as it is."""
    inside = path / HUB_WEIGHTS
    return inside if os.path.isfile(inside) and not os.path.isdir(path / "checkpoints") else path


@dataclass(frozen=True)
class WeightFile:
    """A weight file whose tensors have not been read.

    Attributes:
        path: the file.
        tensors: its tensors by name, in this project's names.
        metadata: its metadata, empty if another program wrote it.
        digest: that of tensors and metadata, None if another program wrote it.
    """

    path: Path
    tensors: Mapping[str, Stored]
    metadata: Mapping[str, Any]
    digest: Any

    def read(self) -> dict[str, np.ndarray]:
        """The tensors, whose values are those of a network.

        Raises:
            UserError: as `read_any`; some values are not finite, or variances below zero.
        """
        arrays = self.read_any()
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise UserError(f"cannot use {self.path}: {name} has values that are not finite")
            if name.endswith("running_var") and (array < 0).any():
                raise UserError(f"cannot use {self.path}: {name} has variances below zero")
        return arrays

    def read_any(self) -> dict[str, np.ndarray]:
        """The tensors, whatever their values are.

        Raises:
            UserError: the file cannot be read, or they or the metadata differ from the digest.
        """
        try:
            with self.path.open("rb") as file:
                arrays = {name: tensor.read(file) for name, tensor in self.tensors.items()}
            is_intact = self.digest in (None, digest_of(arrays, self.metadata))
        except (OSError, ValueError, RecursionError) as error:
            raise _unreadable(self.path, error) from error
        if not is_intact:
            raise UserError(
                f"cannot read {self.path}: its tensors or metadata differ from their digest; it is damaged, or was "
                "changed since its export"
            )
        return arrays


def write_weights(path: Path, state_dict: StateDict, metadata: Mapping[str, Any]) -> None:
    """Writes a weight file atomically, with a digest of its tensors and metadata.

    A .safetensors file has the metadata in its header, a JSON string for each key, and the digest beside them. A .pth
    file holds the state_dict, ready for `load_state_dict`, with the attributes `metadata` and `digest`.

    Args:
        path: .safetensors or .pth file.
        state_dict: arrays by name, those of this project or of another library (`naming.to_names`).
        metadata: what JSON can hold.

    Raises:
        UserError: the suffix is another, a package is missing, or the file cannot be written.
    """
    require_suffix(path)
    serialize = _safetensors if path.suffix == ".safetensors" else _pth
    files.write(path, serialize(state_dict, metadata))


def open_weights(path: Path) -> WeightFile:
    """A weight file with the names, shapes and dtypes of its tensors, all of which lie within it, and its metadata.

    A state_dict within a dictionary of a training script is found, prefixes such as "module." are removed, and timm's
    names are translated. A .pth file is opened as data: nothing in it is executed. At most a few megabytes are read,
    and the tensors together take no more memory than the file has bytes.

    Args:
        path: .safetensors or .pth file, or a folder of the Hugging Face Hub.

    Raises:
        UserError: the file is missing or damaged, needs code to load, or holds no state_dict, or a package is missing.
    """
    path = within(path)
    if path.suffix not in SUFFIXES and os.path.isdir(path):
        raise UserError(
            f"folder {path} holds no {HUB_WEIGHTS}: give a weights file, or a folder of the Hugging Face Hub"
        )
    require_suffix(path)
    if not os.path.isfile(path):
        raise UserError(f"weights file {path} {'is no regular file' if os.path.exists(path) else 'does not exist'}")
    is_safetensors = path.suffix == ".safetensors"
    package = _safetensors_package() if is_safetensors else _torch_package()
    try:
        if is_safetensors:
            entries, metadata, digest = _open_safetensors(path, package)
            tensors = unwrap(entries)
        else:
            content, metadata, digest = _open_pth(path)
            tensors = to_own_names({name: tensor.stored() for name, tensor in find_state_dict(content).items()})
        _require_sound(tensors, path.stat().st_size)
    except NeedsCodeError as error:
        raise UserError(
            f"cannot read {path}: it needs the code of {error} to load; save the state_dict() of the model alone"
        ) from error
    except UserError as error:
        raise UserError(f"cannot use {path}: {error}") from error
    except UnusableError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    except Exception as error:  # what damaged headers and pickles raise cannot be listed
        raise _unreadable(path, error) from error
    return WeightFile(path, tensors, metadata, digest)


def read_weights(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The state_dict of a file in this project's names, and its metadata (empty if another program wrote the file).

    It takes as much memory as the file has bytes. Where the network is known, compare it with `open_weights` first.

    Raises:
        UserError: as `open_weights` and `WeightFile.read_any`.
    """
    file = open_weights(path)
    return file.read_any(), dict(file.metadata)


def digest_of(arrays: StateDict, metadata: Mapping[str, Any]) -> str:
    """The SHA-256 of arrays, their names, shapes and dtypes, and of metadata as JSON."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        digest.update(json.dumps([name, array.dtype.name, array.shape]).encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def unwrap(content: Any) -> dict[str, Any]:
    """The state_dict within the content of a file, in this project's names.

    Args:
        content: arrays or tensors by name, or a dictionary that holds them as a training script does.

    Raises:
        UserError: there is none, or a layer has two names.
    """
    return to_own_names(find_state_dict(content))


def find_state_dict(content: Any) -> dict[str, Any]:
    """The same in the names of the file, without the prefixes of wrappers."""
    for _ in WRAPPERS:  # a mapping may hold itself
        if not isinstance(content, Mapping) or _is_state_dict(content):
            break
        inside = [content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)]
        if not inside:
            break
        content = inside[0]
    if not _is_state_dict(content):
        entries = (
            ", ".join(str(key)[:LONGEST_NAME] for key in list(content)[:5]) if isinstance(content, Mapping) else ""
        )
        found = f"entries {entries}" if entries else type(content).__name__
        raise UserError(f"it holds no state_dict (a mapping of names to tensors), but {found}")
    state_dict = dict(content)
    _require_names(state_dict)
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in state_dict)), None):
        state_dict = {key.removeprefix(prefix): value for key, value in state_dict.items()}
    return state_dict


def options_of(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a network that the shapes of its weights show.

    Args:
        tensors: arrays or tensors, or what is known of them, by PyTorch's names.

    Returns:
        A ResNet's `stem` and `width`, MobileNetV2's `width_mult` (exact for multiples of 1/40, as all published are).
    """
    shapes = {key: tuple(tensors[key].shape) for key in ("conv1.weight", "features.18.0.weight") if key in tensors}
    match shapes:
        case {"conv1.weight": (width, _, side, _)}:
            return {"width": width, "stem": "small" if side == 3 else "imagenet"}
        case {"features.18.0.weight": (_, channels, _, _)}:
            return {"width_mult": channels / 320}
    return {}


def differing_options(shown: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """The options of networks that give weights their shapes and differ between what they show and what is given.

    Args:
        shown: what `options_of` returned, in which a `width_mult` is that of the rounded channels.
        given: options of a network; those that are missing do not differ.
    """
    return [
        name
        for name, value in shown.items()
        if name in given and (abs(given[name] - value) > 1 / 40 if name == "width_mult" else given[name] != value)
    ]


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


def _require_names(state_dict: Mapping[str, Any]) -> None:
    """Raises a UserError if there are more or longer names than any network has, or some that cannot be printed."""
    if len(state_dict) > MOST_ENTRIES:
        raise UserError(f"it has {len(state_dict):,} entries, more than any network")
    for key in state_dict:
        if len(key) > LONGEST_NAME or not key.isprintable():
            raise UserError(f"it has an entry of an impossible name, {key[:LONGEST_NAME]!r}")


def _require_sound(tensors: Mapping[str, Stored], file_size: int) -> None:
    """Raises an UnusableError if tensors cannot be read, or together would take more memory than the file."""
    for name, tensor in tensors.items():
        try:
            tensor.require_readable(file_size)
        except UnusableError as error:
            raise UnusableError(f"{name} {error}") from error
    require_apart(tensors.values())


def _safetensors(state_dict: StateDict, metadata: Mapping[str, Any]) -> bytes:
    save = _safetensors_package().numpy.save
    arrays = {key: np.asarray(array, order="C") for key, array in state_dict.items()}
    described = {**metadata, DIGEST: digest_of(unwrap(arrays), metadata)}  # of what is read
    return save(arrays, {key: json.dumps(value) for key, value in described.items()})


def _open_safetensors(path: Path, package: Any) -> tuple[dict[str, Stored], dict[str, Any], Any]:
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        if size > HEADER_LIMIT:
            raise UnusableError(f"its header takes more than {HEADER_LIMIT:,} bytes")
        header = file.read(size)
    with package.safe_open(path, "np"):  # it checks the whole header
        pass
    entries = json.loads(header, object_pairs_hook=Contents)
    metadata = _parsed(entries.pop("__metadata__", {}))
    tensors = {name: _stored(entry, start=8 + size) for name, entry in entries.items()}
    return tensors, metadata, metadata.pop(DIGEST, None)


def _stored(entry: Mapping[str, Any], *, start: int) -> Stored:
    shape = tuple(entry["shape"])
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return Stored(shape, SAFETENSORS.get(entry["dtype"], entry["dtype"]), start + entry["data_offsets"][0], strides)


def _pth(state_dict: StateDict, metadata: Mapping[str, Any]) -> bytes:
    torch = _torch_package()
    ordered, buffer = OrderedDict((key, to_tensor(array)) for key, array in state_dict.items()), io.BytesIO()
    ordered.metadata = dict(metadata)  # type: ignore[attr-defined]
    ordered.digest = digest_of(unwrap(state_dict), metadata)  # type: ignore[attr-defined]
    torch.save(ordered, buffer)
    return buffer.getvalue()


def _open_pth(path: Path) -> tuple[Any, dict[str, Any], Any]:
    content = read_pickled(path)
    attributes = content.attributes if isinstance(content, Contents) else {}
    metadata = attributes.get("metadata", {})
    if not isinstance(metadata, dict) or not _is_json(metadata):
        raise UnusableError("its metadata are no JSON")
    return content, metadata, attributes.get(DIGEST)


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:LONGEST_NAME]
    return UserError(f"cannot read {path}: {reason or type(error).__name__}; it is damaged, or no file of weights")


def _parsed(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The metadata that are JSON, as this project writes them; those of other programs ("format": "pt") are not."""
    parsed = {}
    for key, value in metadata.items():
        with contextlib.suppress(ValueError, RecursionError):
            parsed[key] = json.loads(value)
    return parsed


def _is_json(value: Any) -> bool:
    """Whether a value of a pickle is what JSON can hold, in no more text than a header: it may hold itself."""
    pending, room = [value], HEADER_LIMIT
    while pending and room > len(pending):
        item = pending.pop()
        if isinstance(item, dict) and all(isinstance(key, str) for key in item):
            pending += [*item, *item.values()]
        elif isinstance(item, list | tuple):
            pending += item
        elif item is not None and not isinstance(item, str | int | float):
            return False
        room -= 64 + (len(item) if isinstance(item, str) else 0)
    return not pending


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
