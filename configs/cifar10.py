"""Any network on CIFAR-10 as image files, narrow enough for a CPU: configs/cifar10.py:resnet18_se, for instance.

    python -m lma_jax.train --config configs/cifar10.py --config.data_dir=<folder that holds train/ and val/>

ResNets have the stem for small images and an eighth of the usual width. After 5 epochs, 12 to 14 minutes of one CPU
core (20 for CBAM), resnet18 reached 73.64 % top-1 in the mean of three seeds, resnet18_lma 71.39 %, resnet18_se
72.19 %, resnet18_eca 72.30 % and resnet18_cbam 70.65 %; docs/results.md says what that shows and what it does not.
"""

from ml_collections import ConfigDict

from lma_jax import recipes


def get_config(model: str = "resnet18_lma") -> ConfigDict:
    config = recipes.load("common")
    config.model = model
    config.dtype = "float32"
    if model.startswith("resnet"):
        config.stem = "small"
        config.width = 8

    config.dataset = "folder"
    config.data_dir = "cifar10"
    config.val_split = "val"
    config.image_size = 32
    config.resize_size = 32
    config.crop_padding = 4
    config.mean = (0.4914, 0.4822, 0.4465)
    config.std = (0.2470, 0.2435, 0.2616)

    config.batch_size = 128
    config.eval_batch_size = 500
    config.epochs = 5.0
    config.learning_rate = 0.1
    config.weight_decay = 5e-4
    config.schedule = "cosine"
    config.warmup_epochs = 1.0
    return config
