"""A config for the command line that trains a network of a second: 18 steps, evaluated and saved every 6."""

from ml_collections import ConfigDict

from configs import digits
from lma_jax.registry import BACKBONES, Backbone, in_resnet
from lma_jax.training.reporting import reporter
from tests.helpers import tiny


def get_config() -> ConfigDict:
    BACKBONES["tiny"] = Backbone(tiny.Tiny, in_resnet)
    reporter.draw_curves = lambda workdir, *, title: None  # takes longer than its training
    config = digits.get_config()
    config.update(model="tiny_lma", image_size=8, resize_size=8, batch_size=8, eval_batch_size=360)
    config.update(epochs=0.1, eval_every=0.0334, decay_epochs=(0.05,), log_every=1)
    return config
