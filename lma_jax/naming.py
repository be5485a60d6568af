"""The names of weights in other libraries, and back, by the names and shapes of a state_dict alone.

This project's names are torchvision's, with `attention` beside them, and those of the paper's authors. timm calls the
attention of a block `se`, and in MobileNetV2 every layer otherwise. Two of its own modules have the same function as
those here, and weights with other axes of size 1:

    SE     fc1, fc2    (out, in) here, (out, in, 1, 1) in timm's SEModule
    ECA    conv        (1, 1, 1, k) here, (1, 1, k) in timm's EcaModule

Values are arrays, tensors, or tensors that still lie in a file: whatever has a shape and can be reshaped.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from lma_jax.errors import UserError

StateDict = Mapping[str, Any]
Shape = tuple[int, ...]

# MobileNetV2's layers here and in timm: the ends, and the layers of a block by its kind.
ENDS = {
    "features.0.0": "conv_stem",
    "features.0.1": "bn1",
    "features.18.0": "conv_head",
    "features.18.1": "bn2",
    "classifier.1": "classifier",
}
FIRST = {"conv.0.0": "conv_dw", "conv.0.1": "bn1", "conv.1": "conv_pw", "conv.2": "bn2"}
EXPANDED = {"conv.0.0": "conv_pw", "conv.0.1": "bn1", "conv.1.0": "conv_dw", "conv.1.1": "bn2"}
PLAIN = {**EXPANDED, "conv.2": "conv_pwl", "conv.3": "bn3"}
GATED = {**EXPANDED, "conv.2": "se", "conv.3": "conv_pwl", "conv.4": "bn3"}
# The number of blocks in each of its stages.
STAGES = (1, 2, 3, 4, 3, 3, 1)

# The attention of a block by its position (see Placement), here; and in timm, which has no other positions.
OWN_ATTENTION = {
    "branch": re.compile(r"(layer\d\.\d+)\.attention\."),
    "hidden": re.compile(r"(features\.(?!1\.)\d+)\.conv\.2\."),
}
TIMM_ATTENTION = re.compile(r"(layer\d\.\d+|blocks\.\d\.\d)\.se\.")
ELSEWHERE = {
    "conv": "before a normalisation",
    "stage": "between two stages",
    "block": "after the last normalisation of a block of MobileNetV2",
}
# The entries of attention modules.
LMA = {"conv_h.weight", "conv_w.weight"}
SE = {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}
ECA = {"conv.weight"}


def to_own_names(state_dict: StateDict) -> dict[str, Any]:
    """A state_dict in the names of this project, if it has timm's; other names stay as they are.

    Raises:
        UserError: a layer has two names.
    """
    gates = _attention(state_dict, TIMM_ATTENTION)
    if "conv_stem.weight" in state_dict:
        layers = {theirs: own for own, theirs in _mobilenetv2_in_timm(GATED if gates else PLAIN).items()}
        renamed = _renamed(state_dict, layers)
    else:
        renamed = _renamed(state_dict, {f"{block}.se": f"{block}.attention" for block in gates})
    if len(set(renamed.values())) < len(state_dict):
        raise UserError("it has a layer under two names, timm's and another")
    return {renamed[key]: value for key, value in _reshaped(state_dict, gates, _own_shape).items()}


def to_names(state_dict: StateDict, names: str, *, position: str) -> dict[str, Any]:
    """A state_dict of this project in the names of another library.

    Args:
        state_dict: the weights, or their momentum, of a network of `create_model`.
        names: one of NAMES.
        position: of the network's attention module, see `Placement`; empty in a plain network.

    Raises:
        UserError: there are no such names, or they do not cover the network.
    """
    if names not in NAMES:
        raise UserError(f"names must be one of {', '.join(NAMES)}, not {names!r}")
    return NAMES[names](state_dict, position)


def _require_stem(state_dict: StateDict, library: str) -> None:
    """Raises a UserError if a ResNet's first convolution is not the library's, 7 x 7 to 64 channels."""
    kernel = state_dict.get("conv1.weight")
    width, _, side, _ = (64, 3, 7, 7) if kernel is None else kernel.shape
    if (width, side) == (64, 7):
        return
    raise UserError(
        f"{library} has no ResNet whose first convolution is {side} x {side} to {width} channels: without this "
        "option, the names are this project's, for lma_torch.create_model"
    )


def _to_torchvision(state_dict: StateDict, position: str) -> dict[str, Any]:
    _require_stem(state_dict, "torchvision")
    if position:
        raise UserError(
            "torchvision has no network with attention: without this option, the names are torchvision's, with those "
            "of the attention beside them"
        )
    return dict(state_dict)


def _to_paper(state_dict: StateDict, position: str) -> dict[str, Any]:
    _require_stem(state_dict, "the paper's code")
    gates = _attention(state_dict, OWN_ATTENTION[position]) if position in OWN_ATTENTION else {}
    if position and not (gates and all(entries.keys() == LMA for entries in gates.values())):
        raise UserError("the names of the paper's authors are known for plain networks and for those with LMA only")
    return dict(state_dict)


def _to_timm(state_dict: StateDict, position: str) -> dict[str, Any]:
    _require_stem(state_dict, "timm")
    if position in ELSEWHERE:
        raise UserError(f"timm's networks have no attention module {ELSEWHERE[position]}")
    gates = _attention(state_dict, OWN_ATTENTION[position]) if position else {}
    if "conv1.weight" not in state_dict:
        renamed = _renamed(state_dict, _mobilenetv2_in_timm(GATED if position else PLAIN))
    else:
        blocks = {match[0] for key in state_dict if (match := re.match(r"layer\d\.\d+(?=\.conv1\.)", key))}
        if gates and gates.keys() != blocks:
            raise UserError("timm's ResNets have an attention module in every block or in none")
        renamed = _renamed(state_dict, {f"{block}.attention": f"{block}.se" for block in gates})
    return {renamed[key]: value for key, value in _reshaped(state_dict, gates, _timm_shape).items()}


NAMES: dict[str, Callable[[StateDict, str], dict[str, Any]]] = {
    "timm": _to_timm,
    "torchvision": _to_torchvision,
    "paper": _to_paper,
}


def _mobilenetv2_in_timm(layers: Mapping[str, str]) -> dict[str, str]:
    """The layers of MobileNetV2 by their names here, and their names in timm.

    Args:
        layers: PLAIN or GATED, those of all blocks but the first.
    """
    blocks = [f"blocks.{stage}.{block}" for stage, depth in enumerate(STAGES) for block in range(depth)]
    names = dict(ENDS)
    for number, block in enumerate(blocks, start=1):
        kind = FIRST if number == 1 else layers
        names |= {f"features.{number}.{own}": f"{block}.{theirs}" for own, theirs in kind.items()}
    return names


def _renamed(state_dict: StateDict, layers: Mapping[str, str]) -> dict[str, str]:
    """The entries with new names, where they or what contains them is among `layers`."""
    renamed = {}
    for key in state_dict:
        layer = key
        while layer and layer not in layers:
            layer = layer.rpartition(".")[0]
        renamed[key] = layers.get(layer, "") + key.removeprefix(layer)
    return renamed


def _attention(state_dict: StateDict, pattern: re.Pattern[str]) -> dict[str, dict[str, str]]:
    """For each block the entries of its attention module, and their names in the state_dict."""
    found: dict[str, dict[str, str]] = {}
    for key in state_dict:
        if match := pattern.match(key):
            found.setdefault(match[1], {})[key[match.end() :]] = key
    return found


def _reshaped(
    state_dict: StateDict, gates: Mapping[str, Mapping[str, str]], shape_of: Callable[[Shape, set[str]], Shape]
) -> dict[str, Any]:
    """The state_dict with other shapes of the attention modules' entries."""
    values = dict(state_dict)
    for entries in gates.values():
        for key in entries.values():
            shape = tuple(values[key].shape)
            if (other := shape_of(shape, set(entries))) != shape:
                values[key] = values[key].reshape(other)
    return values


def _timm_shape(shape: Shape, entries: set[str]) -> Shape:
    if entries == SE and len(shape) == 2:
        return (*shape, 1, 1)
    if entries == ECA and shape[:-1] == (1, 1, 1):
        return shape[1:]
    return shape


def _own_shape(shape: Shape, entries: set[str]) -> Shape:
    if entries == SE and shape[2:] == (1, 1):
        return shape[:2]
    if entries == ECA and shape[:-1] == (1, 1):
        return (1, *shape)
    return shape
