"""Progress output: a bar on a terminal, plain lines elsewhere."""

import sys
import time

from lma_jax.training.meter import Meter


class Progress:
    """Shows the step, the running means, the rate, the wait for data and the time left.

    The rate is measured from the end of the first step, or of the first step after a `pause`, so that it includes
    neither compilation nor evaluation.
    """

    def __init__(self, *, start: int, total: int, log_every: int):
        from tqdm import tqdm

        self._total = total
        self._log_every = log_every
        self._bar = tqdm(total=total, initial=start, unit="step") if sys.stderr.isatty() else None
        self._seconds = self._waited = 0.0
        self._images = 0
        self._mark: tuple[float, float] | None = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    @property
    def images_per_second(self) -> float:
        """Mean rate so far; 0 before the second step."""
        return self._images / self._seconds if self._seconds else 0.0

    @property
    def data_wait(self) -> float:
        """Share of the time spent waiting for data, in per cent."""
        return 100 * self._waited / self._seconds if self._seconds else 0.0

    def pause(self) -> None:
        """Stops the clock until the next step has ended."""
        self._mark = None

    def update(self, step: int, epoch: float, images: int, meter: Meter, waited: float) -> None:
        """Records the completion of `step`.

        Args:
            step: number of steps taken.
            epoch: epochs that they make.
            images: images of this step.
            meter: metrics since the last evaluation.
            waited: cumulative wait for data, in seconds.
        """
        now = time.perf_counter()
        if self._mark is not None:
            self._seconds += now - self._mark[0]
            self._waited += waited - self._mark[1]
            self._images += images
        self._mark = now, waited
        if self._bar is not None:
            self._bar.update()
        if step % self._log_every == 0 or step == self._total:
            self._report(step, epoch, images, meter)

    def line(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        if self._bar is None:
            print(text, flush=True)
        else:
            self._bar.write(text)

    def _report(self, step: int, epoch: float, images: int, meter: Meter) -> None:
        means = meter.means_so_far()
        rate = f"{self.images_per_second:,.0f} images/s  data wait {self.data_wait:.0f} %"
        text = f"loss {means['loss']:.4f}  top-1 {means['top1']:.2f} %  {rate}"
        if self._bar is not None:
            self._bar.set_postfix_str(text)
            return
        left = (self._total - step) * images / self.images_per_second if self.images_per_second else 0
        hours, seconds = divmod(round(left), 3600)
        clock = f"{hours}:{seconds // 60:02d}:{seconds % 60:02d} left"
        self.line(f"step {step:,}/{self._total:,}  epoch {epoch:.2f}  {text}  {clock}")
