"""Imports PyTorch weights as a checkpoint: python -m convert.to_jax --weights r50.pth --output runs/imported

The file is a state_dict of this project, of the paper's authors, of torchvision or of timm, in .pth or .safetensors, or
a folder of the Hugging Face Hub that holds one. The result can be the --checkpoint of every command, and the init_from
of a config.
"""

from pathlib import Path

from absl import flags

from lma_jax import cli, files
from lma_jax.errors import UserError


def define_flags() -> None:
    cli.define_import()
    flags.DEFINE_string("weights", None, "File of weights, .safetensors or .pth, or hub folder.", required=True)
    flags.DEFINE_string("model", None, "Network, one of list_models(). Default: recognised by names and shapes.")
    flags.DEFINE_string("output", None, "Workdir to create.", required=True)


def main() -> None:
    try:
        from convert.importing import import_weights
    except ImportError as error:
        raise UserError("recognising weights needs PyTorch: pip install torch") from error

    options = flags.FLAGS
    print(import_weights(Path(options.weights), files.path_of(options.output), model=options.model))


if __name__ == "__main__":
    cli.run(main, define_flags)
