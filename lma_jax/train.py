"""Trains a network: python -m lma_jax.train --config configs/resnet50_lma.py [--workdir runs/r50]

Any value of the config can be given as --config.<key>=<value>. The same command again resumes a killed run.
"""

from pathlib import Path

from absl import flags

from lma_jax import cli

CONFIG = cli.define_config_flag()
flags.declare_key_flag("config")  # or else --help leaves it out
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run. Default: runs/<name of the config file>.")


def main() -> None:
    from lma_jax.training.trainer import Trainer

    config, name = cli.load_config(CONFIG)
    Trainer(config, Path(WORKDIR.value or f"runs/{name}")).fit()


if __name__ == "__main__":
    cli.run(main)
