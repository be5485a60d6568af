"""A trace of a few training steps."""

from pathlib import Path
from typing import Any

import jax

from lma_jax import files
from lma_jax.errors import UserError


class Profiler:
    """Traces five steps, the first one ten steps after the start, for Perfetto (perfetto.dev) or XProf.

    Args:
        folder: receives the trace; None for no trace.
        start: number of steps taken before.
        total: number of steps at the end.

    Raises:
        UserError: the run has too few steps left, or the name of the folder is not UTF-8.
    """

    WARM_UP = 10
    STEPS = 5

    def __init__(self, folder: Path | None, *, start: int, total: int):
        self._folder = folder
        self._first = start + self.WARM_UP + 1
        if folder is not None:
            files.require_utf8(folder, "--profile")
        if folder is not None and total - start < self.WARM_UP + self.STEPS:
            raise UserError(f"--profile needs {self.WARM_UP + self.STEPS} steps, the run has {total - start} left")

    def before(self, step: int) -> None:
        """To be called before each step; starts the trace in time."""
        if self._folder is not None and step == self._first:
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)

    def after(self, step: int, result: Any) -> str | None:
        """To be called after each step with a result of it; returns a line about the trace once it is complete."""
        if self._folder is None or step != self._first + self.STEPS - 1:
            return None
        jax.block_until_ready(result)
        jax.profiler.stop_trace()
        return f"trace of steps {self._first:,} to {step:,}: {self._folder}"
