"""LMA-ResNet-18 on the embedded handwritten digits: the whole trainer in a minute or two on 2 CPU cores.

    python -m lma_jax.train --config configs/digits.py

Expected: above 98 % top-1 on the 360 held-out digits.
"""

from ml_collections import ConfigDict

from lma_jax import recipes


def get_config() -> ConfigDict:
    config = recipes.load("common")
    config.model = "resnet18_lma"
    config.dtype = "float32"
    config.dataset = "digits"
    config.val_split = "test"
    config.data_threads = 2
    config.image_size = 16
    config.resize_size = 16
    config.crop_scale = (0.7, 1.0)
    config.flip = False
    config.mean = (0.5, 0.5, 0.5)
    config.std = (0.5, 0.5, 0.5)
    config.batch_size = 64
    config.eval_batch_size = 120
    config.epochs = 10.0
    config.learning_rate = 0.05
    config.decay_epochs = (7.0, 9.0)
    config.log_every = 10
    return config
