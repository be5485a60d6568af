"""The time from the trainer's command to its first finished step."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measurements import ROOT

# 8 images of 64 x 64 per step, and a line of metrics after each.
VALUES = dict(batch_size=8, image_size=64, resize_size=64, log_every=1, epochs=0.1)


def seconds_to_first_step(model: str, cache: Path) -> float:
    """Trains a model on the digits in a temporary workdir until the first step is in the metrics, then kills the run.

    Args:
        model: name of the network.
        cache: folder of the compilation cache.
    """
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "-m", "lma_jax.train", "--config", "configs/digits.py", "--workdir", workdir]
        command += [f"--config.{name}={value}" for name, value in {"model": model, **VALUES}.items()]
        command.append(f"--compilation_cache={cache}")
        output, metrics = Path(workdir, "output"), Path(workdir, "metrics.jsonl")
        start = time.perf_counter()
        with output.open("wb") as file:
            process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        try:
            while not (metrics.exists() and metrics.stat().st_size):
                if process.poll() is not None:
                    sys.exit(f"error: the run ended before its first step:\n{output.read_text()}")
                time.sleep(0.02)
            return time.perf_counter() - start
        finally:
            process.kill()
            process.wait()


def cold_and_warm(model: str) -> tuple[float, float]:
    """Seconds to the first step with an empty compilation cache, then with the filled one."""
    with tempfile.TemporaryDirectory() as cache:
        return seconds_to_first_step(model, Path(cache)), seconds_to_first_step(model, Path(cache))
