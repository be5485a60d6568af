"""Running the command lines as a user does, in processes of their own, on a run of seconds."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

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
TINIEST = ("--config=tests/tiny_config.py",)


def start(module: str, *arguments: object, devices: int = 1) -> subprocess.Popen[str]:
    """Starts `python -m module` from the repository's root, on as many CPU devices."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)


def run(module: str, *arguments: object, devices: int = 1) -> str:
    """Runs a command that must succeed in silence on stderr, and returns what it printed."""
    process = start(module, *arguments, devices=devices)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert errors == "", errors
    return output


def fail(module: str, *arguments: object, devices: int = 1) -> str:
    """Runs a command that must end with one line on stderr and code 2, and returns that line."""
    process = start(module, *arguments, devices=devices)
    output, errors = process.communicate()
    assert process.returncode == 2, output + errors
    lines = errors.strip().splitlines()
    assert len(lines) == 1, errors
    assert lines[0].startswith("error: ")
    return lines[0]
