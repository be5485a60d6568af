"""The training loop."""

import contextlib
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from lma_jax.checkpoint.format import Checkpoint
from lma_jax.checkpoint.manager import Checkpoints
from lma_jax.checkpoint.restore import fill
from lma_jax.data.loader import Batch, Timed, to_device, train_batches
from lma_jax.data.sources import open_source
from lma_jax.data.transforms import augmentation_from
from lma_jax.definition import Definition
from lma_jax.errors import InterruptedRun, UserError
from lma_jax.flops import count_macs
from lma_jax.preprocessing import preprocessing_from
from lma_jax.sharding import REPLICATED, SHARDED, data_mesh
from lma_jax.training.config import differences, validate
from lma_jax.training.distributed import StopSignal
from lma_jax.training.evaluation import evaluate
from lma_jax.training.initial import load_initial
from lma_jax.training.meter import Meter, NonFiniteError
from lma_jax.training.objective import objective_from
from lma_jax.training.reporting.profiler import Profiler
from lma_jax.training.reporting.reporter import Reporter
from lma_jax.training.schedule import EpochClock, eval_steps, learning_rate_schedule
from lma_jax.training.state import TrainState, build_optimizer, create_state
from lma_jax.training.step import make_eval_step, make_train_step


class Trainer:
    """One run: what stays fixed while its TrainState changes.

    Args:
        config: the recipe, see configs/common.py.
        workdir: folder that receives checkpoints/, metrics.jsonl, tensorboard/ and curves.png; one and the same for
            all processes of a job.
        change_config: resume even if the config differs from the checkpoint's.
        profile: trace five steps into <workdir>/profile.

    Raises:
        UserError: a bad config, missing data or an unwritable workdir.
    """

    def __init__(self, config: ConfigDict, workdir: Path, *, change_config: bool = False, profile: bool = False):
        validate(config)
        self.config = config
        self.workdir = workdir
        self.change_config = change_config
        self.profile_folder = workdir / "profile" if profile else None
        self.preprocessing = preprocessing_from(config)
        self.train_source = open_source(config.dataset, config.train_split, data_dir=config.data_dir)
        self.val_source = open_source(config.dataset, config.val_split, data_dir=config.data_dir)
        self.num_classes = self.train_source.num_classes
        if self.val_source.classes != self.train_source.classes:
            only = sorted({*self.train_source.classes} ^ {*self.val_source.classes})
            raise UserError(
                f"{self.train_source.name} has {self.num_classes} classes and {self.val_source.name} has "
                f"{self.val_source.num_classes}, but {only[0]!r} is in one of them only: give both the same classes"
            )
        self.clock = EpochClock(len(self.train_source), config.batch_size)
        self.eval_steps = eval_steps(config, self.clock)
        self.optimizer = build_optimizer(config, learning_rate_schedule(config, self.clock))
        self.mesh = data_mesh()
        self.reading = {
            "threads": config.data_threads,
            "workers": config.data_workers,
            "on_bad_image": config.on_bad_image,
        }
        _make_writable(workdir)

    def fit(self) -> None:
        """Trains to the end, from the newest good checkpoint of the workdir where it holds one.

        Two runs are bit-identical, and so is a run that was killed at any moment and started again.

        Raises:
            UserError: the checkpoints of the workdir are all damaged, of another network or of another config; an
                image is undecodable and config.on_bad_image is "error"; or the loss is not finite and
                config.on_nonfinite is "stop".
            InterruptedRun: SIGTERM or SIGINT stopped the run, and its state is saved.
        """
        config = self.config
        network, state = create_state(config, self.num_classes, self.optimizer, NamedSharding(self.mesh, REPLICATED))
        with Checkpoints(self.workdir, keep=config.keep_checkpoints) as checkpoints, StopSignal(self.mesh) as stop:
            state, saved, origin = self._first_state(checkpoints, state)
            start = int(state.step)
            with Reporter(config, self.workdir, self.clock, start=start, eval_steps=self.eval_steps) as reporter:
                reporter.say(self._description(network, state))
                reporter.say(origin)
                run = Run(self, network, state, saved, checkpoints=checkpoints, reporter=reporter, stop=stop)
                run.finish()

    def _first_state(self, checkpoints: Checkpoints, state: TrainState) -> tuple[TrainState, Checkpoint | None, str]:
        """The state to go on from, the checkpoint that it is from, if any, and its origin in words."""
        checkpoint = checkpoints.load()
        if checkpoint is not None:
            changed = differences(self.config, checkpoint.metadata["config"])
            if changed and not self.change_config:
                raise UserError(
                    f"{self.workdir} holds a run with another config: {', '.join(changed)}. Take another --workdir, "
                    "or resume with these values by --change_config"
                )
            state = fill(state, checkpoint, sharding=state.step.sharding)
            checkpoints.set_aside_after(checkpoint.step)
            return state, checkpoint, f"resuming after step {checkpoint.step:,} from {self.workdir}"
        if self.config.init_from:
            state, origin = load_initial(self.config, state)
            return state, None, f"starting from {origin}"
        return state, None, f"starting from random weights (seed {self.config.seed})"

    def _description(self, network: Definition, state: TrainState) -> str:
        size, devices = sum(leaf.size for leaf in jax.tree.leaves(state.params)), jax.devices()
        side = self.preprocessing.image_size
        images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)

        def forward(params: Any, batch_stats: Any, images: Any) -> Any:
            model = network.bind(params, batch_stats)
            model.eval()
            return model(images)

        macs = count_macs(forward, state.params, state.batch_stats, images)
        return (
            f"{self.config.model}: {size:,} parameters, {macs / 1e9:.3f} G multiply-accumulates at {side} pixels; "
            f"{len(devices)} x {devices[0].device_kind} in {jax.process_count()} processes\n"
            f"{self.config.dataset}: {len(self.train_source):,} training and {len(self.val_source):,} validation "
            f"images, {self.num_classes} classes; {self.eval_steps[-1]:,} steps of {self.config.batch_size:,}"
        )


class Run:
    """A run on its way: its state, and what was measured since the last evaluation."""

    def __init__(
        self,
        trainer: Trainer,
        network: Definition,
        state: TrainState,
        saved: Checkpoint | None,
        *,
        checkpoints: Checkpoints,
        reporter: Reporter,
        stop: StopSignal,
    ):
        self.trainer = trainer
        self.state = state
        self.step = int(state.step)
        self.meter = Meter(saved.metadata["sums"] if saved else None)
        self.evaluation_is_due = saved is not None and not saved.metadata["metrics"] and self.step in trainer.eval_steps
        self.checkpoints = checkpoints
        self.reporter = reporter
        self.stop = stop
        self.train_step = self._compiled_train_step(network)
        self.eval_step = make_eval_step(network, trainer.mesh, preprocessing=trainer.preprocessing)

    def finish(self) -> None:
        """Trains to the last step, or to the step at which a signal or a loss stops it."""
        try:
            try:
                self._train_to_the_end()
            except InterruptedRun as interruption:
                self._save({})
                raise InterruptedRun(
                    f"stopped by {interruption} after step {self.step:,}; the same command goes on from the newest "
                    f"checkpoint in {self.trainer.workdir}"
                ) from None
        except NonFiniteError as error:
            self.checkpoints.wait()
            newest = self.checkpoints.newest
            good = "there is no checkpoint yet" if newest is None else f"the last good checkpoint is {newest}"
            raise UserError(
                f"{error}; {good} in {self.trainer.workdir}. Try a lower config.learning_rate, config.clip_norm=1.0, "
                "or config.on_nonfinite=skip"
            ) from error

    def _train_to_the_end(self) -> None:
        trainer = self.trainer
        if self.evaluation_is_due:
            self._evaluate()
        profiler = Profiler(trainer.profile_folder, start=self.step, total=trainer.eval_steps[-1])
        with contextlib.closing(Timed(self._batches())) as batches:
            self._train(batches, profiler)
        self.reporter.say(
            f"trained {trainer.config.model} for {self.step:,} steps; checkpoints, metrics.jsonl and curves.png are in "
            f"{trainer.workdir}"
        )

    def _train(self, batches: Timed, profiler: Profiler) -> None:
        trainer = self.trainer
        while self.step < trainer.eval_steps[-1]:
            batch = next(batches)
            profiler.before(self.step + 1)
            self.state, metrics = self.train_step(self.state, batch)
            self.step += 1
            if self.step == 1:  # drawn while the devices compute
                self.reporter.examples(batch["image"].addressable_data(0))
            self.meter.add(self.step, metrics)
            self.reporter.step(self.step, self.meter, waited=batches.seconds)
            self.reporter.say(profiler.after(self.step, metrics))
            self.stop.check()
            if self.step in trainer.eval_steps:
                self._evaluate()

    def _evaluate(self) -> None:
        """Evaluates, reports and saves."""
        trainer = self.trainer
        train_means = self.meter.means()
        scores = evaluate(
            self.eval_step,
            *self.state.evaluated,
            trainer.val_source,
            mesh=trainer.mesh,
            preprocessing=trainer.preprocessing,
            batch_size=trainer.config.eval_batch_size,
            check=self.stop.check,
            **trainer.reading,
        )
        row = self.reporter.evaluation(self.step, train_means, scores)
        self.meter = Meter()
        self._save(row)

    def _save(self, row: dict[str, Any]) -> None:
        """Saves the state with the metrics of its evaluation; none where it is still to be evaluated."""
        trainer = self.trainer
        sums = self.meter.sums()
        if not _all_finite(self.state.params):
            raise NonFiniteError(f"a weight is infinite or no number after step {self.step:,}")
        metadata = {
            "model": trainer.config.model,
            "num_classes": trainer.num_classes,
            "preprocessing": vars(trainer.preprocessing),
            "config": trainer.config.to_dict(),
            "metrics": row,
            "sums": sums,
        }
        self.checkpoints.save(self.state, metadata, top1=row.get("val_top1", -1.0))

    def _batches(self) -> Generator[Batch]:
        trainer = self.trainer
        batches = train_batches(
            trainer.train_source,
            augmentation=augmentation_from(trainer.config),
            batch_size=trainer.config.batch_size,
            seed=trainer.config.seed,
            start_step=self.step,
            **trainer.reading,
        )
        return to_device(batches, NamedSharding(trainer.mesh, SHARDED))

    def _compiled_train_step(self, network: Definition) -> Callable[[TrainState, Any], Any]:
        trainer, config = self.trainer, self.trainer.config
        train_step = make_train_step(
            network,
            trainer.optimizer,
            trainer.mesh,
            preprocessing=trainer.preprocessing,
            objective=objective_from(config, num_classes=trainer.num_classes),
            seed=config.seed,
            accumulate=config.accumulate,
            ema_decay=config.ema_decay,
            remat=config.remat,
            skip_nonfinite=config.on_nonfinite == "skip",
        )
        start = time.perf_counter()
        compiled = train_step.lower(self.state, self._batch_shapes()).compile()
        self.reporter.say(f"compiled the training step in {time.perf_counter() - start:.1f} s")
        return compiled

    def _batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        config, sharding = self.trainer.config, NamedSharding(self.trainer.mesh, SHARDED)
        size, side = config.batch_size, config.train_image_size
        image = jax.ShapeDtypeStruct((size, side, side, 3), jnp.uint8, sharding=sharding)
        label, mask, skipped = (
            jax.ShapeDtypeStruct((size,), dtype, sharding=sharding) for dtype in (jnp.int32, jnp.bool, jnp.int32)
        )
        return {"image": image, "label": label, "mask": mask, "skipped": skipped}


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _make_writable(workdir: Path) -> None:
    """Creates the folder and makes sure, before hours are spent, that files can be written there."""
    probe = workdir / f".writable-{jax.process_index()}"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to the workdir {workdir}: {error.strerror}") from error
