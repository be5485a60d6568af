"""Training runs that meet a fault at a random moment, and what they leave."""

import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from lma_jax.checkpoint.format import load_checkpoint
from lma_jax.errors import UserError
from lma_jax.training.reporting.metrics import read_metrics
from measurements import ROOT

KEPT = 2
STEPS = 30
# As many steps of LMA-ResNet-18 on 8 x 8 digits, evaluated every 5 steps.
RECIPE = (
    *("--config=configs/digits.py", "--config.image_size=8", "--config.resize_size=8", "--config.batch_size=8"),
    *("--config.eval_batch_size=120", "--config.epochs=0.167", "--config.eval_every=0.02785", "--config.log_every=1"),
    *("--config.decay_epochs=(0.1,)", "--config.ema_decay=0.9", f"--config.keep_checkpoints={KEPT}"),
)
# Saved every 2 steps as well, so that many faults fall into a save; a full disk is waited for for 3 seconds.
SAVES = ("--config.save_every_steps=2", "--config.save_wait=0.05")
TIMINGS = ("images_per_second", "data_wait")
# In the arguments of the process that frees shared memory.
TRACKER = "resource_tracker import main"
LEFTOVERS = ("*tmp*", "*.replaced", ".writable*")
# Seconds after which a run that should have ended counts as hung.
LIMIT = 240


def free_address() -> str:
    """An address of this machine with a port that is free now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


class Run:
    """A running job, whose processes are sessions of their own.

    Args:
        workdir: of the run.
        processes: 1 or 2. All compute on two devices together, so that the results must be the same.
        options: of the command, beside the recipe.
    """

    def __init__(self, workdir: Path, *, processes: int, options: tuple[str, ...] = ()):
        command = [sys.executable, "-m", "lma_jax.train", *RECIPE, *options, f"--workdir={workdir}"]
        ranks: list[list[str]] = [[]]
        if processes == 2:
            job = [f"--coordinator={free_address()}", "--num_processes=2"]
            ranks = [[*job, f"--process_id={rank}"] for rank in range(2)]
        environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={2 // processes}"}
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
        self.workdir = workdir
        self.lines: list[str] = []
        self.processes = [
            subprocess.Popen([*command, *rank], cwd=ROOT, env=environment, start_new_session=True, **pipes)  # type: ignore[call-overload]
            for rank in ranks
        ]
        self._closed = threading.Event()
        self._readers = [
            threading.Thread(target=self._read, args=(pipe, pipe is process.stdout))
            for process in self.processes
            for pipe in (process.stdout, process.stderr)
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, pipe: "subprocess.IO[str]", closes: bool) -> None:  # type: ignore[name-defined]
        with pipe:
            for line in pipe:
                self.lines.append(line)
                if closes and self._closed.is_set():
                    return

    def close_output(self) -> None:
        """Closes the pipes of stdout once their next line is read, as `| head` does."""
        self._closed.set()

    @property
    def step(self) -> int:
        """How far it has come."""
        return max(map(int, re.findall(r"step (\d+)/", "".join([*self.lines]))), default=0)

    def reach(self, step: int) -> None:
        """Waits until it has come so far, or has ended."""
        while self.step < step and not self.ended():
            time.sleep(0.01)

    def ended(self) -> bool:
        """Whether every process has ended."""
        return all(process.poll() is not None for process in self.processes)

    def finish(self) -> list[int]:
        """Waits for the end and returns the exit codes; a process that hangs is killed, with code -9."""
        deadline = time.monotonic() + LIMIT
        while not self.ended() and time.monotonic() < deadline:
            time.sleep(0.1)
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                self.lines.append("HUNG\n")
        codes = [process.wait() for process in self.processes]
        for reader in self._readers:
            reader.join(timeout=5)  # an orphan may hold its pipe
        return codes

    def children(self) -> list[int]:
        """The data workers."""
        listing = _ps("pid", "sess", "args")
        own = [process.pid for process in self.processes]
        return [
            int(pid)
            for pid, session, args in listing
            if int(session) in own and int(pid) not in own and TRACKER not in args
        ]

    def orphans(self) -> list[str]:
        """What still runs of its sessions."""
        own = [process.pid for process in self.processes]
        return [" ".join(row) for row in _ps("pid", "sess", "args") if int(row[1]) in own]


def _ps(*columns: str) -> list[list[str]]:
    command = ["ps", "-eo", ",".join(f"{column}=" for column in columns)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line.split(maxsplit=len(columns) - 1) for line in listing.splitlines() if "<defunct>" not in line]


def kill(run: Run, rng: random.Random) -> str:
    """SIGKILL to one process."""
    rng.choice(run.processes).kill()
    return ""


def term(run: Run, rng: random.Random) -> str:
    """SIGTERM to one process or to all, some more than once."""
    return _stop_by(signal.SIGTERM, run, rng)


def hup(run: Run, rng: random.Random) -> str:
    """SIGHUP to the group of each process, workers included, as a terminal sends it."""
    for process in run.processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGHUP)
    return ""


def interrupt(run: Run, rng: random.Random) -> str:
    """SIGINT, as `term`."""
    return _stop_by(signal.SIGINT, run, rng)


def _stop_by(number: signal.Signals, run: Run, rng: random.Random) -> str:
    chosen = rng.choice((run.processes, [rng.choice(run.processes)]))
    times = rng.choice((1, 2, 3))
    for _ in range(times):
        for process in chosen:
            process.send_signal(number)
        time.sleep(rng.uniform(0, 0.3))
    return f"{times} times to {len(chosen)}"


def stop(run: Run, rng: random.Random) -> str:
    """SIGSTOP to one process, for seconds or, in a job of two, until the other one has ended."""
    chosen = rng.choice(run.processes)
    others = [process for process in run.processes if process is not chosen]
    seconds = rng.choice((rng.uniform(0.1, 5.0), LIMIT if others else 1.0))
    deadline = time.monotonic() + seconds
    chosen.send_signal(signal.SIGSTOP)
    while time.monotonic() < deadline and not (others and all(other.poll() is not None for other in others)):
        time.sleep(0.1)
    chosen.send_signal(signal.SIGCONT)
    return f"for {seconds:.1f} s" if seconds < LIMIT else "until the other one ended"


def full_disk(run: Run, rng: random.Random) -> str:
    """No file can grow, to the end or for some seconds, by a limit that needs no root; some runs are told to stop."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    _limit_files(run, (0, limits[1]))
    told = rng.choice((True, False))
    if told:
        time.sleep(rng.uniform(0, 1))
        rng.choice(run.processes).terminate()
    seconds = rng.choice((rng.uniform(0, 4), LIMIT))
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not run.ended():
        time.sleep(0.1)
    _limit_files(run, limits)
    return f"{'and SIGTERM, ' if told else ''}{f'for {seconds:.1f} s' if seconds < LIMIT else 'to the end'}"


def _limit_files(run: Run, limits: tuple[int, int]) -> None:
    for process in run.processes:
        if process.poll() is None:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, limits)


def closed_output(run: Run, rng: random.Random) -> str:
    """The reader of stdout goes away."""
    run.close_output()
    return ""


def worker(run: Run, rng: random.Random) -> str:
    """SIGKILL to a data worker."""
    children = run.children()
    if not children:
        return "none yet"
    os.kill(rng.choice(children), signal.SIGKILL)
    return ""


def second_run(run: Run, rng: random.Random) -> str:
    """The same command once more, while the first one runs: one of the two is refused."""
    second = Run(run.workdir, processes=len(run.processes), options=SAVES)
    codes = second.finish()
    run.lines += second.lines
    return f"second ended with {codes}"


Fault = Callable[[Run, random.Random], str]
# Each with the exit codes that a process may end with: 0, 2 for what is refused, 75 for what goes on, 1 for a process
# that lost another one.
FAULTS: dict[str, tuple[Fault, set[int]]] = {
    "kill": (kill, {0, -9, 1, 75}),
    "term": (term, {0, 75, -15}),
    "hup": (hup, {0, 75, -1}),
    "interrupt": (interrupt, {0, 75, -2}),
    "stop": (stop, {0, 1, 75}),
    "full-disk": (full_disk, {0, 1, 2, 75}),
    "closed-output": (closed_output, {0}),
    "worker": (worker, {0, 1, 75}),
    "second-run": (second_run, {0, 2}),
}


def finish(workdir: Path, *, processes: int, options: tuple[str, ...] = ()) -> float:
    """Runs to the end and returns the seconds it took; exits with an error if the run fails."""
    begin = time.perf_counter()
    run = Run(workdir, processes=processes, options=options)
    codes = run.finish()
    if any(codes):
        sys.exit(f"error: exit codes {codes}:\n{''.join(run.lines[-20:])}")
    return time.perf_counter() - begin


def disturb(name: str, workdir: Path, *, processes: int, seconds: float, rng: random.Random) -> tuple[str, list[str]]:
    """Starts a run, lets it meet a fault at some moment, and goes on with the same command until it has ended.

    Args:
        name: of the fault.
        workdir: of the run.
        processes: 1 or 2.
        seconds: that an undisturbed run takes. One fault of four comes within them, most during the start; the others
            come behind a random step, so that they fall into steps, evaluations and saves.
        rng: decides.

    Returns:
        What happened, and what is wrong with it.
    """
    fault, allowed = FAULTS[name]
    workers = 2 if name == "worker" else rng.choice((0, 0, 2))
    options = (*SAVES, f"--config.data_workers={workers}")
    runs = [Run(workdir, processes=processes, options=options)]
    if rng.random() < 0.25:
        time.sleep(rng.uniform(0.1, 1.0) * seconds)
    else:
        runs[0].reach(rng.randrange(1, STEPS))
        time.sleep(rng.uniform(0, 0.5))
    moment = f"step {runs[0].step}"
    details = fault(runs[0], rng)
    codes = runs[0].finish()
    problems = [f"exit code {code}" for code in codes if code not in allowed]
    again = codes
    while any(again) and len(runs) < 3:
        runs.append(Run(workdir, processes=processes, options=options))
        again = runs[-1].finish()
    problems += [f"exit codes {again} at the end"] * any(again)
    for run in runs:
        problems += [line.strip() for line in run.lines if re.match("Traceback|HUNG|Fatal Python", line)]
        problems += [f"orphan: {orphan}" for orphan in run.orphans()]
    (workdir.parent / f"{workdir.name}.log").write_text("".join(line for run in runs for line in run.lines))
    how = f"{name} at {moment}{details and f' ({details})'}, {workers} workers: {codes}, again {len(runs) - 1}"
    return how, problems + left_behind(workdir)


def left_behind(workdir: Path) -> list[str]:
    """What should not lie in the workdir of a run that has ended."""
    found = [str(path.relative_to(workdir)) for pattern in LEFTOVERS for path in workdir.rglob(pattern)]
    kept = sorted(path.name for path in (workdir / "checkpoints").glob("*"))
    return found + [f"checkpoints {kept}"] * (len(kept) > KEPT + 1)


def differences(workdir: Path, reference: Path, *, rows_may_lack: bool = False) -> list[str]:
    """The arrays of the last checkpoint that differ between two runs, and "metrics.jsonl" if that differs.

    Args:
        workdir, reference: the runs.
        rows_may_lack: the disk was full for a while, so that rows of metrics could not be written, with a warning.
    """
    try:
        actual, expected = load_checkpoint(workdir), load_checkpoint(reference)
    except UserError as error:
        return [str(error)]
    found = [path for path, array in expected.arrays.items() if array.tobytes() != actual.arrays[path].tobytes()]
    rows, expected_rows = (
        [{name: value for name, value in row.items() if name not in TIMINGS} for row in read_metrics(run)]
        for run in (workdir, reference)
    )
    if rows_may_lack:
        expected_rows = [row for row in expected_rows if row in rows]
    return found + ["metrics.jsonl"] * (rows != expected_rows)
