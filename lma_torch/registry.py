"""Networks by name: `<host>` or `<host>_<attention>`, such as "resnet50" and "resnet50_lma"."""

import difflib
import fnmatch
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from lma_torch.attention import ATTENTIONS, Placement
from lma_torch.mobilenetv2 import MobileNetV2
from lma_torch.resnet import DEPTHS, ResNet

BACKBONES: dict[str, Callable[..., nn.Module]] = {
    **{name: partial(ResNet, block, depths) for name, (block, depths) in DEPTHS.items()},
    "mobilenetv2": MobileNetV2,
}


# The hosts of a family hold an attention module at the same place.
FAMILIES = {"mobilenetv2": "mobilenetv2"}


def list_models(pattern: str = "*") -> list[str]:
    """The sorted names that `create_model` takes and that match `pattern` (fnmatch)."""
    pairs = [(host, name) for host in BACKBONES for name in ATTENTIONS if isinstance(place(host, name), Placement)]
    names = [*BACKBONES, *(f"{host}_{name}" for host, name in pairs)]
    return sorted(fnmatch.filter(names, pattern))


def place(host: str, attention: str) -> Placement | str:
    """Where a host holds an attention module, or the reason why it does not."""
    return ATTENTIONS[attention][FAMILIES.get(host, "resnet")]


def problem_with(name: str) -> str | None:
    """Why `create_model` does not take a name, or None where it does."""
    if name in list_models():
        return None
    host, _, attention = name.partition("_")
    if host in BACKBONES and attention in ATTENTIONS:
        return f"there is no {name}: {place(host, attention)}"
    nearest = difflib.get_close_matches(name, list_models(), n=1, cutoff=0)[0]
    return f"unknown model {name!r}, did you mean {nearest!r}? (list_models() names all)"


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    device: Any = None,
    dtype: Any = None,
    **backbone_options: Any,
) -> nn.Module:
    """Builds a network by name, in training mode.

    Args:
        name: one of `list_models()`.
        num_classes: size of the output.
        device: device of the parameters.
        dtype: dtype of the parameters.
        **backbone_options: further options of the host, such as `width_mult=0.5` of MobileNetV2.

    Raises:
        ValueError: no such name (the message gives the nearest one), or a pair that does not exist (it says why).
    """
    if problem := problem_with(name):
        raise ValueError(problem)
    host, _, attention = name.partition("_")
    return BACKBONES[host](
        num_classes=num_classes,
        attention=place(host, attention) if attention else None,
        device=device,
        dtype=dtype,
        **backbone_options,
    )
