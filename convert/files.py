"""Weight files: a state_dict and its metadata in .safetensors or .pth."""

import contextlib
import io
import json
import os
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from convert.origins import unwrap
from lma_jax.errors import UserError

SUFFIXES = (".safetensors", ".pth")

StateDict = Mapping[str, torch.Tensor]


def write_weights(path: Path, state_dict: StateDict, metadata: Mapping[str, Any]) -> None:
    """Writes a file in one move: .safetensors with the metadata as JSON strings, or .pth.

    A .pth holds the state_dict itself, ready for `load_state_dict`; the metadata is its attribute `metadata`.

    Raises:
        UserError: another suffix, or a place that cannot be written.
    """
    require_suffix(path)
    if path.suffix == ".safetensors":
        content = save(dict(state_dict), {key: json.dumps(value) for key, value in metadata.items()})
    else:
        ordered, buffer = OrderedDict(state_dict), io.BytesIO()
        ordered.metadata = dict(metadata)  # type: ignore[attr-defined]
        torch.save(ordered, buffer)
        content = buffer.getvalue()
    write_file(path, content)


def write_file(path: Path, content: bytes) -> None:
    """Writes a file in one move, with the folder it lies in; where that fails, nothing is left or overwritten.

    Raises:
        UserError: a place that cannot be written.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def read_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The state_dict of a file, in this project's names, and its metadata, which is empty in a file of another origin.

    Wrappers that training scripts write ("state_dict", "model", "module.") and timm's names are understood. A .pth is
    loaded as data only: nothing in it is executed.

    Raises:
        UserError: the file is missing, damaged, needs code to load, or holds no state_dict.
    """
    require_suffix(path)
    if not path.is_file():
        raise UserError(f"weights file {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                metadata = _parsed(file.metadata() or {})
                content: Any = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # old pickle protocols
                content = torch.load(path, map_location="cpu", weights_only=True)
            metadata = getattr(content, "metadata", {})
    except pickle.UnpicklingError as error:
        needed = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it needs the code of {needed[1]} to load" if needed else str(error).splitlines()[0]
        raise UserError(f"cannot read {path}: {reason}; save the state_dict() of the model alone") from error
    except (OSError, RuntimeError, SafetensorError, EOFError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot read {path}: {str(error).splitlines()[0] if str(error) else error!r}") from error
    try:
        return unwrap(content), metadata if isinstance(metadata, dict) else {}
    except UserError as error:
        raise UserError(f"cannot use {path}: {error}") from error


def _parsed(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Metadata as this project writes them, JSON by key; those of other programs ("format": "pt") are left out."""
    parsed = {}
    for key, value in metadata.items():
        with contextlib.suppress(ValueError):
            parsed[key] = json.loads(value)
    return parsed


def require_suffix(path: Path, suffixes: Iterable[str] = SUFFIXES) -> None:
    """Raises a UserError where a path does not end like a file of weights, or with one of `suffixes`."""
    if path.suffix not in suffixes:
        raise UserError(f"{path} must end in {' or '.join(suffixes)}")
