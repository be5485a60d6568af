"""LMA-ResNet-34 on ImageNet by the paper's protocol.

    python -m lma_jax.train --config configs/resnet34_lma.py

Hardware: 4 GPUs with 64 images each, as in the paper. Expected: 74.62 % top-1 and 92.16 % top-5 (the paper's Table 1).
"""

from ml_collections import ConfigDict

from lma_jax import recipes


def get_config() -> ConfigDict:
    config = recipes.load("common")
    config.model = "resnet34_lma"
    return config
