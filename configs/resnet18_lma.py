"""LMA-ResNet-18 on ImageNet by the paper's protocol.

    python -m lma_jax.train --config configs/resnet18_lma.py

Hardware: 4 GPUs with 64 images each, as in the paper. Expected: 71.43 % top-1 and 90.18 % top-5 (the paper's Table 1).
"""

from ml_collections import ConfigDict

from lma_jax import recipes


def get_config() -> ConfigDict:
    config = recipes.load("common")
    config.model = "resnet18_lma"
    return config
