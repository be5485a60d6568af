"""The training loop."""

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from lma_jax import files, output
from lma_jax.checkpoint.format import Checkpoint, Metadata, to_arrays
from lma_jax.checkpoint.manager import NOT_EVALUATED, Checkpoints
from lma_jax.checkpoint.restore import fill
from lma_jax.data.batch import Batch, batch_spec
from lma_jax.data.loader import Timed, eval_batches, reading_from, to_device, train_batches
from lma_jax.data.sources import changes, open_source
from lma_jax.data.transforms import augmentation_from
from lma_jax.definition import Definition
from lma_jax.errors import InterruptedRun, LostWorker, UserError, warn
from lma_jax.flops import count_macs
from lma_jax.preprocessing import preprocessing_from
from lma_jax.registry import recorded_options, registered_by
from lma_jax.sharding import REPLICATED, SHARDED, data_mesh
from lma_jax.training.config import START, differences, validate
from lma_jax.training.distributed import StopSignal, of_first_process, sole_writer_of_job
from lma_jax.training.doubts import doubts
from lma_jax.training.evaluation import evaluate
from lma_jax.training.initial import SHAPING, load_initial
from lma_jax.training.meter import Meter, NonFiniteError
from lma_jax.training.objective import loss_name, objective_from
from lma_jax.training.reporting.gradcam import GradCam
from lma_jax.training.reporting.profiler import Profiler
from lma_jax.training.reporting.reporter import Reporter
from lma_jax.training.schedule import EpochClock, SaveClock, eval_steps, learning_rate_schedule
from lma_jax.training.state import TrainState, build_model, create_state, optimizer_from
from lma_jax.training.step import make_eval_step, make_train_step
from lma_jax.training.watch import StepWatch


class Trainer:
    """One training run.

    Args:
        config: the recipe, see configs/common.py.
        workdir: folder that receives checkpoints/, metrics.jsonl, tensorboard/ and pictures; all processes of a job
            share it.
        change_config: resume even if the config or the data differ from the checkpoint's.
        profile: trace five steps into <workdir>/profile.
        replaced: of the keys that were set beside the recipe, the values in the recipe, for warnings.

    Attributes:
        state: weights, statistics and optimizer; None before `fit`.
        step: number of steps taken.
        meter: training metrics since the last evaluation.

    Raises:
        UserError: a bad config, missing data or an unwritable workdir.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        *,
        change_config: bool = False,
        profile: bool = False,
        replaced: Mapping[str, Any] | None = None,
    ):
        validate(config)
        for line in doubts(config, replaced) if jax.process_index() == 0 else ():
            warn(line)
        self.config = config
        self.workdir = workdir
        self.change_config = change_config
        self.profile_folder = workdir / "profile" if profile else None
        self.preprocessing = preprocessing_from(config)
        self.reading = reading_from(config)
        self.train_source = open_source(config.dataset, config.train_split, data_dir=config.data_dir)
        self.val_source = open_source(config.dataset, config.val_split, data_dir=config.data_dir)
        self._require_same_classes()
        self.objective = objective_from(config, num_classes=self.train_source.num_classes)
        self.clock = EpochClock(len(self.train_source), config.batch_size)
        self.eval_steps = eval_steps(config, self.clock)
        self.schedule = learning_rate_schedule(config, self.clock)
        self.optimizer = optimizer_from(config, self.schedule)
        self.mesh = data_mesh()
        self.state: TrainState | None = None
        self.step = 0
        self.meter = Meter()
        self.save_clock = SaveClock(config.save_every)
        self.start: dict[str, Any] = {key: config[key] for key in START}
        self._saved_step = 0  # at which a state was saved, or started to be
        _require_writable(workdir)

    def fit(self) -> None:
        """Trains to the end, starting from the newest good checkpoint of the workdir if it holds one.

        Two runs are bit-identical, and so is a run that was killed at any moment and started again.

        Raises:
            UserError: the checkpoints of the workdir are all damaged, of another network, config or data; an
                image cannot be decoded and config.on_bad_image is "error"; the loss is not finite and
                config.on_nonfinite is "stop"; or the last state cannot be saved.
            InterruptedRun: SIGTERM, SIGINT or SIGHUP stopped the run, and its state is saved.
        """
        self.data = self._data_identity()
        with ExitStack() as stack:
            stack.enter_context(output.unimportant())
            stack.enter_context(sole_writer_of_job(self.workdir))
            self.stop = stack.enter_context(StopSignal(self.mesh))
            definition, fresh = self._fresh_state()
            self.checkpoints = stack.enter_context(Checkpoints(self.workdir, keep=self.config.keep_checkpoints))
            checkpoint = self.checkpoints.load()
            self.state, origin = self._resume(fresh, checkpoint) if checkpoint else self._start(fresh, definition)
            self.step = self._saved_step = int(self.state.step)
            self._must_evaluate = bool(checkpoint and not checkpoint.metadata.metrics and self.step in self.eval_steps)
            self.reporter = stack.enter_context(
                Reporter(
                    self.config,
                    self.workdir,
                    self.clock,
                    schedule=self.schedule,
                    start=self.step,
                    reported=self.step - self._must_evaluate,
                    eval_steps=self.eval_steps,
                    class_names=self.train_source.class_names,
                    gradcam=self._gradcam(definition),
                )
            )
            self.reporter.line(partial(self._description, definition))
            self.reporter.line(origin)
            self.watch = stack.enter_context(StepWatch(self.config.step_timeout, self.workdir))
            with self._explained():
                self._train_to_the_end(definition)

    def _require_same_classes(self) -> None:
        train, val = self.train_source, self.val_source
        if val.class_names != train.class_names:
            only = sorted({*train.class_names} ^ {*val.class_names})
            raise UserError(
                f"{train.name} has {train.num_classes} classes and {val.name} has {val.num_classes}, but {only[0]!r} "
                "is in one of them only: give both the same classes"
            )

    def _fresh_state(self) -> tuple[Definition, TrainState]:
        config = self.config
        build = partial(
            build_model,
            config.model,
            num_classes=self.train_source.num_classes,
            dtype=config.dtype,
            batch_norm=config.batch_norm,
            seed=config.seed,
            freeze=config.freeze,
            **recorded_options(config.model, config),
        )
        options: dict[str, Any] = dict(freeze=config.freeze, keep_ema=bool(config.ema_decay))
        return create_state(build, self.optimizer, **options, sharding=NamedSharding(self.mesh, REPLICATED))

    def _start(self, fresh: TrainState, definition: Definition) -> tuple[TrainState, str]:
        """The state of a new run, and a line about where its weights are from."""
        if self.config.init_from:
            state, origin = load_initial(self.config, fresh, class_names=self.train_source.class_names)
            return state, f"starting from {origin}"
        return fresh, f"starting from random weights (seed {self.config.seed})"

    def _resume(self, fresh: TrainState, checkpoint: Checkpoint) -> tuple[TrainState, str]:
        """The state of a checkpoint of this run, and a line about it."""
        changed = of_first_process(self._changed_since(checkpoint.metadata))
        if _is_of_another_network(self.config, checkpoint.metadata):
            raise UserError(f"{self.workdir} holds a run {changed}, and so of another network: take another --workdir")
        if changed and not self.change_config:
            raise UserError(
                f"{self.workdir} holds a run {changed}. Take another --workdir, or resume with these by --change_config"
            )
        if not self.change_config or checkpoint.metadata.num_classes != self.train_source.num_classes:
            checkpoint.metadata.require_classes(self.train_source.class_names, self.train_source.name)
        try:
            state = fill(fresh, checkpoint.arrays, sharding=fresh.step.sharding, source=str(checkpoint))
        except UserError as error:
            if not _differs_beside_weights_only(fresh, checkpoint):
                raise
            raise UserError(
                f"{self.workdir} holds a run {changed}. Its weights fit, the state of its optimizer does not: start "
                f"another --workdir from its weights, by --config.init_from={self.workdir}"
            ) from error
        self.checkpoints.set_aside_after(checkpoint.step)
        self.meter = Meter(checkpoint.metadata.sums)
        self.start = {key: checkpoint.metadata.config.get(key, "") for key in START}
        origin = f"resuming after step {checkpoint.step:,} from {self.workdir}"
        return state, f"{origin}, a run {changed}" if changed else origin

    def _changed_since(self, saved: Metadata) -> str:
        """What differs from the run of a checkpoint, its config or its data; empty if nothing does."""
        parts = []
        if values := differences(self.config, saved.config):
            parts.append(f"with another config: {', '.join(values)}")
        for split, identity in self.data.items():
            if found := changes(identity, saved.data.get(split, {})):
                parts.append(f"on other {split} data: {', '.join(found)}")
        return " and ".join(parts)

    def _data_identity(self) -> dict[str, Mapping[str, str]]:
        """The identities of the sources; only of the first process, which compares and saves them for all."""
        if jax.process_index() > 0:
            return {}
        return {"train": self.train_source.identity(), "validation": self.val_source.identity()}

    def _gradcam(self, definition: Definition) -> GradCam | None:
        config = self.config
        if not config.gradcam_images:
            return None
        options: dict[str, Any] = dict(preprocessing=self.preprocessing, model=config.model, loss=config.loss)
        return GradCam(definition, self.val_source, config.gradcam_images, **options)

    def _description(self, definition: Definition) -> str:
        assert self.state is not None
        config, devices, side = self.config, jax.devices(), self.preprocessing.image_size
        size = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))
        model = definition.bind(self.state.params, self.state.batch_stats)
        macs = count_macs(model, jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32))
        return (
            f"{config.model}: {size:,} parameters, {macs / 1e9:.3f} G multiply-accumulates at {side} pixels; "
            f"{len(devices)} x {devices[0].device_kind} in {jax.process_count()} process(es)\n"
            f"{config.dataset}: {len(self.train_source):,} training and {len(self.val_source):,} validation images, "
            f"{self.train_source.num_classes} classes; {self.eval_steps[-1]:,} steps of {config.batch_size:,}"
        )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Saves the state on a signal, and adds the last good checkpoint to the error of a non-finite loss."""
        try:
            try:
                yield
            except InterruptedRun as interruption:
                # Alone, a process of a job cannot save: the others wait for its next step.
                if jax.process_count() == 1 or not isinstance(interruption, LostWorker):
                    if self.step != self._saved_step:
                        self._save({})
                    self._finish_saves()
                where = f"after step {self.step:,}" if self.step else "before the first step"
                onwards = f"goes on from the newest checkpoint in {self.workdir}" if self.step else "starts again"
                message = f"stopped by {interruption} {where}; the same command {onwards}"
                raise type(interruption)(message) from None
        except NonFiniteError as error:
            self.checkpoints.wait()
            newest = self.checkpoints.newest
            good = "there is no checkpoint yet" if newest is None else f"the last good checkpoint is {newest}"
            raise UserError(
                f"{error}; {good} in {self.workdir}. Try a lower config.learning_rate, config.clip_norm=1.0, "
                "or config.on_nonfinite=skip"
            ) from error

    def _finish_saves(self) -> None:
        self.watch.pause()
        self.checkpoints.finish(minutes=self.config.save_wait, check=self.stop.check)

    def _train_to_the_end(self, definition: Definition) -> None:
        name = loss_name(self.config)
        eval_step = make_eval_step(definition, self.mesh, preprocessing=self.preprocessing, loss_name=name)
        profiler = Profiler(self.profile_folder, start=self.step, total=self.eval_steps[-1])
        self.stop.check()
        if self._must_evaluate:  # a signal came between the last step and its evaluation
            self._evaluate(eval_step)
        if self.step < self.eval_steps[-1]:
            train_step = self._compile_train_step(definition)
            self.stop.check()
            with contextlib.closing(Timed(self._train_batches())) as batches:
                self._train(train_step, eval_step, batches, profiler)
        self._finish_saves()
        self.reporter.finished()
        self.reporter.line(
            f"trained {self.config.model} for {self.step:,} steps; checkpoints, metrics.jsonl and curves.png are in "
            f"{self.workdir}"
        )

    def _train(self, train_step: Callable[..., Any], eval_step: Any, batches: Timed, profiler: Profiler) -> None:
        self.watch.progress()
        while self.step < self.eval_steps[-1]:
            batch = next(batches)
            profiler.before(self.step + 1)
            self.state, metrics = train_step(self.state, batch)
            self.step += 1
            if self.step == 1:  # drawn while the devices compute
                self.reporter.examples(batch["image"].addressable_data(0), batch["label"].addressable_data(0))
            self.meter.add(self.step, metrics)
            self.reporter.step(self.step, self.meter, waited=batches.seconds)
            if traced := profiler.after(self.step, metrics):
                self.reporter.line(traced)
            self.watch.progress()
            self.checkpoints.poll()
            save = self.stop.check(save=self._asks_for_save())
            if self.step in self.eval_steps:
                self._evaluate(eval_step)
            elif save or (self.config.save_every_steps and self.step % self.config.save_every_steps == 0):
                self._save({})

    def _asks_for_save(self) -> bool:
        """Whether a save is due by the clock of the first process, which writes, and can start without a wait."""
        if jax.process_index() > 0 or not self.save_clock.due or self.checkpoints.busy:
            return False
        self.save_clock.restart()  # so that it asks once, even if the answer comes a step later
        return True

    def _evaluate(self, eval_step: jax.stages.Wrapped) -> None:
        """Evaluates, reports and saves."""
        assert self.state is not None
        train_means = self.meter.means()
        options: dict[str, Any] = dict(batch_size=self.config.eval_batch_size, reading=self.reading)
        batches = eval_batches(self.val_source, preprocessing=self.preprocessing, **options)
        on_mesh = to_device(batches, NamedSharding(self.mesh, SHARDED))
        self.watch.progress()
        scores = evaluate(self.watch.uncounted_once(eval_step), *self.state.evaluated, on_mesh, check=self._check)
        row = self.reporter.evaluation(self.step, train_means, scores)
        self.meter = Meter()
        self.watch.pause()
        self.reporter.gradcam(self.step, *self.state.evaluated)
        self._save(row)

    def _check(self) -> None:
        self.watch.progress()
        self.stop.check()

    def _save(self, metrics: dict[str, Any]) -> None:
        """Saves the state with the metrics of its evaluation, which are empty if it is still to be evaluated."""
        assert self.state is not None
        self.watch.pause()
        sums = self.meter.sums()
        if not _all_finite(self.state.params):
            raise NonFiniteError(f"a weight is infinite or NaN after step {self.step:,}")
        metadata = Metadata(
            model=self.config.model,
            num_classes=self.train_source.num_classes,
            class_names=self.train_source.class_names,
            config={**self.config.to_dict(), **self.start},
            metrics=metrics,
            sums=sums,
            registered_by=registered_by(self.config.model),
            data=self.data,
        )
        self.checkpoints.save(self.state, metadata, top1=metrics.get("val_top1", NOT_EVALUATED))
        self._saved_step = self.step
        self.save_clock.restart()
        self.watch.progress()

    def _train_batches(self) -> Generator[Batch]:
        batches = train_batches(
            self.train_source,
            augmentation=augmentation_from(self.config),
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            start_step=self.step,
            reading=self.reading,
        )
        return to_device(batches, NamedSharding(self.mesh, SHARDED))

    def _compile_train_step(self, definition: Definition) -> Callable[..., Any]:
        config = self.config
        train_step = make_train_step(
            definition,
            self.optimizer,
            self.mesh,
            preprocessing=self.preprocessing,
            objective=self.objective,
            seed=config.seed,
            accumulate=config.accumulate,
            ema_decay=config.ema_decay,
            remat=config.remat,
            skip_nonfinite=config.on_nonfinite == "skip",
            freeze=config.freeze,
            erasing=config.random_erasing,
        )
        spec = batch_spec(config.batch_size, config.train_image_size, sharding=NamedSharding(self.mesh, SHARDED))
        self.watch.pause()
        start = time.perf_counter()
        compiled = train_step.lower(self.state, spec).compile()
        self.reporter.line(f"compiled the training step in {time.perf_counter() - start:.1f} s")
        return compiled


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _is_of_another_network(config: ConfigDict, saved: Metadata) -> bool:
    given = {"model": config.model, **recorded_options(config.model, config)}
    theirs = {"model": saved.model, **saved.model_options}
    return any(given.get(name) != theirs.get(name) for name in ("model", *SHAPING))


def _differs_beside_weights_only(fresh: TrainState, checkpoint: Checkpoint) -> bool:
    """Whether the state of the optimizer or the moving average alone are of another structure in a checkpoint."""
    different = to_arrays(fresh).keys() ^ checkpoint.arrays.keys()
    return bool(different) and all(path.startswith(("opt_state/", "ema/")) for path in different)


def _require_writable(workdir: Path) -> None:
    """Creates the folder and checks, before hours are spent, that files can be written there."""
    probe = workdir / f".writable-{jax.process_index()}"
    try:
        files.require_short(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to the workdir {workdir}: {error.strerror}") from error
