"""Evaluation over every example, each counted once."""

from collections.abc import Callable, Iterable

from lma_jax.data.batch import Batch
from lma_jax.definition import Tree
from lma_jax.errors import UserError
from lma_jax.training.meter import Meter
from lma_jax.training.step import Metrics


def evaluate(
    eval_step: Callable[..., Metrics],
    params: Tree,
    batch_stats: Tree,
    batches: Iterable[Batch],
    *,
    check: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Mean loss, "top1" and "top5" in per cent, and the number of "skipped_images", over all batches.

    Args:
        eval_step: what `make_eval_step` returned.
        params, batch_stats: replicated over its mesh.
        batches: batches on its mesh, such as `to_device(eval_batches(...), sharding)`.
        check: called after each batch; an exception that it raises ends the evaluation.

    Raises:
        UserError: no example could be decoded.
        NonFiniteError: the loss is not finite.
    """
    meter = Meter(unit="batch of evaluation")
    for number, batch in enumerate(batches, start=1):
        meter.add(number, eval_step(params, batch_stats, batch))
        check()
    if not meter.sums().get("count"):
        raise UserError("the evaluation data hold no image that can be decoded")
    return meter.means()
