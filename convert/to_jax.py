"""Imports PyTorch weights as a checkpoint: python -m convert.to_jax --weights r50.pth --output runs/imported

Takes state_dicts of this project, of the paper's authors, of torchvision and of timm, in .pth or .safetensors. The
result serves every --checkpoint, and config.init_from.
"""

from pathlib import Path

from absl import flags

from lma_jax import cli

WEIGHTS = flags.DEFINE_string("weights", None, "File of weights, .safetensors or .pth.", required=True)
MODEL = flags.DEFINE_string("model", None, "Definition, one of list_models(). Default: recognised by names and shapes.")
OUTPUT = flags.DEFINE_string("output", None, "Workdir to create.", required=True)


def main() -> None:
    from convert.importer import import_weights

    print(import_weights(Path(WEIGHTS.value), Path(OUTPUT.value), model=MODEL.value))


if __name__ == "__main__":
    cli.run(main)
