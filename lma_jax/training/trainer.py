"""The training loop."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from lma_jax.data.loader import Batch, to_device, train_batches
from lma_jax.data.sources import open_source
from lma_jax.data.transforms import preprocessing_from
from lma_jax.errors import UserError
from lma_jax.training.checkpoint import Checkpoints
from lma_jax.training.config import validate
from lma_jax.training.evaluation import evaluate
from lma_jax.training.metrics import Meter, MetricsWriter
from lma_jax.training.pictures import draw_curves, draw_examples
from lma_jax.training.progress import Progress
from lma_jax.training.schedule import Clock, eval_steps, learning_rate_schedule
from lma_jax.training.state import TrainState, build_optimizer, create_state
from lma_jax.training.step import REPLICATED, SHARDED, data_mesh, make_eval_step, make_train_step


class Trainer:
    """One run: what stays fixed while its TrainState changes.

    Args:
        config: the recipe, see configs/common.py.
        workdir: folder that receives checkpoints/, metrics.jsonl, tensorboard/ and curves.png.

    Raises:
        UserError: a bad config, missing data or an unwritable workdir.
    """

    def __init__(self, config: ConfigDict, workdir: Path):
        validate(config)
        self.config = config
        self.workdir = workdir
        self.preprocessing = preprocessing_from(config)
        self.train_source = open_source(config.dataset, config.train_split, data_dir=config.data_dir)
        self.val_source = open_source(config.dataset, config.val_split, data_dir=config.data_dir)
        self.clock = Clock(len(self.train_source), config.batch_size)
        self.eval_steps = eval_steps(config, self.clock)
        self.schedule = learning_rate_schedule(config, self.clock)
        self.optimizer = build_optimizer(config, self.schedule)
        self.mesh = data_mesh()
        _make_writable(workdir)

    def fit(self) -> None:
        """Trains to the end, from the newest good checkpoint of the workdir where it holds one.

        Two runs are bit-identical, and so is a run that was killed at any moment and started again.

        Raises:
            UserError: the checkpoints of the workdir are all damaged, or of another network.
        """
        config, workdir = self.config, self.workdir
        replicated = NamedSharding(self.mesh, REPLICATED)
        network, state = create_state(config, self.train_source.num_classes, self.optimizer, replicated)
        train_step = make_train_step(
            network, self.optimizer, self.mesh, preprocessing=self.preprocessing, seed=config.seed
        )
        eval_step = make_eval_step(network, self.mesh, preprocessing=self.preprocessing)
        with Checkpoints(workdir, keep=config.keep_checkpoints) as checkpoints:
            state = checkpoints.restore(state) or state
            start, total = int(state.step), self.eval_steps[-1]
            self._announce(state)
            with (
                MetricsWriter(workdir, step=start) as writer,
                Progress(start=start, total=total, log_every=config.log_every) as progress,
            ):
                meter = Meter()
                for step, batch in zip(range(start + 1, total + 1), self._batches(start)):
                    if step == 1:
                        draw_examples(workdir, batch["image"].addressable_data(0))
                    state, metrics = train_step(state, batch)
                    meter.add(metrics)
                    progress.update(step, self.clock.epoch(step), config.batch_size, meter)
                    if step in self.eval_steps:
                        row = {**self._train_row(step, meter.means(), progress), **self._evaluate(eval_step, state)}
                        writer.write(row)
                        checkpoints.save(state, self._metadata(row), top1=row["val_top1"])
                        draw_curves(workdir, title=f"{config.model} on {config.dataset}")
                        progress.line(_summary(row))
                        progress.pause()
                        meter = Meter()
                    elif step % config.log_every == 0:
                        writer.write(self._train_row(step, meter.means_so_far(), progress))
        print(f"trained {config.model} for {total:,} steps; checkpoints, metrics.jsonl and curves.png are in {workdir}")

    def _announce(self, state: TrainState) -> None:
        size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        devices = jax.devices()
        print(
            f"{self.config.model}: {size:,} parameters on {len(devices)} x {devices[0].device_kind}; "
            f"{len(self.train_source):,} training and {len(self.val_source):,} validation images "
            f"of {self.config.dataset}, {self.train_source.num_classes} classes; "
            f"{self.eval_steps[-1]:,} steps of {self.config.batch_size:,}"
        )
        if state.step:
            print(f"resuming after step {int(state.step):,} from {self.workdir}")

    def _batches(self, start_step: int) -> Iterator[Batch]:
        config = self.config
        batches = train_batches(
            self.train_source,
            preprocessing=self.preprocessing,
            crop_scale=config.crop_scale,
            flip=config.flip,
            batch_size=config.batch_size,
            seed=config.seed,
            start_step=start_step,
            threads=config.data_threads,
        )
        return to_device(batches, NamedSharding(self.mesh, SHARDED))

    def _evaluate(self, eval_step: Any, state: TrainState) -> dict[str, float]:
        scores = evaluate(
            eval_step,
            state.params,
            state.batch_stats,
            self.val_source,
            mesh=self.mesh,
            preprocessing=self.preprocessing,
            batch_size=self.config.eval_batch_size,
            threads=self.config.data_threads,
        )
        return _prefixed("val", scores)

    def _train_row(self, step: int, means: dict[str, float], progress: Progress) -> dict[str, Any]:
        return {
            "step": step,
            "epoch": self.clock.epoch(step),
            **_prefixed("train", means),
            "learning_rate": float(self.schedule(step - 1)),
            "images_per_second": progress.images_per_second,
        }

    def _metadata(self, row: dict[str, Any]) -> dict[str, Any]:
        return {
            "model": self.config.model,
            "num_classes": self.train_source.num_classes,
            "preprocessing": vars(self.preprocessing),
            "config": self.config.to_dict(),
            "metrics": row,
        }


def _prefixed(split: str, means: dict[str, float]) -> dict[str, float]:
    return {f"{split}_{name}": value for name, value in means.items()}


def _summary(row: dict[str, Any]) -> str:
    loss, top1, top5 = (row[f"val_{name}"] for name in ("loss", "top1", "top5"))
    return f"epoch {row['epoch']:.2f}  val loss {loss:.4f}  val top-1 {top1:.2f} %  val top-5 {top5:.2f} %"


def _make_writable(workdir: Path) -> None:
    """Creates the folder and makes sure, before hours are spent, that files can be written there."""
    probe = workdir / ".writable"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to the workdir {workdir}: {error.strerror}") from error
