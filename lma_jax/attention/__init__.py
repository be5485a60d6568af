"""The attention modules by name, and where each sits in each family of hosts: as their papers and Table 1 have it."""

from typing import Any

from flax import nnx

from lma_jax.attention.channel import ECA, GC, SE, SRM, GSoP
from lma_jax.attention.mixed import BAM, CA, CBAM, MCA, SA, SGE, TA, SimAM
from lma_jax.attention.place import Attention, Place
from lma_jax.lma import LMA


def mobile_eca(channels: int, **dd: Any) -> nnx.Module:
    """ECA as its authors have it in MobileNetV2."""
    return ECA(channels, kernel_size=1 if channels < 96 else 3, **dd)


def mobile_ta(channels: int, **dd: Any) -> nnx.Module:
    """Triplet attention as its authors have it in MobileNetV2."""
    return TA(channels, kernel_size=3, **dd)


RESNETS_ONLY = "its paper and Table 1 have it in ResNets alone"

# By name: its place in each family of hosts, or the reason why it has none.
ATTENTIONS: dict[str, dict[str, Place | str]] = {
    "lma": {"resnet": Place(LMA, "branch"), "mobilenetv2": Place(LMA, "hidden")},
    "se": {"resnet": Place(SE, "branch"), "mobilenetv2": Place(SE, "block")},
    "cbam": {"resnet": Place(CBAM, "branch"), "mobilenetv2": Place(CBAM, "block")},
    "bam": {"resnet": Place(BAM, "stage"), "mobilenetv2": "it sits between the stages of a ResNet"},
    "eca": {"resnet": Place(ECA, "branch"), "mobilenetv2": Place(mobile_eca, "block")},
    "ta": {"resnet": Place(TA, "branch"), "mobilenetv2": Place(mobile_ta, "block")},
    "gsop": {
        "resnet": Place(GSoP, "branch", every_block=False, last_stride=1),
        "mobilenetv2": "it sits in the last block of a ResNet's stages",
    },
    "gc": {"resnet": Place(GC, "branch"), "mobilenetv2": RESNETS_ONLY},
    "sa": {"resnet": Place(SA, "branch"), "mobilenetv2": RESNETS_ONLY},
    "ca": {"resnet": Place(CA, "branch"), "mobilenetv2": Place(CA, "hidden")},
    "srm": {"resnet": Place(SRM, "branch"), "mobilenetv2": Place(SRM, "block")},
    "sge": {"resnet": Place(SGE, "branch"), "mobilenetv2": RESNETS_ONLY},
    "mca": {"resnet": Place(MCA, "branch"), "mobilenetv2": Place(MCA, "block")},
    "simam": {"resnet": Place(SimAM, "conv"), "mobilenetv2": Place(SimAM, "conv")},
}


def register_attention(name: str, module: Attention, *, resnet: str = "branch", mobilenetv2: str = "hidden") -> None:
    """Makes a module of your own known as `<host>_<name>` to create_model, and so to every tool.

    Args:
        name: lower-case letters and digits.
        module: constructor called as `module(channels, dtype=, param_dtype=, rngs=)`.
        resnet, mobilenetv2: its position in the hosts, see `Place`.

    Raises:
        ValueError: the name is taken or not allowed.
    """
    if not (name.isalnum() and name == name.lower()) or name in ATTENTIONS:
        raise ValueError(f"an attention cannot be named {name!r}: lower-case letters and digits, not yet taken")
    ATTENTIONS[name] = {"resnet": Place(module, resnet), "mobilenetv2": Place(module, mobilenetv2)}


__all__ = ["ATTENTIONS", "Attention", "Place", "register_attention"]
