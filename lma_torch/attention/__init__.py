"""The attention modules by name, each with its placement in the backbones: that of its paper and of Table 1.

To add a module, write its class and give it a line in ATTENTIONS, or call `register_attention`.
"""

import sys
from typing import Any

from lma_torch.attention.channel import ECA, GC, SE, SRM, GSoP, mobile_eca
from lma_torch.attention.mixed import BAM, CA, CBAM, MCA, SA, SGE, TA, SimAM, mobile_ta
from lma_torch.attention.placement import Attention, Placement, Placements, Unavailable
from lma_torch.lma import LMA

_IN_RESNETS_ONLY = Unavailable("its paper and Table 1 use it in ResNets only")

ATTENTIONS: dict[str, Placements] = {
    "lma": Placements(resnet=Placement(LMA, "branch"), mobilenetv2=Placement(LMA, "hidden")),
    "se": Placements(resnet=Placement(SE, "branch"), mobilenetv2=Placement(SE, "block")),
    "eca": Placements(resnet=Placement(ECA, "branch"), mobilenetv2=Placement(mobile_eca, "block")),
    "srm": Placements(resnet=Placement(SRM, "branch"), mobilenetv2=Placement(SRM, "block")),
    "gc": Placements(resnet=Placement(GC, "branch"), mobilenetv2=_IN_RESNETS_ONLY),
    "gsop": Placements(
        resnet=Placement(GSoP, "branch", every_block=False, last_stride=1),
        mobilenetv2=Unavailable("it sits in the last block of each stage of a ResNet"),
    ),
    "cbam": Placements(resnet=Placement(CBAM, "branch"), mobilenetv2=Placement(CBAM, "block")),
    "bam": Placements(
        resnet=Placement(BAM, "stage"),
        mobilenetv2=Unavailable("it sits between the stages of a ResNet"),
    ),
    "ta": Placements(resnet=Placement(TA, "branch"), mobilenetv2=Placement(mobile_ta, "block")),
    "sa": Placements(resnet=Placement(SA, "branch"), mobilenetv2=_IN_RESNETS_ONLY),
    "ca": Placements(resnet=Placement(CA, "branch"), mobilenetv2=Placement(CA, "hidden")),
    "sge": Placements(resnet=Placement(SGE, "branch"), mobilenetv2=_IN_RESNETS_ONLY),
    "mca": Placements(resnet=Placement(MCA, "branch"), mobilenetv2=Placement(MCA, "block")),
    "simam": Placements(resnet=Placement(SimAM, "conv"), mobilenetv2=Placement(SimAM, "conv")),
}


def register_attention(name: str, module: Attention, *, resnet: str = "branch", mobilenetv2: str = "hidden") -> None:
    """Adds a module under the names `<backbone>_<name>`, which create_model and every tool then take.

    Checkpoints and exports record the module that calls this; commands import it as --import says.

    Args:
        name: lower-case letters and digits.
        module: constructor called as `module(channels, device=, dtype=)`.
        resnet, mobilenetv2: its position in the backbones, see `Placement`.

    Raises:
        ValueError: the name is taken or not allowed.
    """
    if not (name.isalnum() and name == name.lower()) or name in ATTENTIONS:
        raise ValueError(f"an attention cannot be named {name!r}: lower-case letters and digits, not yet taken")
    ATTENTIONS[name] = Placements(
        resnet=Placement(module, resnet),
        mobilenetv2=Placement(module, mobilenetv2),
        registered_by=_how_to_import(sys._getframe(1).f_globals),
    )


def _how_to_import(module: dict[str, Any]) -> str:
    """The name of a module of which these are the globals; its file if it is a script or a recipe."""
    name = module["__name__"]
    return name if name != "__main__" and name.replace(".", "").isidentifier() else str(module.get("__file__", ""))


__all__ = ["ATTENTIONS", "Attention", "Placement", "Placements", "Unavailable", "register_attention"]
