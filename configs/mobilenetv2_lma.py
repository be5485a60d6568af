"""LMA-MobileNetV2 on ImageNet by the protocol of the papers that LMA compares against.

    python -m lma_jax.train --config configs/mobilenetv2_lma.py

SGD with weight decay 4e-5, batch 96, learning rate 0.045 times 0.98 an epoch, 400 epochs.
Hardware: 1 to 4 GPUs. Expected: 72.98 % top-1 and 91.23 % top-5 (the paper's Table 1).
"""

from ml_collections import ConfigDict

from lma_jax import recipes


def get_config() -> ConfigDict:
    config = recipes.load("common")
    config.model = "mobilenetv2_lma"
    config.batch_size = 96
    config.eval_batch_size = 96
    config.epochs = 400.0
    config.learning_rate = 0.045
    config.weight_decay = 4e-5
    config.schedule = "exponential"
    config.decay_factor = 0.98
    return config
