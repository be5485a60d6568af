"""Networks by name: `<backbone>` or `<backbone>_<attention>`, such as "resnet50" and "resnet50_lma"."""

import fnmatch
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx

from lma_jax.attention import ATTENTIONS, Placement, Placements, Unavailable
from lma_jax.errors import nearest
from lma_jax.layers import Network
from lma_jax.mobilenetv2 import MobileNetV2
from lma_jax.resnet import DEPTHS, ResNet


@dataclass(frozen=True)
class Backbone:
    """A network that takes an attention module.

    Attributes:
        build: its constructor, called as `build(num_classes=, attention=, dtype=, param_dtype=, rngs=, **options)`.
        select: selects the placement in this kind of backbone.
    """

    build: Callable[..., Network]
    select: Callable[[Placements], Placement | Unavailable]


def in_resnet(placements: Placements) -> Placement | Unavailable:
    """The placement in a ResNet."""
    return placements.resnet


def in_mobilenetv2(placements: Placements) -> Placement | Unavailable:
    """The placement in MobileNetV2."""
    return placements.mobilenetv2


# The options of backbones that a recipe sets, and that checkpoints and exports record.
RECORDED = ("stem", "width", "width_mult", "drop_path", "zero_init_residual")
# To add a backbone, write its class and give it a line here.
BACKBONES: dict[str, Backbone] = {
    **{name: Backbone(partial(ResNet, block, depths), in_resnet) for name, (block, depths) in DEPTHS.items()},
    "mobilenetv2": Backbone(MobileNetV2, in_mobilenetv2),
}


def list_models(pattern: str = "*") -> list[str]:
    """The sorted names that `create_model` takes and that match `pattern` (fnmatch)."""
    pairs = [(backbone, attention) for backbone in BACKBONES for attention in ATTENTIONS]
    available = [pair for pair in pairs if isinstance(placement_of(*pair), Placement)]
    return sorted(fnmatch.filter([*BACKBONES, *map("_".join, available)], pattern))


def parts_of(name: str) -> tuple[str, str]:
    """The names of the backbone and of the attention, which is empty for a plain network."""
    backbone, _, attention = name.partition("_")
    return backbone, attention


def placement_of(backbone: str, attention: str) -> Placement | Unavailable:
    """The placement of an attention module in a backbone, or the reason why there is none."""
    return BACKBONES[backbone].select(ATTENTIONS[attention])


def registered_by(name: str) -> str:
    """The module of a user that registered the attention of a network, see `Placements`; empty for those here."""
    attention = parts_of(name)[1]
    return ATTENTIONS[attention].registered_by if attention else ""


def problem_with(name: object, *, registered_by: str = "") -> str | None:
    """The reason why `create_model` does not take a name; None if it does.

    Args:
        name: any value.
        registered_by: the module that registered its attention, as a checkpoint or an export says.
    """
    if not isinstance(name, str):
        return f"a model is named by a string, one of list_models(), got {name!r}"
    if name in list_models():
        return None
    backbone, attention = parts_of(name)
    if backbone in BACKBONES and attention in ATTENTIONS:
        found = placement_of(backbone, attention)
        if isinstance(found, Unavailable):
            return f"there is no {name}: {found.reason}"
    if registered_by:
        return f"its attention {attention!r} was registered by {registered_by}: add --import={registered_by}"
    return f"unknown model {name!r}, did you mean {nearest(name, list_models())!r}? (list_models() names all)"


def require_options(backbone: str, options: Iterable[str]) -> None:
    """Checks the names of a backbone's further options.

    Raises:
        ValueError: it has no such option; the nearest one is named.
    """
    known = _parameters(backbone)
    for name in options:
        if name not in known:
            raise ValueError(f"{backbone} has no option {name!r}, did you mean {nearest(name, known)!r}?")


def recorded_names(name: str) -> list[str]:
    """Those of the options RECORDED that the network `name` has.

    Raises:
        ValueError: no such network (the message gives the nearest one).
    """
    if problem := problem_with(name):
        raise ValueError(problem)
    known = _parameters(parts_of(name)[0])
    return [option for option in RECORDED if option in known]


def recorded_options(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The options RECORDED of the network `name` among `values`, such as a training config, that are not the default.

    Those that its backbone does not have are left out.

    Raises:
        ValueError: no such network (the message gives the nearest one).
    """
    given = {option: values[option] for option in recorded_names(name) if option in values}
    known = _parameters(parts_of(name)[0])
    return {option: value for option, value in given.items() if value != known[option].default}


def _parameters(backbone: str) -> Mapping[str, inspect.Parameter]:
    """What the constructor of a backbone takes by name, but for the attention, which the name of a network says."""
    build: Any = BACKBONES[backbone].build
    parameters = inspect.signature(getattr(build, "func", build).__init__).parameters
    return {name: one for name, one in parameters.items() if one.kind is one.KEYWORD_ONLY and name != "attention"}


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
    **backbone_options: Any,
) -> Network:
    """Builds a network by name, in training mode.

    Args:
        name: one of `list_models()`.
        num_classes: size of the output; with 0 there is no head, and the pooled features (N, num_features) come out.
        dtype: computation dtype; by default that of the input and the parameters.
        param_dtype: dtype of the parameters.
        rngs: the stream `params` initialises the weights; MobileNetV2's dropout draws from `dropout`.
        **backbone_options: further options of the backbone: `in_chans`, `output_stride`, ... (see ResNet, MobileNetV2).

    Raises:
        ValueError: no such name (the message gives the nearest one), a pair that does not exist (it says why), no such
            option, or a `num_classes` that is no whole number from 0.
    """
    if problem := problem_with(name):
        raise ValueError(problem)
    backbone, attention = parts_of(name)
    require_options(backbone, backbone_options)
    model = BACKBONES[backbone].build(
        num_classes=num_classes,
        attention=placement_of(backbone, attention) if attention else None,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
        **backbone_options,
    )
    model.name, model.options = name, tuple(backbone_options.items())
    return model
