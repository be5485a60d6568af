"""State_dicts of other origins: taken out of what wraps them, given this project's names, and recognised.

torchvision's names, and those of the paper's authors, are this project's own; timm calls the attention of a block `se`.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch

import lma_torch
from lma_jax.errors import UserError
from lma_torch.registry import BACKBONES, problem_with

# Where training scripts put the state_dict among other things, and what wrappers of modules put before the names.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network")
PREFIXES = ("module.", "_orig_mod.", "model.")
BOOKKEEPING = "num_batches_tracked"

StateDict = dict[str, torch.Tensor]


def unwrap(content: Any) -> StateDict:
    """The state_dict within what a file held, without prefixes such as "module.", in this project's names.

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
        raise UserError(f"it holds no state_dict (tensors by name), but {found}")
    state_dict = dict(content)
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in state_dict)), None):
        state_dict = {key.removeprefix(prefix): tensor for key, tensor in state_dict.items()}
    return {re.sub(r"^(layer\d\.\d+)\.se\.", r"\1.attention.", key): tensor for key, tensor in state_dict.items()}


def recognise(state_dict: StateDict, *, name: str | None = None) -> tuple[str, int]:
    """The name and the number of classes of the network that has these names and shapes.

    Args:
        state_dict: what `unwrap` returned.
        name: the network it must be; by default any of list_models().

    Raises:
        UserError: there is none; the nearest one is named with all differences.
    """
    if name is not None and (problem := problem_with(name)):
        raise UserError(problem)
    heads = [state_dict[key] for key in ("fc.weight", "classifier.1.weight") if key in state_dict]
    num_classes = len(heads[0]) if heads else 1000
    given = _shapes(state_dict)

    # Asked for the host first, then for its attention: all pairs would take long to build.
    def nearest_of(candidates: list[str]) -> tuple[str, list[str]]:
        problems = {candidate: _differences(given, candidate, num_classes) for candidate in candidates}
        return min(problems.items(), key=lambda item: len(item[1]))

    candidates = [name] if name else lma_torch.list_models(f"{nearest_of(list(BACKBONES))[0]}*")
    best, problems = nearest_of(candidates)
    if problems:
        origin = "these weights are of no network here; the nearest is" if name is None else "these are no weights of"
        raise UserError(f"{origin} {best}, with {len(problems)} differences: {'; '.join(problems)}")
    return best, num_classes


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items())
    )


def _differences(given: dict[str, tuple[int, ...]], name: str, num_classes: int) -> list[str]:
    wanted = _shapes(lma_torch.create_model(name, num_classes=num_classes, device="meta").state_dict())
    return [
        *(f"missing {key} {shape}" for key, shape in wanted.items() if key not in given),
        *(f"unexpected {key} {shape}" for key, shape in given.items() if key not in wanted),
        *(f"mis-shaped {k} {given[k]}, not {wanted[k]}" for k in wanted if k in given and given[k] != wanted[k]),
    ]


def _shapes(state_dict: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in state_dict.items() if not key.endswith(BOOKKEEPING)}
