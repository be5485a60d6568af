"""LMA-ResNet-50 on ImageNet by procedure A3 of "ResNet strikes back" (Wightman, Touvron, Jégou 2021).

    python -m lma_jax.train --config configs/resnet50_lma_a3.py

LAMB, cosine, binary cross-entropy, Mixup, CutMix and RandAugment; training at 160 pixels, evaluation at 224. Beyond
the paper, a moving average over the last epoch or two is what is evaluated and exported.
Hardware: 4 GPUs with 512 images each. Expected: the paper reports 78.1 % top-1 for the plain ResNet-50.
"""

from ml_collections import ConfigDict

from lma_jax import recipes


def get_config() -> ConfigDict:
    config = recipes.load("common")
    config.model = "resnet50_lma"
    config.train_image_size = 160
    config.resize_size = 235  # 224 are 95 % of it
    config.rand_augment = 6.0
    config.loss = "sigmoid"
    config.target_threshold = 0.2
    config.mixup = 0.1
    config.cutmix = 1.0
    config.batch_size = 2048
    config.optimizer = "lamb"
    config.learning_rate = 8e-3
    config.weight_decay = 0.02
    config.decay_norm_and_bias = False
    config.clip_norm = 1.0
    config.schedule = "cosine"
    config.warmup_epochs = 5.0
    config.ema_decay = 0.999
    return config
