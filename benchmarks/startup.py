"""Seconds from the command to the first finished training step, with an empty and with a filled compilation cache.

    python benchmarks/startup.py [--model resnet50_lma] [--rounds 2] [--json startup.json]

It runs the trainer's own command on the embedded digits, 8 images of 64 x 64 a step, and ends it once the first step
is in its metrics. Cold and warm starts take turns, each pair with a cache of its own.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import common

ROOT = Path(__file__).parent.parent


def seconds_to_first_step(model: str, cache: Path) -> float:
    """Starts a run in a folder of its own and kills it after its first step."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lma_jax.train", "--config", "configs/digits.py", "--workdir", folder]
        values = dict(model=model, batch_size=8, image_size=64, resize_size=64, log_every=1, epochs=0.1)
        command += [f"--config.{name}={value}" for name, value in values.items()]
        output = Path(folder, "output")
        start = time.perf_counter()
        with output.open("wb") as file:
            process = subprocess.Popen(
                [*command, f"--compilation_cache={cache}"], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
            )
        try:
            metrics = Path(folder, "metrics.jsonl")
            while not (metrics.exists() and metrics.stat().st_size):
                if process.poll() is not None:
                    sys.exit(f"error: the run ended before its first step:\n{output.read_text()}")
                time.sleep(0.02)
            return time.perf_counter() - start
        finally:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50_lma")
    parser.add_argument("--rounds", type=common.count, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    pairs = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as cache:
            cold, warm = (seconds_to_first_step(options.model, Path(cache)) for _ in range(2))
        pairs.append((cold, warm))
        print(f"{options.model}: cold {cold:.1f} s, warm {warm:.1f} s, {warm / cold:.2f} of cold", flush=True)
    common.write_json(options, seconds=pairs, ratio=float(np.median([warm / cold for cold, warm in pairs])))


if __name__ == "__main__":
    main()
