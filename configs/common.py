"""The paper's protocol for ResNets (Yu et al. 2023): the defaults of every recipe.

SGD with momentum 0.9 and weight decay 1e-4 on every parameter, batch 256 over 4 GPUs with BatchNorm statistics per
GPU, 100 epochs, learning rate 0.1 divided by 10 after epochs 30, 60 and 90; RandomResizedCrop(224) and horizontal
flip; evaluation on the central 224 pixels of a 256-pixel image. All other features of the trainer are disabled.

lma_jax/training/config.py describes every key and the values that it takes.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from lma_jax.preprocessing import IMAGENET


def get_config() -> ConfigDict:
    config = ConfigDict()

    # network
    config.model = "resnet50_lma"
    config.init_from = ""
    config.warm_start = ""
    config.stem = "imagenet"
    config.width = 64
    config.width_mult = 1.0
    config.drop_path = 0.0
    config.zero_init_residual = False
    config.freeze = ()
    config.seed = 0
    config.dtype = "bfloat16"
    config.batch_norm = "local"

    # data
    config.dataset = "imagenet2012"
    config.data_dir = ""
    config.train_split = "train"
    config.val_split = "validation"
    config.data_threads = 0
    config.data_workers = 0
    config.on_bad_image = "error"

    # pixels
    config.image_size = IMAGENET.image_size
    # A value computed from it, since the bare reference would take image_size along when it is set.
    config.train_image_size = 1 * config.get_ref("image_size")
    # The same share of the image for every size: 256 for 224.
    config.resize_size = config.get_ref("image_size") * IMAGENET.resize_size // IMAGENET.image_size
    config.crop_scale = (0.08, 1.0)
    config.crop_padding = 0
    config.flip = True
    config.rand_augment = 0.0
    config.random_erasing = 0.0
    config.mean = IMAGENET.mean
    config.std = IMAGENET.std

    # objective
    config.loss = "softmax"
    config.label_smoothing = 0.0
    config.target_threshold = placeholder(float)
    config.mixup = 0.0
    config.cutmix = 0.0

    # steps
    config.batch_size = 256
    config.eval_batch_size = 256
    config.accumulate = 1
    config.remat = False
    config.epochs = 100.0

    # optimizer
    config.optimizer = "sgd"
    config.learning_rate = 0.1
    config.base_batch_size = 0
    config.lr_scales = ()
    config.momentum = 0.9
    config.betas = ()
    config.weight_decay = 1e-4
    config.decay_norm_and_bias = True
    config.clip_norm = 0.0
    config.schedule = "step"
    config.warmup_epochs = 0.0
    config.decay_epochs = (30.0, 60.0, 90.0)
    config.decay_factor = 0.1
    config.ema_decay = 0.0
    config.on_nonfinite = "stop"

    # reports
    config.log_every = 100
    config.eval_every = 1.0
    config.save_every = 10.0
    config.save_every_steps = 0
    config.save_wait = 10.0
    config.step_timeout = 30.0
    config.keep_checkpoints = 2
    config.gradcam_images = 0
    config.wandb_project = ""
    return config
