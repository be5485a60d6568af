"""Exports a checkpoint as a JAX function: python -m convert.to_stablehlo --checkpoint runs/r50 --output r50.stablehlo

The file runs where jax and flatbuffers are, without this package, on batches of any size. It is a zip of `function`,
which jax.export.deserialize reads, and metadata.json. The network is verified layer by layer before it is written.
"""

from pathlib import Path

from absl import flags

from lma_jax import cli
from lma_jax.overwriting import ANY, require_outputs


def define_flags() -> None:
    cli.define_checkpoint()
    cli.define_force()
    flags.DEFINE_string("output", None, "File to write, .stablehlo.", required=True)
    flags.DEFINE_string("labels", None, "Also write the class names to this file, one a line.")
    flags.DEFINE_bool("fold_batch_norm", False, "Fold batch normalisation into the convolutions.")


def main() -> None:
    from convert.export import EXPORT, export, format_of
    from convert.export.labels import export_labels
    from convert.export.verified import verified_pair
    from lma_jax.checkpoint.format import load_checkpoint

    options = flags.FLAGS
    output = Path(options.output)
    format_of(output, framework="jax")
    inputs = [Path(options.checkpoint, "checkpoints")]
    written = {"output": (output, EXPORT), "labels": (options.labels, ANY)}
    require_outputs(written, inputs=inputs, force=options.force)
    checkpoint = load_checkpoint(options.checkpoint, options.step)
    if options.labels:
        print(export_labels(checkpoint, Path(options.labels), force=options.force))
    print(export(verified_pair(checkpoint, source=options.checkpoint), output, fold=options.fold_batch_norm))


if __name__ == "__main__":
    cli.run(main, define_flags)
