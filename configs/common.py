"""The paper's protocol for ResNets (Yu et al. 2023): the values that every config starts from.

SGD with momentum 0.9 and weight decay 1e-4 on every parameter, batch 256 over 4 GPUs with BatchNorm statistics per
GPU, 100 epochs, learning rate 0.1 divided by 10 after epochs 30, 60 and 90; RandomResizedCrop(224) and horizontal
flip; evaluation on the central 224 pixels of a 256-pixel image. What else the trainer can do is off.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.model = "resnet50_lma"  # one of lma_jax.list_models()
    config.init_from = ""  # workdir, .safetensors or .pth to start from; another class count makes a new head
    config.warm_start = ""  # "exact": init_from is the plain network, and the LMA network starts as the same function
    config.seed = 0
    config.dtype = "bfloat16"  # of the computation: bfloat16, float32 or float64; weights and statistics: >= float32
    config.batch_norm = "local"  # batch statistics of each device, or over all devices: "sync"

    config.dataset = "imagenet2012"  # a TFDS image-classification build, "folder" or "digits"
    config.data_dir = ""  # where TFDS builds lie (empty: ~/tensorflow_datasets), or the image folder
    config.train_split = "train"
    config.val_split = "validation"
    config.data_threads = 16
    config.data_workers = 0  # processes that decode images instead of the threads of this one
    config.on_bad_image = "error"  # or "skip": the next image takes the place of an undecodable one
    config.image_size = 224
    config.train_image_size = config.get_ref("image_size")
    config.resize_size = 256  # the shorter side before the central crop of evaluation
    config.crop_scale = (0.08, 1.0)  # area of the random crop, as a fraction of the image's
    config.flip = True
    config.rand_augment = 0.0  # magnitude, up to 10
    config.mean = (0.485, 0.456, 0.406)
    config.std = (0.229, 0.224, 0.225)

    config.loss = "softmax"  # cross-entropy; "sigmoid": binary cross-entropy, averaged over the classes
    config.label_smoothing = 0.0
    config.target_threshold = placeholder(float)  # targets above it count as 1, others as 0
    config.mixup = 0.0  # alpha of the Beta distribution of the mixing weight
    config.cutmix = 0.0  # likewise; with both, each takes half of the batches

    config.batch_size = 256  # over all devices
    config.eval_batch_size = 256
    config.accumulate = 1  # parts of a device's batch that are computed one after the other, to save memory
    config.remat = False  # True: compute all but convolutions again in the backward pass, to save memory
    config.epochs = 100.0
    config.optimizer = "sgd"  # or "lamb"
    config.learning_rate = 0.1
    config.base_batch_size = 0  # above 0: learning_rate is for this batch size, and scaled to batch_size
    config.momentum = 0.9  # of sgd
    config.weight_decay = 1e-4
    config.decay_norm_and_bias = True
    config.clip_norm = 0.0  # above 0: gradients are scaled down to this global norm
    config.schedule = "step"  # decay after each of decay_epochs; "exponential": after every epoch; "cosine": to 0
    config.warmup_epochs = 0.0
    config.decay_epochs = (30.0, 60.0, 90.0)
    config.decay_factor = 0.1
    config.ema_decay = 0.0  # above 0: a moving average of the weights is evaluated and exported
    config.on_nonfinite = "stop"  # or "skip": an update with a non-finite loss or gradient is left out

    config.log_every = 100  # steps
    config.eval_every = 1.0  # epochs; each evaluation saves a checkpoint
    config.keep_checkpoints = 2  # the newest ones; the best by validation top-1 is kept as well
    config.wandb_project = ""  # Weights & Biases project that receives the metrics
    return config
