"""Kills training runs with SIGKILL at random moments and checks that each, started again, ends bit-identical.

    python benchmarks/kill_matrix.py [--kills 5] [--kinds workers] [--seed 0]

Three kinds of run: one process that decodes in threads, one with two worker processes, and a job of two processes.
A kill falls anywhere in a run: start-up, data, a training step, an evaluation, a save. Exits with 1 on a difference.
"""

import argparse
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lma_jax.checkpoint.format import load_checkpoint
from lma_jax.training.reporting.metrics import read_metrics

# 30 steps of LMA-ResNet-18 on 8 x 8 digits, evaluated and saved every 5 steps, so that saves are as frequent as steps.
RECIPE = (
    *("--config=configs/digits.py", "--config.image_size=8", "--config.resize_size=8", "--config.batch_size=8"),
    *("--config.eval_batch_size=120", "--config.epochs=0.167", "--config.eval_every=0.02785", "--config.log_every=1"),
    *("--config.decay_epochs=(0.1,)", "--config.ema_decay=0.9"),
)
KINDS = {"threads": (), "workers": ("--config.data_workers=2",), "two processes": ()}
TIMINGS = ("images_per_second", "data_wait")


def start(kind: str, workdir: Path) -> list[subprocess.Popen[bytes]]:
    """Starts the processes of one run, each the head of a process group."""
    command = [sys.executable, "-m", "lma_jax.train", *RECIPE, *KINDS[kind], f"--workdir={workdir}"]
    # Each job has two devices, so that all kinds compute the same.
    devices = 1 if kind == "two processes" else 2
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    jobs = [[]]
    if kind == "two processes":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
        jobs = [[address, "--num_processes=2", f"--process_id={rank}"] for rank in range(2)]
    log = (workdir.parent / f"{workdir.name}.log").open("ab")
    options = dict(stdout=log, stderr=log, env=environment, start_new_session=True)
    return [subprocess.Popen([*command, *arguments], **options) for arguments in jobs]


def finish(kind: str, workdir: Path) -> float:
    """Runs to the end and returns the seconds it took."""
    begin = time.perf_counter()
    codes = [process.wait() for process in start(kind, workdir)]
    if any(codes):
        sys.exit(f"{kind}: exit codes {codes}, see {workdir}.log")
    return time.perf_counter() - begin


def kill(kind: str, workdir: Path, after: float, rng: random.Random) -> tuple[str, list[int]]:
    """Starts a run and kills one of its processes; says how far it had come, and which sessions it was."""
    processes = start(kind, workdir)
    time.sleep(after)
    victim = rng.choice(processes)
    victim.send_signal(signal.SIGKILL)
    for process in processes:
        process.wait(timeout=120)
    log = (workdir.parent / f"{workdir.name}.log").read_text(errors="replace")
    steps = re.findall(r"step (\d+)/", log)
    writing = any((workdir / "checkpoints").glob("*tmp*")) if workdir.exists() else False
    place = f"step {steps[-1] if steps else 0}{', in a save' if writing else ''}"
    return place, [process.pid for process in processes]


def orphans(sessions: list[int]) -> list[str]:
    """Processes that are left of killed ones; each run is a session of its own."""
    listing = subprocess.run(["ps", "-eo", "sess,pid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listing.splitlines()[1:] if int(line.split()[0]) in sessions]


def differences(workdir: Path, reference: Path) -> list[str]:
    """What differs between two finished runs."""
    actual, expected = load_checkpoint(workdir), load_checkpoint(reference)
    found = [path for path, array in expected.arrays.items() if array.tobytes() != actual.arrays[path].tobytes()]
    rows = [
        [{name: value for name, value in row.items() if name not in TIMINGS} for row in read_metrics(run)]
        for run in (workdir, reference)
    ]
    return found + ["metrics.jsonl"] * (rows[0] != rows[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5, help="killed runs of each kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS])
    parser.add_argument("--seed", type=int, default=None, help="of the moments")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    root = Path(tempfile.mkdtemp(prefix="kill-matrix-"))
    finish("threads", root / "warm-up")  # compiles
    reference = root / "reference"
    finish("threads", reference)
    failures = 0
    for kind in options.kinds:
        seconds = finish(kind, root / f"{kind.replace(' ', '-')}-undisturbed")
        for number in range(options.kills):
            workdir = root / f"{kind.replace(' ', '-')}-{number}"
            kills = [kill(kind, workdir, rng.uniform(0.1, 1.0) * seconds, rng) for _ in range(rng.choice((1, 1, 2)))]
            finish(kind, workdir)
            places = [place for place, _ in kills]
            left = orphans([session for _, sessions in kills for session in sessions])
            found = differences(workdir, reference)
            failures += bool(left or found)
            verdict = f"DIFFERS in {found[:3]}, orphans {left}" if left or found else "identical"
            print(f"{kind:14} killed at {' and '.join(places):32} {verdict}", flush=True)
    print(f"{failures} of {len(options.kinds) * options.kills} differ")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
