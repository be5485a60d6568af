"""Running the commands as a user does, in processes of their own, on runs of seconds."""

import atexit
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]

# 18 steps on 8 x 8 digits, evaluated and saved after steps 6, 12 and 18.
SHORT = (
    "--config.image_size=8",
    "--config.resize_size=8",
    "--config.batch_size=8",
    "--config.learning_rate=0.05",
    "--config.eval_batch_size=360",
    "--config.epochs=0.1",
    "--config.eval_every=0.0334",
    "--config.decay_epochs=(0.05,)",
    "--config.log_every=1",
)
TINY = ("--config=configs/digits.py", *SHORT)
# The same with a network that compiles in a second, for tests of training alone: the other commands do not know it.
TINIEST = ("--config=tests/helpers/tiny_config.py",)

Setup = Callable[[], None]


class Result(NamedTuple):
    """The end of a command."""

    code: int
    output: str
    errors: str


def run(module: str, *arguments: object, devices: int = 1, setup: Setup | None = None) -> str:
    """Runs a command that must succeed without a word on stderr, and returns what it printed."""
    code, output, errors = result(module, *arguments, devices=devices, setup=setup)
    assert code == 0, errors
    assert errors == "", errors
    return output


def fail(module: str, *arguments: object, devices: int = 1, setup: Setup | None = None) -> str:
    """Runs a command that must end with one line on stderr and code 2, and returns that line."""
    code, output, errors = result(module, *arguments, devices=devices, setup=setup)
    assert code == 2, output + errors
    lines = errors.strip().splitlines()
    assert len(lines) == 1, errors
    assert lines[0].startswith("error: ")
    return lines[0]


def result(module: str, *arguments: object, devices: int = 1, setup: Setup | None = None) -> Result:
    """Runs `python -m module` from the repository's root to its end, on as many CPU devices.

    `setup` is called in its process first.
    """
    return start(module, *arguments, devices=devices, setup=setup).finish()


def start(module: str, *arguments: object, devices: int = 1, setup: Setup | None = None) -> "Command":
    """Starts a command, which the caller must `finish`."""
    return Command(module, tuple(map(str, arguments)), _environment(devices), setup)


def python(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs a fresh interpreter from the repository's root."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=_environment(1), capture_output=True, text=True)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


# Importing the libraries takes longer than most commands. So commands are forked from a process that has imported them,
# and nothing of this project, where the packages that the README's install does not bring are hidden.
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tests.helpers.preload"])


class Command:
    """A running command."""

    def __init__(self, module: str, arguments: tuple[str, ...], environment: dict[str, str], setup: Setup | None):
        self._folder = tempfile.TemporaryDirectory()
        self._output, self._errors = (Path(self._folder.name, name) for name in ("output", "errors"))
        for path in (self._output, self._errors):
            path.touch()
        self._lines = self._output.open()
        details = module, arguments, environment, setup, self._output, self._errors
        self._process = _forks.Process(target=_main, args=details)
        self._process.start()

    def wait_for_line(self, text: str) -> None:
        """Waits until a line of the output contains `text`."""
        self.wait_until(lambda: any(text in line for line in self._lines))

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Waits until a condition holds; the command must not end before."""
        while not condition():
            assert self._process.is_alive(), self._errors.read_text()
            time.sleep(0.002)

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def finish(self, timeout: float | None = None) -> Result:
        """Waits for the end; after `timeout` seconds the command is killed."""
        self._process.join(timeout)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        assert self._process.exitcode is not None
        result = Result(self._process.exitcode, self._output.read_text(), self._errors.read_text())
        self._lines.close()
        self._folder.cleanup()
        return result


def _main(
    module: str,
    arguments: tuple[str, ...],
    environment: dict[str, str],
    setup: Setup | None,
    output: Path,
    errors: Path,
) -> None:
    for path, number in ((output, 1), (errors, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    from tests.helpers.preload import HIDER

    sys.argv[1:] = arguments
    if setup is not None:  # it may use what the tests need
        setup()
    HIDER.hide()
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # a process of multiprocessing leaves them out


def with_devices(number: int) -> str:
    """The tests' flags of XLA with so many devices: the last flag wins."""
    return f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={number}"


def _environment(devices: int) -> dict[str, str]:
    return {**os.environ, "XLA_FLAGS": with_devices(devices)}
