"""The paper's protocol for ResNets (Yu et al. 2023): the values that every config starts from.

SGD with momentum 0.9 and weight decay 1e-4 on every parameter, batch 256 over 4 GPUs with BatchNorm statistics per
GPU, 100 epochs, learning rate 0.1 divided by 10 after epochs 30, 60 and 90; RandomResizedCrop(224) and horizontal
flip; evaluation on the central 224 pixels of a 256-pixel image.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.model = "resnet50_lma"  # one of lma_jax.list_models()
    config.seed = 0
    config.dtype = "bfloat16"  # of the computation: bfloat16 or float32; weights and statistics are float32
    config.batch_norm = "local"  # batch statistics of each device, or over all devices: "sync"

    config.dataset = "imagenet2012"  # a TFDS image-classification build, or digits
    config.data_dir = ""  # where TFDS builds lie; empty: ~/tensorflow_datasets
    config.train_split = "train"
    config.val_split = "validation"
    config.data_threads = 16
    config.image_size = 224
    config.resize_size = 256  # the shorter side before the central crop of evaluation
    config.crop_scale = (0.08, 1.0)  # area of the random crop, as a fraction of the image's
    config.flip = True
    config.mean = (0.485, 0.456, 0.406)
    config.std = (0.229, 0.224, 0.225)

    config.batch_size = 256  # over all devices
    config.eval_batch_size = 256
    config.epochs = 100.0
    config.learning_rate = 0.1
    config.momentum = 0.9
    config.weight_decay = 1e-4
    config.schedule = "step"  # decay after each of decay_epochs; "exponential": after every epoch
    config.decay_epochs = (30.0, 60.0, 90.0)
    config.decay_factor = 0.1

    config.log_every = 100  # steps
    config.eval_every = 1.0  # epochs; each evaluation saves a checkpoint
    config.keep_checkpoints = 2  # the newest ones; the best by validation top-1 is kept as well
    return config
