"""Running the command lines as a user does, in processes of their own, on a run of seconds."""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]

# 18 steps of LMA-ResNet-18 on 8 x 8 digits, evaluated and saved after steps 6, 12 and 18.
TINY = (
    "--config=configs/digits.py",
    "--config.image_size=8",
    "--config.resize_size=8",
    "--config.batch_size=8",
    "--config.eval_batch_size=360",
    "--config.epochs=0.1",
    "--config.eval_every=0.0334",
    "--config.decay_epochs=(0.05,)",
    "--config.log_every=1",
)


# 18 steps of a network that compiles in a second, for tests of training alone: the other commands do not know it.
TINIEST = ("--config=tests/helpers/tiny_config.py",)


def start(module: str, *arguments: object, devices: int = 1) -> subprocess.Popen[str]:
    """Starts `python -m module` from the repository's root, on as many CPU devices."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return subprocess.Popen(command, cwd=ROOT, env=_environment(devices), text=True, **pipes)


def run(module: str, *arguments: object, devices: int = 1) -> str:
    """Runs a command that must succeed in silence on stderr, and returns what it printed."""
    code, output, errors = _result(module, arguments, devices)
    assert code == 0, errors
    assert errors == "", errors
    return output


def fail(module: str, *arguments: object, devices: int = 1) -> str:
    """Runs a command that must end with one line on stderr and code 2, and returns that line."""
    code, output, errors = _result(module, arguments, devices)
    assert code == 2, output + errors
    lines = errors.strip().splitlines()
    assert len(lines) == 1, errors
    assert lines[0].startswith("error: ")
    return lines[0]


# To import the libraries takes longer than most commands. So those that no test stops are forked from a process that
# has imported them, and nothing of this project.
LIBRARIES = ["flax.nnx", "grain", "ml_collections", "optax", "orbax.checkpoint", "tensorflow_datasets", "torch"]
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(LIBRARIES)


def _result(module: str, arguments: tuple, devices: int) -> tuple[int, str, str]:
    """The exit code, output and errors of `python -m module`, without those of importing the libraries."""
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder, "output"), Path(folder, "errors")
        details = [*map(str, arguments)], _environment(devices), output, errors
        process = _forks.Process(target=_main, args=(module, *details))
        process.start()
        process.join()
        return process.exitcode, output.read_text(), errors.read_text()


def _main(module: str, arguments: list[str], environment: dict[str, str], output: Path, errors: Path) -> None:
    for path, number in ((output, 1), (errors, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    sys.argv[1:] = arguments
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # a process of multiprocessing leaves them out


def _environment(devices: int) -> dict[str, str]:
    return {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
