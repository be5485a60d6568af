"""The paper's Table 1 as running code: parameters, MACs, FPS and accuracy beside the paper's figures.

A row has a mark for each figure that is not as printed, with the reason. FPS are compared as ratios to the plain
backbone, since the paper's were measured on an RTX A6000.
"""

import decimal
import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from convert.measure import runs
from convert.measure.flops import count_by_name
from convert.measure.fps import images_per_second
from convert.measure.paper import TABLE1, Published
from convert.measure.timing import measure, speedup
from lma_jax.errors import UserError, nearest
from lma_jax.registry import parts_of


@dataclass
class Row:
    """A row with the figures of this project.

    Attributes:
        published: the paper's row.
        parameters: number of parameters, the same in both frameworks.
        macs: multiply-accumulates of one 224 x 224 image in the table's convention.
        products: those of convolutions and matrix products alone, the same in both frameworks.
        fps: images/s by framework, if measured.
        relative_fps: the same divided by that of the plain backbone, measured in turns.
        top1, top5: validation accuracy (%) of a checkpoint, if one was given.
        marks: which figures are not as printed, and why.
    """

    published: Published
    parameters: int
    macs: int
    products: int
    fps: dict[str, float] = field(default_factory=dict)
    relative_fps: dict[str, float] = field(default_factory=dict)
    top1: float | None = None
    top5: float | None = None
    marks: list[str] = field(default_factory=list)


def chosen(patterns: Sequence[str]) -> list[Published]:
    """The rows of the table that match any of the patterns (fnmatch).

    Raises:
        UserError: a pattern matches none.
    """
    names = [row.model for row in TABLE1]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise UserError(f"--rows has no {pattern!r}, did you mean {nearest(pattern, names)!r}?")
    return [row for row in TABLE1 if any(fnmatch.fnmatch(row.model, pattern) for pattern in patterns)]


def counted(published: Published) -> Row:
    """A row with its counts, and with marks for those that are not as printed.

    Raises:
        ArithmeticError: the frameworks differ, which is a bug.
    """
    count = count_by_name(published.model)
    if count.problems or count.table1 is None or count.jax is None:
        raise ArithmeticError("; ".join(count.problems))
    row = Row(published, count.parameters, count.table1, sum(count.jax.values()))
    row.marks += difference("parameters", count.parameters / 1e6, published.parameters, "M")
    row.marks += difference("MACs", count.table1 / 1e9, published.macs, "G")
    return row


def difference(what: str, value: float, printed: str, unit: str) -> list[str]:
    """Explains why a value differs from the two printed decimals of the paper: one mark, or an empty list."""
    exact, hundredth = decimal.Decimal(value), decimal.Decimal("0.01")
    if str(exact.quantize(hundredth, decimal.ROUND_HALF_UP)) == printed:
        return []
    thousandths = exact.quantize(decimal.Decimal("0.001"), decimal.ROUND_HALF_UP)
    if str(thousandths.quantize(hundredth, decimal.ROUND_HALF_UP)) == printed:
        reason = f"rounded twice ({value:.4f}, {thousandths}, {printed})"
    elif str(exact.quantize(hundredth, decimal.ROUND_DOWN)) == printed:
        reason = "cut off, not rounded"
    else:
        reason = "no reason known"
    return [f"{what} {value:.4f}{unit}, printed {printed}{unit}: {reason}"]


def fill_accuracy(rows: Iterable[Row], checkpoints: Iterable[str]) -> None:
    """Fills in the validation accuracy of the best checkpoints of training runs.

    Raises:
        UserError: a run has no checkpoint, its best one has not been evaluated, or its network is not among the rows.
    """
    from lma_jax.checkpoint.format import load_checkpoint

    by_model = {row.published.model: row for row in rows}
    for workdir in checkpoints:
        metadata = load_checkpoint(workdir, "best").metadata
        row = by_model.get(metadata.model)
        if row is None:
            raise UserError(f"{workdir} is a {metadata.model}, which is not among the rows")
        if "val_top1" not in metadata.metrics:
            raise UserError(f"{workdir} has not been evaluated: its checkpoint holds no accuracy")
        row.top1, row.top5 = metadata.metrics["val_top1"], metadata.metrics["val_top5"]
        if metadata.num_classes != 1000:
            row.marks.append(f"accuracy of {metadata.num_classes} classes, not ImageNet's 1000")


def fill_fps(
    rows: Sequence[Row],
    frameworks: Iterable[str],
    *,
    dtype: str,
    batch_size: int,
    image_size: int,
    device: str,
    rounds: int,
) -> None:
    """Measures images/s of the rows. Those of one backbone take turns with its plain network.

    Args:
        rows: what to fill in.
        frameworks: "jax", "torch" or both.
        dtype: of weights, images and computation.
        batch_size: images per call.
        image_size: height and width of the images in pixels.
        device: "cpu" or "gpu".
        rounds: number of timed batches of each network.
    """
    for framework in frameworks:
        mode = runs.MODES[framework][0]
        for backbone in dict.fromkeys(map(backbone_of, rows)):
            own = [row for row in rows if backbone_of(row) == backbone]
            names = dict.fromkeys([backbone, *(row.published.model for row in own)])
            variants = [runs.Variant(name, framework, mode, dtype, batch_size) for name in names]
            timings = measure({v: partial(runs.build, v, image_size, device) for v in variants}, rounds=rounds)
            done = {timing.variant.model: timing for timing in timings if timing.error is None}
            for row in own:
                if row.published.model in done and backbone in done:
                    timing = done[row.published.model]
                    row.fps[framework] = images_per_second(timing)
                    row.relative_fps[framework] = speedup(timing, done[backbone]).median


def backbone_of(row: Row) -> str:
    """The name of a row's backbone."""
    return parts_of(row.published.model)[0]


def records(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The rows as flat dictionaries, for CSV, JSON and the plot."""
    published_fps = {row.model: row.fps for row in TABLE1}
    flat = []
    for row in rows:
        paper = asdict(row.published)
        record: dict[str, Any] = {"model": paper.pop("model"), "parameters": row.parameters, "macs": row.macs}
        record |= {"products": row.products, "top1": row.top1, "top5": row.top5}
        for framework in ("jax", "torch"):
            record[f"fps_{framework}"] = row.fps.get(framework)
            record[f"relative_fps_{framework}"] = row.relative_fps.get(framework)
        record |= {f"paper_{name}": value for name, value in paper.items()}
        record["paper_relative_fps"] = row.published.fps / published_fps[backbone_of(row)]
        flat.append({**record, "marks": "; ".join(row.marks)})
    return flat


def markdown(rows: Sequence[Row]) -> str:
    """The table in Markdown: the figures of this project, the paper's in parentheses, and the marks below."""
    heads = ["network", "parameters", "MACs", "FPS / plain backbone, JAX", "PyTorch", "top-1 (%)", "top-5 (%)"]
    lines = [" | ".join(heads), " | ".join(["---", *["---:"] * (len(heads) - 1)])]
    notes = []
    for row, record in zip(rows, records(rows)):
        number = ""
        if row.marks:
            notes.append("; ".join(row.marks))
            number = f" [{len(notes)}]"
        fps = [_relative(record[f"relative_fps_{name}"], record["paper_relative_fps"]) for name in ("jax", "torch")]
        accuracy = [_accuracy(record[name], record[f"paper_{name}"]) for name in ("top1", "top5")]
        counts = [f"{row.parameters:,} ({row.published.parameters}M)", f"{row.macs:,} ({row.published.macs}G)"]
        lines.append(" | ".join([row.published.model + number, *counts, *fps, *accuracy]))
    table = "\n".join(f"| {line} |" for line in lines)
    below = "".join(f"\n[{number}] {note}" for number, note in enumerate(notes, start=1))
    return f"{table}\n\nIn parentheses: the paper's figures, FPS on an RTX A6000.\n{below}".rstrip() + "\n"


def _relative(value: float | None, paper: float) -> str:
    return f"{'-' if value is None else f'{value:.3f}'} ({paper:.3f})"


def _accuracy(value: float | None, paper: float) -> str:
    return f"{'-' if value is None else f'{value:.2f}'} ({paper:.2f})"
