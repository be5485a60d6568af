"""Progress output and workdir files, written by process 0."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from lma_jax.definition import Tree
from lma_jax.errors import Occasionally, UserError, warn
from lma_jax.training.meter import Meter
from lma_jax.training.reporting.gradcam import GradCam
from lma_jax.training.reporting.metrics import MetricsWriter
from lma_jax.training.reporting.pictures import draw_curves, draw_examples
from lma_jax.training.reporting.progress import Progress
from lma_jax.training.schedule import EpochClock


class Reporter:
    """Shows a run on the terminal and writes metrics.jsonl, tensorboard/, curves.png and examples.png.

    A file that cannot be written causes a warning, and training goes on. Only process 0 reports.

    Args:
        config: the recipe.
        workdir: of the run.
        clock: of the run.
        schedule: learning rate by step.
        start: number of steps taken before.
        reported: the step up to which what an earlier run reported is kept.
        eval_steps: the steps after which the run is evaluated.
        class_names: names of the labels 0, 1, ...
        gradcam: draws where the network looks, after each evaluation; None for no such picture.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        clock: EpochClock,
        *,
        schedule: optax.Schedule,
        start: int,
        reported: int,
        eval_steps: list[int],
        class_names: Sequence[str],
        gradcam: GradCam | None = None,
    ):
        self._config = config
        self._workdir = workdir
        self._clock = clock
        self._reports = jax.process_index() == 0
        self._start = start
        self._reported = reported
        self._warnings = Occasionally()
        self._eval_steps = eval_steps
        self._class_names = class_names
        self._gradcam = gradcam
        self._learning_rates = Ahead(schedule, start)

    def __enter__(self) -> "Reporter":
        with ExitStack() as stack:
            if self._reports:
                options = dict(config=self._config.to_dict(), wandb_project=self._config.wandb_project)
                self._writer = stack.enter_context(self._open_writer(options))
                progress = Progress(start=self._start, total=self._eval_steps[-1], log_every=self._config.log_every)
                self._progress = stack.enter_context(progress)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

    def line(self, text: str | Callable[[], str]) -> None:
        """Prints `text` or, if it is a function, its result. Only process 0 prints or calls it."""
        if self._reports:
            self._progress.line(text if isinstance(text, str) else text())

    def examples(self, images: Any, labels: Any) -> None:
        """Draws the first training images (N, H, W, 3) uint8 with the names of their labels (N,)."""
        if self._reports:
            with self._tolerated("examples.png"):
                names = [self._class_names[label] for label in np.asarray(labels)]
                self._writer.picture(1, "examples", draw_examples(self._workdir, images, names).read_bytes())

    def step(self, step: int, meter: Meter, *, waited: float) -> None:
        """Records the completion of `step`; `waited` is the cumulative wait for data in seconds."""
        if not self._reports:
            return
        self._progress.update(step, self._clock.epoch(step), self._config.batch_size, meter, waited)
        if step % self._config.log_every == 0 and step not in self._eval_steps:
            self._write(self._row(step, meter.means_so_far()))

    def evaluation(self, step: int, train: dict[str, float], val: dict[str, float]) -> dict[str, Any]:
        """Reports the training means since the last evaluation and the validation scores; returns their row."""
        if not self._reports:
            return {"step": step, **_prefixed("val", val)}
        row = {**self._row(step, train), **_prefixed("val", val)}
        self._write(row)
        with self._tolerated("curves.png"):
            draw_curves(self._workdir, title=f"{self._config.model} on {self._config.dataset}")
        self.line(f"epoch {row['epoch']:.2f}  {describe(val, prefix='val ')}")
        self._progress.pause()
        return row

    def gradcam(self, step: int, params: Tree, batch_stats: Tree) -> None:
        """Draws where the network with these weights and statistics looks, if the recipe asks for it."""
        if self._reports and self._gradcam is not None:
            with self._tolerated("tensorboard"):
                self._writer.picture(step, "gradcam", self._gradcam.draw(step, params, batch_stats))

    def finished(self) -> None:
        """Notes that the run has reached its last step."""
        if self._reports:
            with self._tolerated("tensorboard"):
                self._writer.finished(self._eval_steps[-1])

    def _open_writer(self, options: dict[str, Any]) -> MetricsWriter:
        try:
            return MetricsWriter(self._workdir, step=self._reported, **options)
        except OSError as error:
            raise UserError(f"cannot write to the workdir {self._workdir}: {error.strerror}") from error

    def _row(self, step: int, train: dict[str, float]) -> dict[str, Any]:
        return {
            "step": step,
            "epoch": self._clock.epoch(step),
            **_prefixed("train", train),
            "learning_rate": self._learning_rates.at(step - 1),
            "images_per_second": self._progress.images_per_second,
            "data_wait": self._progress.data_wait,
        }

    def _write(self, row: dict[str, Any]) -> None:
        with self._tolerated("metrics.jsonl"):
            self._writer.write(row)

    @contextmanager
    def _tolerated(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._warn(f"cannot write {self._workdir / name}: {error.strerror}")
        except UserError as error:
            self._warn(str(error))

    def _warn(self, message: str) -> None:
        if self._warnings.due(message):
            warn(message)


class Ahead:
    """The values of a schedule, computed thousands at a time, since each computation waits for the steps in flight."""

    SPAN = 1 << 14

    def __init__(self, schedule: optax.Schedule, start: int):
        self._compute = jax.jit(jax.vmap(schedule))
        self._load(start)

    def at(self, step: int) -> float:
        if not 0 <= step - self._start < self.SPAN:
            self._load(step)
        return float(self._values[step - self._start])

    def _load(self, step: int) -> None:
        self._start = step - step % self.SPAN
        self._values = np.asarray(self._compute(self._start + jnp.arange(self.SPAN)))


def describe(scores: dict[str, float], *, prefix: str = "") -> str:
    """The scores of an evaluation as one line, each with its name after `prefix`."""
    parts = [f"{prefix}top-{k} {scores[f'top{k}']:.2f} %" for k in (1, 5)]
    losses = [name for name in ("loss", "cross_entropy") if name in scores]
    parts += [f"{prefix}{name.replace('_', '-')} {scores[name]:.4f}" for name in losses]
    parts += [f"{scores['skipped_images']:,.0f} images skipped"] if scores["skipped_images"] else []
    return "  ".join(parts)


def _prefixed(split: str, means: dict[str, float]) -> dict[str, float]:
    return {f"{split}_{name}": value for name, value in means.items()}
