"""Evaluation over every example of a source, each counted once."""

from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh, NamedSharding

from lma_jax.data.loader import eval_batches, to_device
from lma_jax.data.sources import Source
from lma_jax.definition import Tree
from lma_jax.errors import UserError
from lma_jax.preprocessing import Preprocessing
from lma_jax.sharding import SHARDED
from lma_jax.training.meter import Meter


def evaluate(
    eval_step: Any,
    params: Tree,
    batch_stats: Tree,
    source: Source,
    *,
    mesh: Mesh,
    preprocessing: Preprocessing,
    batch_size: int,
    threads: int,
    workers: int = 0,
    on_bad_image: str = "error",
    check: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Mean "loss", and "top1" and "top5" in per cent, over all of `source`; and the number of "skipped_images".

    Args:
        eval_step: what `make_eval_step` returned for `mesh`.
        params, batch_stats: replicated over `mesh`.
        source: the examples; their number need not be a multiple of anything.
        mesh: the devices that share each batch.
        preprocessing: what turns an image file into the network's input.
        batch_size: global batch size, a multiple of the number of devices.
        threads, workers, on_bad_image: see `lma_jax.data.loader.train_batches`.
        check: called after each batch; what it raises ends the evaluation.

    Raises:
        UserError: no example could be decoded.
        NonFiniteError: the loss is not finite.
    """
    batches = eval_batches(
        source,
        preprocessing=preprocessing,
        batch_size=batch_size,
        threads=threads,
        workers=workers,
        on_bad_image=on_bad_image,
    )
    meter = Meter(unit="batch of evaluation")
    for number, batch in enumerate(to_device(batches, NamedSharding(mesh, SHARDED)), start=1):
        meter.add(number, eval_step(params, batch_stats, batch))
        check()
    if not meter.sums()["count"]:
        raise UserError(f"{source.name} holds no image that can be decoded")
    return meter.means()
