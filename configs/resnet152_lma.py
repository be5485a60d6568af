"""LMA-ResNet-152 on ImageNet by the paper's protocol.

    python -m lma_jax.train --config configs/resnet152_lma.py

Hardware: 4 GPUs with 64 images each, as in the paper. Expected: no result in the paper's Table 1.
"""

from ml_collections import ConfigDict

from lma_jax import recipes


def get_config() -> ConfigDict:
    config = recipes.load("common")
    config.model = "resnet152_lma"
    return config
