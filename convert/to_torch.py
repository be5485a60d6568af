"""Exports a checkpoint to PyTorch's tools: python -m convert.to_torch --checkpoint runs/r50 --output r50.safetensors

The suffix of the file chooses what is written: the weights (.safetensors, .pth), or the whole network as a program of
torch.export (.pt2) or as ONNX (.onnx), for batches of any size. Before it is written, every layer is proved equal.
"""

from pathlib import Path

from absl import flags

from lma_jax import cli

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Workdir of a training run.", required=True)
STEP = flags.DEFINE_string("step", "newest", "Which checkpoint: newest, best (by validation top-1), or its step.")
OUTPUT = flags.DEFINE_string("output", None, "File to write: .safetensors, .pth, .pt2 or .onnx.", required=True)
MOMENTUM = flags.DEFINE_string("momentum", None, "Another file, .safetensors or .pth, for the momentum of SGD.")
FOLD = flags.DEFINE_bool("fold_batch_norm", False, "Fold batch normalisation into the convolutions of a program.")


def main() -> None:
    from convert.exporter import TORCH_SUFFIXES, export, export_momentum, prove, require_output
    from lma_jax.checkpoint.format import load_checkpoint

    require_output(Path(OUTPUT.value), TORCH_SUFFIXES, fold=FOLD.value)
    checkpoint = load_checkpoint(CHECKPOINT.value, STEP.value)
    if MOMENTUM.value:
        print(export_momentum(checkpoint, Path(MOMENTUM.value)))
    print(export(prove(checkpoint, source=CHECKPOINT.value), Path(OUTPUT.value), fold=FOLD.value))


if __name__ == "__main__":
    cli.run(main)
