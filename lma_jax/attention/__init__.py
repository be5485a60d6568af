"""The attention modules by name. Each sits in a host where its paper and Table 1 have it, which stands beside it."""

from lma_jax.attention import channel, mixed
from lma_jax.attention.placement import Attention, Placement, Placements
from lma_jax.lma import LMA

ATTENTIONS: dict[str, Placements] = {
    "lma": {"resnet": Placement(LMA, "branch"), "mobilenetv2": Placement(LMA, "hidden")},
    **channel.PLACEMENTS,
    **mixed.PLACEMENTS,
}


def register_attention(name: str, module: Attention, *, resnet: str = "branch", mobilenetv2: str = "hidden") -> None:
    """Makes a module of your own known as `<host>_<name>` to create_model, and so to every tool.

    Args:
        name: lower-case letters and digits.
        module: constructor called as `module(channels, dtype=, param_dtype=, rngs=)`.
        resnet, mobilenetv2: its position in the hosts, see `Placement`.

    Raises:
        ValueError: the name is taken or not allowed.
    """
    if not (name.isalnum() and name == name.lower()) or name in ATTENTIONS:
        raise ValueError(f"an attention cannot be named {name!r}: lower-case letters and digits, not yet taken")
    ATTENTIONS[name] = {"resnet": Placement(module, resnet), "mobilenetv2": Placement(module, mobilenetv2)}


__all__ = ["ATTENTIONS", "Attention", "Placement", "register_attention"]
