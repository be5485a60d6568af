"""torch.hub: an entry point for every network of lma_torch, such as

torch.hub.load("<clone>", "resnet50_lma", source="local", num_classes=10)
"""

from collections.abc import Callable
from functools import partial

from torch import nn

from lma_torch import create_model, list_models

dependencies = ["torch", "numpy"]


def _entry_point(name: str) -> Callable[..., nn.Module]:
    build = partial(create_model, name)
    build.__doc__ = f"lma_torch.create_model({name!r}, **options).\n\n{create_model.__doc__}"
    return build


globals().update({name: _entry_point(name) for name in list_models()})
