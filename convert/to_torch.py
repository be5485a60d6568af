"""Exports a checkpoint to PyTorch: python -m convert.to_torch --checkpoint runs/r50 --output r50.safetensors"""

from pathlib import Path

from absl import flags

from lma_jax import cli

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Workdir of a training run.", required=True)
STEP = flags.DEFINE_string("step", "newest", "Which checkpoint: newest, best (by validation top-1), or its step.")
OUTPUT = flags.DEFINE_string("output", None, "File to write, .safetensors or .pth.", required=True)


def main() -> None:
    from convert.files import require_suffix, write_weights
    from convert.weights import to_torch
    from lma_jax.training.checkpoint import load_checkpoint, restore_model

    output = Path(OUTPUT.value)
    require_suffix(output)
    checkpoint = load_checkpoint(CHECKPOINT.value, STEP.value)
    state_dict = to_torch(restore_model(checkpoint))
    names = ("model", "num_classes", "preprocessing", "metrics")
    metadata = {name: checkpoint.metadata[name] for name in names}
    write_weights(output, state_dict, {**metadata, "step": checkpoint.step})
    print(f"{metadata['model']}, step {checkpoint.step:,}: {len(state_dict)} tensors written to {output}")


if __name__ == "__main__":
    cli.run(main)
