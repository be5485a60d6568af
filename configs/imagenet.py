"""Any network on ImageNet by the protocol of the paper's Table 1, so that its rows can be trained and compared.

    python -m lma_jax.train --config configs/imagenet.py:resnet50_se
    python -m lma_jax.train --config configs/imagenet.py:mobilenetv2_cbam

ResNets are trained as configs/resnet50_lma.py is, MobileNetV2 as configs/mobilenetv2_lma.py.
"""

from ml_collections import ConfigDict

from lma_jax import recipes


def get_config(model: str = "resnet50_lma") -> ConfigDict:
    config = recipes.load("mobilenetv2_lma" if model.startswith("mobilenetv2") else "common")
    config.model = model
    return config
