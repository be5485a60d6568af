"""Evaluates a checkpoint: python -m lma_jax.evaluate --checkpoint runs/r50

The checkpoint says which network, preprocessing and data it was trained with; --dataset, --split and --data name
other data.
"""

from absl import flags

from lma_jax import cli
from lma_jax.errors import UserError

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Workdir of a training run.", required=True)
STEP = flags.DEFINE_string("step", "newest", "Which checkpoint: newest, best (by validation top-1), or its step.")
DATASET = flags.DEFINE_string("dataset", None, "Data set. Default: the one of the training run.")
SPLIT = flags.DEFINE_string("split", None, "Split of the data set. Default: the validation split of the training run.")
DATA = flags.DEFINE_string("data", None, "Folder of the data set's build. Default: the one of the training run.")
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Images a step. Default: that of the training run.", lower_bound=1
)


def main() -> None:
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding

    from lma_jax.checkpoint.format import load_checkpoint
    from lma_jax.checkpoint.restore import restore_model
    from lma_jax.data.sources import open_source
    from lma_jax.definition import split
    from lma_jax.preprocessing import preprocessing_from
    from lma_jax.sharding import REPLICATED, data_mesh
    from lma_jax.training.evaluation import evaluate
    from lma_jax.training.step import make_eval_step

    checkpoint = load_checkpoint(CHECKPOINT.value, STEP.value)
    metadata, config = checkpoint.metadata, checkpoint.metadata["config"]
    dataset, data_dir = DATASET.value or config["dataset"], DATA.value or config["data_dir"]
    source = open_source(dataset, SPLIT.value or config["val_split"], data_dir=data_dir)
    if source.num_classes != metadata["num_classes"]:
        raise UserError(
            f"{dataset} has {source.num_classes} classes, the checkpoint {metadata['num_classes']}; to fit its head to "
            f"them, train with --config.dataset={dataset} --config.init_from={CHECKPOINT.value}"
        )
    batch_size = BATCH_SIZE.value or config["eval_batch_size"]
    if batch_size % jax.device_count():
        raise UserError(f"--batch_size={batch_size} is no multiple of {jax.device_count()}, the number of devices")

    mesh = data_mesh()
    model = restore_model(checkpoint, dtype=jnp.dtype(config["dtype"]), sharding=NamedSharding(mesh, REPLICATED))
    network, params, batch_stats = split(model)
    preprocessing = preprocessing_from(metadata["preprocessing"])
    scores = evaluate(
        make_eval_step(network, mesh, preprocessing=preprocessing),
        params,
        batch_stats,
        source,
        mesh=mesh,
        preprocessing=preprocessing,
        batch_size=batch_size,
        threads=config["data_threads"],
        workers=config["data_workers"],
        on_bad_image=config["on_bad_image"],
    )
    print(
        f"{metadata['model']}, step {checkpoint.step:,}, on {len(source):,} images of {dataset}: "
        f"top-1 {scores['top1']:.2f} %  top-5 {scores['top5']:.2f} %  loss {scores['loss']:.4f}"
        + (f"  {scores['skipped_images']:,.0f} images skipped" if scores["skipped_images"] else "")
    )


if __name__ == "__main__":
    cli.run(main)
