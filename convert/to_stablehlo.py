"""Exports a checkpoint as a JAX function: python -m convert.to_stablehlo --checkpoint runs/r50 --output r50.stablehlo

The file runs wherever JAX does, without this package, on batches of any size. It is a zip of `function`, which
jax.export.deserialize reads, and metadata.json. Before it is written, every layer is proved equal to PyTorch's.
"""

from pathlib import Path

from absl import flags

from lma_jax import cli

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Workdir of a training run.", required=True)
STEP = flags.DEFINE_string("step", "newest", "Which checkpoint: newest, best (by validation top-1), or its step.")
OUTPUT = flags.DEFINE_string("output", None, "File to write, .stablehlo.", required=True)
FOLD = flags.DEFINE_bool("fold_batch_norm", False, "Fold batch normalisation into the convolutions of a program.")


def main() -> None:
    from convert.exporter import STABLEHLO_SUFFIXES, export, prove, require_output
    from lma_jax.checkpoint.format import load_checkpoint

    require_output(Path(OUTPUT.value), STABLEHLO_SUFFIXES, fold=FOLD.value)
    checkpoint = load_checkpoint(CHECKPOINT.value, STEP.value)
    print(export(prove(checkpoint, source=CHECKPOINT.value), Path(OUTPUT.value), fold=FOLD.value))


if __name__ == "__main__":
    cli.run(main)
