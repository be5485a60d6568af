"""LMA, its host networks and their training, in Flax NNX (channels last)."""

from lma_jax.attention import register_attention
from lma_jax.cam import grad_cam, grad_cam_plus_plus
from lma_jax.fold import fold_batch_norm
from lma_jax.lma import LMA, kernel_size_for
from lma_jax.mobilenetv2 import InvertedResidual, MobileNetV2
from lma_jax.registry import create_model, list_models
from lma_jax.resnet import BasicBlock, Bottleneck, ResNet

__all__ = [
    "LMA",
    "BasicBlock",
    "Bottleneck",
    "InvertedResidual",
    "MobileNetV2",
    "ResNet",
    "create_model",
    "fold_batch_norm",
    "grad_cam",
    "grad_cam_plus_plus",
    "kernel_size_for",
    "list_models",
    "register_attention",
]
