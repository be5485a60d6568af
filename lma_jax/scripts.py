"""The console scripts: lma-train does what python -m lma_jax.train does, and so on."""

import os
import runpy
import sys
from collections.abc import Callable


def script(module: str) -> Callable[[], None]:
    """The function that runs a module as `python -m` does, with the current folder in the path."""

    def run() -> None:
        if not sys.flags.safe_path:
            sys.path[0] = os.getcwd()
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except ModuleNotFoundError as error:
            if error.name != "absl":  # the others are named by lma_jax.cli, which needs this one
                raise
            print("error: the package absl-py is missing: pip install 'lma-attention[train,torch]'", file=sys.stderr)
            sys.exit(2)

    return run


train = script("lma_jax.train")
evaluate = script("lma_jax.evaluate")
predict = script("lma_jax.predict")
gradcam = script("lma_jax.gradcam")
prepare = script("lma_jax.data.prepare")
