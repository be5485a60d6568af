"""Which network a state_dict belongs to, by its names and shapes."""

from collections.abc import Iterable, Mapping
from typing import Any

import lma_torch
from lma_jax.errors import UserError
from lma_jax.state_dict import BATCH_COUNT, Shaped, num_classes_of
from lma_jax.weight_files import options_of
from lma_torch.registry import BACKBONES, problem_with, recorded_options

Shapes = Mapping[str, tuple[int, ...]]


def recognise(state_dict: Mapping[str, Shaped], *, name: str | None = None) -> tuple[str, dict[str, Any]]:
    """The network with these names and shapes.

    Args:
        state_dict: arrays or tensors, in this project's names (`lma_jax.weight_files.read_weights`).
        name: the network it must be; by default any of list_models().

    Returns:
        The name of the network, and its options: its number of classes, and others that are not the default.

    Raises:
        UserError: there is none; the closest network is named with all differences.
    """
    if name is not None and (problem := problem_with(name)):
        raise UserError(problem)
    shapes = _shapes(state_dict)
    options = {"num_classes": num_classes_of(state_dict) or 1000, **options_of(state_dict)}
    if name is None:
        # First the backbone, then its attention: building all networks would take long.
        backbone, _ = _closest(BACKBONES, shapes, options)
        names = [backbone, *lma_torch.list_models(f"{backbone}_*")]
        best, problems = _closest(names, shapes, options)
        message = "the weights match no known network; the closest is"
    else:
        best, problems = _closest([name], shapes, options)
        message = "the weights are not those of"
    if problems:
        raise UserError(f"{message} {best}, with {len(problems)} differences: {'; '.join(problems)}")
    return best, {"num_classes": options["num_classes"], **recorded_options(best, options)}


def _closest(names: Iterable[str], shapes: Shapes, options: Mapping[str, Any]) -> tuple[str, list[str]]:
    differences = {name: _differences(shapes, name, options) for name in names}
    return min(differences.items(), key=lambda item: len(item[1]))


def _differences(given: Shapes, name: str, options: Mapping[str, Any]) -> list[str]:
    known = {"num_classes": options["num_classes"], **recorded_options(name, options)}
    wanted = _shapes(lma_torch.create_model(name, device="meta", **known).state_dict())
    return [
        *(f"missing {key} {shape}" for key, shape in wanted.items() if key not in given),
        *(f"unexpected {key} {shape}" for key, shape in given.items() if key not in wanted),
        *(f"mis-shaped {k} {given[k]}, not {wanted[k]}" for k in wanted if k in given and given[k] != wanted[k]),
    ]


def _shapes(state_dict: Mapping[str, Shaped]) -> Shapes:
    return {key: tuple(value.shape) for key, value in state_dict.items() if not key.endswith(BATCH_COUNT)}
