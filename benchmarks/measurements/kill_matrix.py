"""Training runs that are killed at random moments, and what they leave."""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from lma_jax.checkpoint.format import load_checkpoint
from lma_jax.training.reporting.metrics import read_metrics
from measurements import ROOT

# 30 steps of LMA-ResNet-18 on 8 x 8 digits, evaluated and saved every 5 steps, so that many kills fall into a save.
RECIPE = (
    *("--config=configs/digits.py", "--config.image_size=8", "--config.resize_size=8", "--config.batch_size=8"),
    *("--config.eval_batch_size=120", "--config.epochs=0.167", "--config.eval_every=0.02785", "--config.log_every=1"),
    *("--config.decay_epochs=(0.1,)", "--config.ema_decay=0.9"),
)
KINDS: dict[str, tuple[str, ...]] = {"threads": (), "workers": ("--config.data_workers=2",), "two processes": ()}
TIMINGS = ("images_per_second", "data_wait")


def free_address() -> str:
    """An address of this machine with a port that is free now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def log_of(workdir: Path) -> Path:
    """The file beside a workdir that receives what its runs print."""
    return workdir.parent / f"{workdir.name}.log"


def start(kind: str, workdir: Path) -> list[subprocess.Popen[bytes]]:
    """Starts the processes of a run, each as a session of its own.

    Args:
        kind: one of KINDS.
        workdir: of the run.
    """
    command = [sys.executable, "-m", "lma_jax.train", *RECIPE, *KINDS[kind], f"--workdir={workdir}"]
    # Every kind computes on two devices, so that the results must be the same.
    devices = 2
    ranks: list[list[str]] = [[]]
    if kind == "two processes":
        address = free_address()
        devices = 1
        ranks = [[f"--coordinator={address}", "--num_processes=2", f"--process_id={rank}"] for rank in range(2)]
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    with log_of(workdir).open("ab") as log:
        return [
            subprocess.Popen(
                [*command, *rank], cwd=ROOT, stdout=log, stderr=log, env=environment, start_new_session=True
            )
            for rank in ranks
        ]


def finish(kind: str, workdir: Path) -> float:
    """Runs to the end and returns the seconds it took; exits with an error if the run fails."""
    begin = time.perf_counter()
    codes = [process.wait() for process in start(kind, workdir)]
    if any(codes):
        sys.exit(f"error: {kind}: exit codes {codes}, see {log_of(workdir)}")
    return time.perf_counter() - begin


def kill(kind: str, workdir: Path, after: float, rng: random.Random) -> tuple[str, list[int]]:
    """Starts a run and kills one of its processes after some seconds.

    Returns:
        How far the run had come, and the ids of its processes.
    """
    processes = start(kind, workdir)
    time.sleep(after)
    rng.choice(processes).send_signal(signal.SIGKILL)
    for process in processes:
        process.wait(timeout=120)
    steps = re.findall(r"step (\d+)/", log_of(workdir).read_text(errors="replace"))
    saving = any((workdir / "checkpoints").glob("*tmp*")) if workdir.exists() else False
    moment = f"step {steps[-1] if steps else 0}{', in a save' if saving else ''}"
    return moment, [process.pid for process in processes]


def orphans(sessions: list[int]) -> list[str]:
    """The processes of these sessions that still run."""
    listing = subprocess.run(["ps", "-eo", "sess,pid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listing.splitlines()[1:] if int(line.split()[0]) in sessions]


def differences(workdir: Path, reference: Path) -> list[str]:
    """The arrays of the last checkpoint that differ between two runs, and "metrics.jsonl" if that differs."""
    actual, expected = load_checkpoint(workdir), load_checkpoint(reference)
    found = [path for path, array in expected.arrays.items() if array.tobytes() != actual.arrays[path].tobytes()]
    rows = [
        [{name: value for name, value in row.items() if name not in TIMINGS} for row in read_metrics(run)]
        for run in (workdir, reference)
    ]
    return found + ["metrics.jsonl"] * (rows[0] != rows[1])
