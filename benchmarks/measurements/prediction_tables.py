"""The tables of docs/scaling.md, in Markdown."""

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial

from measurements.prediction import RELIEFS, Assumptions, Prediction, saturates_at

MOST_GPUS = 4096


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def prediction_table(assumptions: Assumptions, predictions: Sequence[Prediction]) -> str:
    """A column for each prediction."""

    def steps(p: Prediction) -> str:
        return " / ".join(f"{seconds * 1e3:.1f}" for seconds in p.step) + " ms"

    def efficiencies(p: Prediction) -> str:
        return " / ".join(f"{p.compute / seconds:.0%}" for seconds in p.step)

    def saving(p: Prediction) -> str:
        return f"{assumptions.save_blocks / (assumptions.save_blocks + assumptions.eval_every * p.epoch):.1%}"

    def load(part: str, p: Prediction) -> str:
        return f"{p.loads[part]:.0%}"

    def relief(p: Prediction) -> str:
        return f"{p.bottleneck}: {RELIEFS[p.bottleneck]}" if p.loads[p.bottleneck] > 1 else "nothing"

    cells: dict[str, Callable[[Prediction], str]] = {
        "`config.batch_size`": lambda p: f"{p.batch_size:,}",
        "computation per step": lambda p: f"{p.compute * 1e3:.1f} ms",
        "sent by each GPU in the all-reduce": lambda p: f"{p.wire_bytes / 1e6:.1f} MB",
        "time of the all-reduce": lambda p: f"{p.all_reduce * 1e3:.1f} ms",
        "step, all-reduce exposed / hidden": steps,
        "efficiency, exposed / hidden": efficiencies,
        "throughput of the GPUs": lambda p: f"{p.images:,.0f} images/s",
        "input cores per machine": lambda p: f"{p.input_cores:.1f} of {assumptions.cores_per_machine}",
        "storage read, all machines": lambda p: f"{p.storage_read / 1e9:.1f} GB/s",
        "epoch": lambda p: f"{p.epoch:.1f} s",
        "checkpoint": lambda p: f"{assumptions.checkpoint_bytes / 1e6:.0f} MB in {p.save:.1f} s",
        "time blocked by saving": saving,
        **{f"load: {part}": partial(load, part) for part in RELIEFS},
        "throughput of the job": lambda p: f"{p.throughput:,.0f} images/s",
        "limited by, and relief": relief,
    }
    header = ["", *(f"{p.gpus} GPUs" for p in predictions)]
    return markdown(header, [[name, *map(cell, predictions)] for name, cell in cells.items()])


def saturation_table(assumptions: Assumptions) -> str:
    """Where each part saturates, the first one first, what relieves it, and where it saturates with all reliefs."""

    def gpus(assumptions: Assumptions, part: str) -> float:
        return saturates_at(assumptions, part, most=MOST_GPUS) or math.inf

    def shown(gpus: float) -> str:
        return f"{gpus:,} GPUs" if gpus <= MOST_GPUS else f"not up to {MOST_GPUS:,}"

    relieved = replace(assumptions, data_workers=8, local_copy=True, eval_every=10.0)
    found = {part: gpus(assumptions, part) for part in RELIEFS}
    rows = [
        [part, shown(found[part]), RELIEFS[part], shown(gpus(relieved, part))]
        for part in sorted(found, key=lambda part: found[part])
    ]
    return markdown(["part", "saturates at", "relieved by", "then saturates at"], rows)


def assumption_table(assumptions: Assumptions) -> str:
    """Every assumption with its source."""
    rows = []
    for item in fields(assumptions):
        value = getattr(assumptions, item.name)
        shown = str(value) if isinstance(value, bool) else f"{value:,.10g}"
        rows.append([f"`{item.name}`", shown, item.metadata["meaning"], item.metadata["source"]])
    return markdown(["option", "value", "meaning", "source"], rows)
