"""LMA, its backbones and their training, in Flax NNX (channels last)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lma_jax.attention import register_attention
    from lma_jax.cam import grad_cam, grad_cam_plus_plus
    from lma_jax.fold import fold_batch_norm
    from lma_jax.hub import from_pretrained, save_pretrained
    from lma_jax.lma import LMA, kernel_size_for
    from lma_jax.mobilenetv2 import InvertedResidual, MobileNetV2
    from lma_jax.pretrained import create_model
    from lma_jax.profiles import ProfileAttention
    from lma_jax.pyramid import FeaturePyramid, LastLevelMaxPool, LastLevelP6P7
    from lma_jax.registry import list_models
    from lma_jax.resnet import BasicBlock, Bottleneck, ResNet

__version__ = "0.2.0"

__all__ = [
    "LMA",
    "BasicBlock",
    "Bottleneck",
    "FeaturePyramid",
    "InvertedResidual",
    "LastLevelMaxPool",
    "LastLevelP6P7",
    "MobileNetV2",
    "ProfileAttention",
    "ResNet",
    "create_model",
    "fold_batch_norm",
    "from_pretrained",
    "grad_cam",
    "grad_cam_plus_plus",
    "kernel_size_for",
    "list_models",
    "register_attention",
    "save_pretrained",
]

# JAX takes a second or two to import, which the --help of a command should not wait for.
_MODULES = {
    "lma": ("LMA", "kernel_size_for"),
    "resnet": ("BasicBlock", "Bottleneck", "ResNet"),
    "mobilenetv2": ("InvertedResidual", "MobileNetV2"),
    "profiles": ("ProfileAttention",),
    "pyramid": ("FeaturePyramid", "LastLevelMaxPool", "LastLevelP6P7"),
    "registry": ("list_models",),
    "pretrained": ("create_model",),
    "hub": ("from_pretrained", "save_pretrained"),
    "attention": ("register_attention",),
    "cam": ("grad_cam", "grad_cam_plus_plus"),
    "fold": ("fold_batch_norm",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"lma_jax.{module}"), name)
    raise AttributeError(f"module 'lma_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
