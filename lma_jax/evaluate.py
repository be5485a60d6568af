"""Evaluates a checkpoint: python -m lma_jax.evaluate --checkpoint runs/r50

The checkpoint names the network, the preprocessing and the data of its run; --dataset, --split and --data name other
data.
"""

from absl import flags

from lma_jax import cli
from lma_jax.errors import UserError


def define_flags() -> None:
    cli.define_checkpoint()
    flags.DEFINE_string("dataset", None, "Data set. Default: that of the training run.")
    flags.DEFINE_string("split", None, "Split of the data set. Default: the validation split of the training run.")
    flags.DEFINE_string("data", None, "Folder of the data set's build. Default: that of the training run.")
    flags.DEFINE_integer(
        "batch_size", None, "Images per batch, over all devices. Default: that of the training run.", lower_bound=1
    )


def main() -> None:
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding

    from lma_jax.checkpoint.format import load_checkpoint
    from lma_jax.checkpoint.restore import restore_model
    from lma_jax.data.loader import eval_batches, reading_from, to_device
    from lma_jax.data.sources import open_source
    from lma_jax.definition import split
    from lma_jax.sharding import REPLICATED, SHARDED, data_mesh
    from lma_jax.training.evaluation import evaluate
    from lma_jax.training.objective import loss_name
    from lma_jax.training.reporting.reporter import describe
    from lma_jax.training.step import make_eval_step

    options = flags.FLAGS
    checkpoint = load_checkpoint(options.checkpoint, options.step)
    metadata, config = checkpoint.metadata, checkpoint.metadata.config
    dataset, data_dir = options.dataset or config["dataset"], options.data or config["data_dir"]
    source = open_source(dataset, options.split or config["val_split"], data_dir=data_dir)
    if source.num_classes != metadata.num_classes:
        raise UserError(
            f"{dataset} has {source.num_classes} classes, the checkpoint {metadata.num_classes}; to fit its head to "
            f"them, train with --config.dataset={dataset} --config.init_from={options.checkpoint}"
        )
    metadata.require_classes(source.class_names, source.name)
    batch_size = options.batch_size or config["eval_batch_size"]
    if batch_size % jax.device_count():
        raise UserError(f"--batch_size={batch_size} must be a multiple of the number of devices ({jax.device_count()})")

    mesh = data_mesh()
    model = restore_model(checkpoint, dtype=jnp.dtype(config["dtype"]), sharding=NamedSharding(mesh, REPLICATED))
    definition, params, batch_stats = split(model)
    preprocessing = metadata.preprocessing
    batches = eval_batches(
        source, preprocessing=preprocessing, batch_size=batch_size, reading=reading_from(metadata.config)
    )
    eval_step = make_eval_step(definition, mesh, preprocessing=preprocessing, loss_name=loss_name(config))
    scores = evaluate(eval_step, params, batch_stats, to_device(batches, NamedSharding(mesh, SHARDED)))
    print(f"{metadata.model}, step {checkpoint.step:,}, on {len(source):,} images of {dataset}: {describe(scores)}")


if __name__ == "__main__":
    cli.run(main, define_flags)
