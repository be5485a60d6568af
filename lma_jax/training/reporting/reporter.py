"""What a run tells: progress and files in its workdir, by the first process of a job; the others are silent."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lma_jax.errors import UserError
from lma_jax.training.meter import Meter
from lma_jax.training.reporting.metrics import MetricsWriter
from lma_jax.training.reporting.pictures import draw_curves, draw_examples
from lma_jax.training.reporting.progress import Progress
from lma_jax.training.schedule import EpochClock, learning_rate_schedule


class Reporter:
    """Shows a run on the terminal and writes metrics.jsonl, tensorboard/, curves.png and examples.png.

    A file that cannot be written, on a full disk for instance, makes a warning; training goes on.
    """

    def __init__(self, config: ConfigDict, workdir: Path, clock: EpochClock, *, start: int, eval_steps: list[int]):
        self._config = config
        self._workdir = workdir
        self._clock = clock
        self._speaks = jax.process_index() == 0
        self._start = start
        self._eval_steps = eval_steps
        # All at once: computed in between, one would wait for the steps under way.
        schedule = learning_rate_schedule(config, clock)
        self._learning_rates = np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(eval_steps[-1])))

    def __enter__(self) -> "Reporter":
        with ExitStack() as stack:
            if self._speaks:
                self._writer = stack.enter_context(self._open_writer())
                progress = Progress(start=self._start, total=self._eval_steps[-1], log_every=self._config.log_every)
                self._progress = stack.enter_context(progress)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

    def say(self, text: str | None) -> None:
        """Prints a line, if there is one."""
        if self._speaks and text is not None:
            self._progress.line(text)

    def examples(self, images: Any) -> None:
        """Draws the first training images (N, H, W, 3) uint8."""
        if self._speaks:
            with self._tolerated("examples.png"):
                draw_examples(self._workdir, images)

    def step(self, step: int, meter: Meter, *, waited: float) -> None:
        """Tells that `step` steps are done, after `waited` seconds in all for data."""
        if not self._speaks:
            return
        self._progress.update(step, self._clock.epoch(step), self._config.batch_size, meter, waited)
        if step % self._config.log_every == 0 and step not in self._eval_steps:
            self._write(self._row(step, meter.means_so_far()))

    def evaluation(self, step: int, train: dict[str, float], val: dict[str, float]) -> dict[str, Any]:
        """Tells the means since the last evaluation and the validation scores; returns their row of metrics."""
        if not self._speaks:
            return {"step": step, **_prefixed("val", val)}
        row = {**self._row(step, train), **_prefixed("val", val)}
        self._write(row)
        with self._tolerated("curves.png"):
            draw_curves(self._workdir, title=f"{self._config.model} on {self._config.dataset}")
        skipped = f"  {val['skipped_images']:,.0f} images skipped" if val["skipped_images"] else ""
        self.say(
            f"epoch {row['epoch']:.2f}  val loss {val['loss']:.4f}  val top-1 {val['top1']:.2f} %  "
            f"val top-5 {val['top5']:.2f} %{skipped}"
        )
        self._progress.pause()
        return row

    def _open_writer(self) -> MetricsWriter:
        options = dict(config=self._config.to_dict(), wandb_project=self._config.wandb_project)
        try:
            return MetricsWriter(self._workdir, step=self._start, **options)
        except OSError as error:
            raise UserError(f"cannot write to the workdir {self._workdir}: {error.strerror}") from error

    def _row(self, step: int, train: dict[str, float]) -> dict[str, Any]:
        return {
            "step": step,
            "epoch": self._clock.epoch(step),
            **_prefixed("train", train),
            "learning_rate": float(self._learning_rates[step - 1]),
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
            print(f"warning: cannot write {self._workdir / name}: {error.strerror}", file=sys.stderr, flush=True)


def _prefixed(split: str, means: dict[str, float]) -> dict[str, float]:
    return {f"{split}_{name}": value for name, value in means.items()}
