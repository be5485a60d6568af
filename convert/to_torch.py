"""Exports a checkpoint to PyTorch's tools: python -m convert.to_torch --checkpoint runs/r50 --output r50.safetensors

The suffix of the file chooses the format: weights (.safetensors, .pth), or the whole network as a program of
torch.export (.pt2) or ONNX (.onnx) for batches of any size. The network is verified layer by layer before that.
--names=timm writes weights for timm.create_model; docs/recipes.md lists the networks.
"""

from pathlib import Path

from absl import flags

from lma_jax import cli
from lma_jax.naming import NAMES
from lma_jax.overwriting import ANY, require_outputs


def define_flags() -> None:
    cli.define_checkpoint()
    cli.define_force()
    flags.DEFINE_string("output", None, "File to write: .safetensors, .pth, .pt2 or .onnx.", required=True)
    flags.DEFINE_string("momentum", None, "Also write the momentum of SGD to this file, .safetensors or .pth.")
    flags.DEFINE_string("labels", None, "Also write the class names to this file, one a line.")
    flags.DEFINE_enum(
        "names",
        None,
        sorted(NAMES),
        "Whose network is to load the weights: its names. Default: this project's, which are torchvision's with those "
        "of the attention beside them.",
    )
    flags.DEFINE_bool("fold_batch_norm", False, "Fold batch normalisation into the convolutions of a program.")


def main() -> None:
    from convert.export import EXPORT, export, format_of
    from convert.export.labels import export_labels
    from convert.export.momentum import MOMENTUM, export_momentum
    from convert.export.verified import verified_pair
    from lma_jax.checkpoint.format import load_checkpoint
    from lma_jax.weight_files import require_suffix

    options = flags.FLAGS
    output = Path(options.output)
    format_of(output, framework="torch", fold=options.fold_batch_norm, names=options.names)
    if options.momentum:
        require_suffix(Path(options.momentum))
    written = {"output": (output, EXPORT), "momentum": (options.momentum, MOMENTUM), "labels": (options.labels, ANY)}
    require_outputs(written, inputs=[Path(options.checkpoint, "checkpoints")], force=options.force)
    checkpoint = load_checkpoint(options.checkpoint, options.step)
    if options.labels:
        print(export_labels(checkpoint, Path(options.labels), force=options.force))
    if options.momentum:
        print(export_momentum(checkpoint, Path(options.momentum), names=options.names))
    pair = verified_pair(checkpoint, source=options.checkpoint, names=options.names)
    print(export(pair, output, fold=options.fold_batch_norm))


if __name__ == "__main__":
    cli.run(main, define_flags)
