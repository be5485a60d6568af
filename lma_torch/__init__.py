"""LMA and its backbones in PyTorch (channels first)."""

from lma_torch.attention import register_attention
from lma_torch.fold import fold_batch_norm
from lma_torch.hub import from_pretrained, save_pretrained
from lma_torch.lma import LMA, kernel_size_for
from lma_torch.mobilenetv2 import InvertedResidual, MobileNetV2
from lma_torch.pretrained import create_model
from lma_torch.profiles import ProfileAttention
from lma_torch.pyramid import FeaturePyramid, LastLevelMaxPool, LastLevelP6P7
from lma_torch.registry import list_models
from lma_torch.resnet import BasicBlock, Bottleneck, ResNet

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
    "kernel_size_for",
    "list_models",
    "register_attention",
    "save_pretrained",
]
