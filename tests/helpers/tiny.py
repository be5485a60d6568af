"""A network of one convolution that compiles in a second, for tests of training itself."""

from functools import partial

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

import lma_jax.layers
from configs import common
from lma_jax.attention import Placement
from lma_jax.data.batch import random_batch
from lma_jax.preprocessing import Preprocessing
from lma_jax.registry import BACKBONES, Backbone, in_resnet
from lma_jax.sharding import REPLICATED, SHARDED, data_mesh
from lma_jax.training.objective import objective_from
from lma_jax.training.reporting import reporter
from lma_jax.training.schedule import EpochClock, learning_rate_schedule
from lma_jax.training.state import build_model, create_state, optimizer_from
from lma_jax.training.step import make_eval_step, make_train_step

PREPROCESSING = Preprocessing(image_size=16, resize_size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
CLASSES = 10


class Tiny(lma_jax.layers.Network):
    """Convolution, normalisation, attention, and a head with dropout."""

    def __init__(self, *, num_classes, attention, dropout=0.0, rngs, **options):
        self.conv1 = lma_jax.layers.conv(3, 8, 3, stride=2, rngs=rngs, **options)
        self.bn1 = lma_jax.layers.BatchNorm(8, rngs=rngs, **options)
        self.attention = next(iter(Placement.of(attention, "branch").at("branch", 8, rngs=rngs, **options)), None)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.fc = nnx.Linear(8, num_classes, rngs=rngs, **options)

    def forward_features(self, x):
        x = self.bn1(self.conv1(x))
        return nnx.relu(x if self.attention is None else self.attention(x))

    def forward_head(self, x):
        return self.fc(self.dropout(x.mean((1, 2))))


def register(monkeypatch) -> None:
    """Makes tiny, tiny_lma and tinydropout known to create_model for the length of a test, which draws no curves."""
    monkeypatch.setattr(reporter, "draw_curves", lambda workdir, *, title: None)
    monkeypatch.setitem(BACKBONES, "tiny", Backbone(Tiny, in_resnet))
    monkeypatch.setitem(BACKBONES, "tinydropout", Backbone(partial(Tiny, dropout=0.5), in_resnet))


def recipe(**values) -> ConfigDict:
    """The paper's recipe with another model and `values`; an epoch has two steps."""
    config = common.get_config()
    config.update(model="tiny_lma", dtype="float32", batch_norm="sync", batch_size=16, epochs=10.0)
    config.update(decay_epochs=(1.0, 2.0), **values)
    return config


class Trial:
    """A small training run on some of the devices."""

    def __init__(self, *, devices: int = 1, seed: int = 0, **values):
        config = recipe(**values)
        self.config = config
        schedule = learning_rate_schedule(config, EpochClock(32, config.batch_size))
        self.optimizer = optimizer_from(config, schedule)
        self.mesh = data_mesh(jax.devices()[:devices])
        build = partial(
            build_model,
            config.model,
            num_classes=CLASSES,
            dtype=config.dtype,
            batch_norm=config.batch_norm,
            seed=config.seed,
            freeze=config.freeze,
        )
        sharding = NamedSharding(self.mesh, REPLICATED)
        self.definition, self.state = create_state(
            build, self.optimizer, freeze=config.freeze, keep_ema=bool(config.ema_decay), sharding=sharding
        )
        self.objective = objective_from(config, num_classes=CLASSES)
        self.train_step = make_train_step(
            self.definition,
            self.optimizer,
            self.mesh,
            preprocessing=PREPROCESSING,
            objective=self.objective,
            seed=seed,
            accumulate=config.accumulate,
            ema_decay=config.ema_decay,
            remat=config.remat,
            skip_nonfinite=config.on_nonfinite == "skip",
            freeze=config.freeze,
            erasing=config.random_erasing,
        )
        self.eval_step = make_eval_step(self.definition, self.mesh, preprocessing=PREPROCESSING)

    def model(self) -> nnx.Module:
        """The network with its present weights."""
        return self.definition.bind(self.state.params, self.state.batch_stats)

    def put(self, batch):
        return jax.device_put(batch, NamedSharding(self.mesh, SHARDED))

    def train(self, *batches) -> dict[str, float]:
        """Takes a step on each batch and returns the last one's metrics."""
        for batch in batches:
            self.state, metrics = jax.block_until_ready(self.train_step(self.state, self.put(batch)))
        return {name: float(value) for name, value in metrics.items()}


def batch(seed: int, size: int = 16) -> dict[str, np.ndarray]:
    return random_batch(size, 16, num_classes=CLASSES, seed=seed)


def assert_close(actual, expected, tolerance: float):
    """Leaf by leaf, relative to the largest value of the leaf."""
    others = dict(jax.tree_util.tree_leaves_with_path(actual))
    for path, value in jax.tree_util.tree_leaves_with_path(expected):
        scale = float(np.abs(np.asarray(value)).max()) or 1.0
        np.testing.assert_allclose(
            np.asarray(others[path]) / scale, np.asarray(value) / scale, atol=tolerance, rtol=0, err_msg=str(path)
        )
