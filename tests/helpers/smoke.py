"""A short check of an environment, with or without PyTorch: python -m tests.helpers.smoke

Trains, resumes, evaluates and draws a small network; where PyTorch is, also exports, verifies and imports it.
"""

import importlib.util
import os
import runpy
import sys
import tempfile
import traceback
from functools import partial
from importlib import import_module

from tests.helpers.commands import SHORT

LIBRARIES = ("flax.nnx", "grain", "ml_collections", "optax", "orbax.checkpoint", "tensorflow_datasets")
HAS_TORCH = importlib.util.find_spec("torch") is not None

TRAIN = ("lma_jax.train", "--config=digits", "--config.model=resnet10_lma", "--workdir=run", *SHORT)
COMMANDS = [
    (*TRAIN, "--config.epochs=0.0334"),
    (*TRAIN, "--change_config"),
    ("lma_jax.evaluate", "--checkpoint=run"),
    ("lma_jax.gradcam", "--checkpoint=run", "--image=run/examples.png", "--output=cam.png"),
]
TORCH_COMMANDS = [
    ("convert.to_torch", "--checkpoint=run", "--output=network.safetensors"),
    ("convert.verify", "--checkpoint=run", "--weights=network.safetensors"),
    ("convert.to_torch", "--checkpoint=run", "--output=network.pt2"),
    ("convert.to_stablehlo", "--checkpoint=run", "--output=network.stablehlo"),
    ("convert.to_jax", "--weights=network.safetensors", "--output=imported"),
]


def know_resnet10(package_name: str) -> None:
    package = import_module(package_name)
    registry = import_module(f"{package_name}.registry")
    build = partial(package.ResNet, package.BasicBlock, (1, 1, 1, 1), width=8)
    registry.BACKBONES["resnet10"] = registry.Backbone(build, registry.in_resnet)


def run(module: str, *arguments: str) -> bool:
    """Runs a command in a fork, which has the libraries already, and says whether it succeeded."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    code = 1
    try:
        for package in ("lma_jax", "lma_torch")[: 1 + HAS_TORCH]:
            know_resnet10(package)
        sys.argv[1:] = arguments
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ending:
        code = int(ending.code or 0)
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def main() -> None:
    for library in (*LIBRARIES, *["torch"] * HAS_TORCH):
        import_module(library)
    commands = COMMANDS + TORCH_COMMANDS * HAS_TORCH
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TFDS_DATA_DIR"] = f"{folder}/data"
        os.chdir(folder)
        for number, command in enumerate(commands):
            if not run(*command):
                sys.exit(f"{number} of {len(commands)} commands passed, then failed: {' '.join(command[:1])}")
    print(f"{len(commands)} of {len(commands)} commands passed")


if __name__ == "__main__":
    main()
