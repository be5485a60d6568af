"""The paper's Table 1 as running code: parameters, MACs and FPS of every row in both frameworks, beside the paper's.

python -m convert.table1 --quick                                    parameters and MACs alone: a minute
python -m convert.table1 --rows "resnet50*" --batch_size 32         with images a second
python -m convert.table1 --checkpoints runs/r50,runs/r50_se --markdown table1.md --plot table1.png

A mark stands where a figure is not the paper's printed one, with the reason. The paper's FPS are those of an RTX A6000;
so FPS are compared as a ratio to the plain host, measured in turns in one run.
"""

import decimal
import fnmatch
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from absl import flags

from convert.results import csv_text, write_text
from lma_jax.errors import UserError, nearest


@dataclass(frozen=True)
class Published:
    """A row of the paper's Table 1, as printed: parameters (M), FLOPs (G), FPS, top-1 and top-5 accuracy (%)."""

    model: str
    parameters: str
    macs: str
    fps: int
    top1: float
    top5: float


TABLE1 = tuple(
    Published(*row)
    for row in (
        ("mobilenetv2", "3.51", "0.32", 2180, 71.88, 90.29),
        ("mobilenetv2_se", "3.54", "0.32", 2058, 72.42, 90.67),
        ("mobilenetv2_cbam", "3.54", "0.32", 1910, 69.33, 89.33),
        ("mobilenetv2_eca", "3.51", "0.32", 2060, 72.55, 90.73),
        ("mobilenetv2_ta", "3.51", "0.32", 1844, 72.62, 90.77),
        ("mobilenetv2_lma", "3.51", "0.32", 2089, 72.98, 91.23),
        ("resnet18", "11.69", "1.82", 2007, 69.76, 89.08),
        ("resnet18_se", "11.78", "1.82", 1873, 70.59, 89.78),
        ("resnet18_cbam", "11.78", "1.82", 1859, 70.73, 89.91),
        ("resnet18_bam", "11.71", "1.83", 1866, 71.12, 89.99),
        ("resnet18_eca", "11.69", "1.82", 1904, 70.88, 89.90),
        ("resnet18_ta", "11.69", "1.83", 1773, 71.09, 89.99),
        ("resnet18_lma", "11.69", "1.82", 1951, 71.43, 90.18),
        ("resnet34", "21.80", "3.68", 1941, 73.31, 91.42),
        ("resnet34_se", "21.96", "3.68", 1749, 73.87, 91.65),
        ("resnet34_cbam", "21.96", "3.68", 1460, 74.01, 91.76),
        ("resnet34_eca", "21.80", "3.68", 1756, 74.19, 91.80),
        ("resnet34_lma", "21.80", "3.68", 1804, 74.62, 92.16),
        ("resnet50", "25.56", "4.12", 1162, 76.13, 92.86),
        ("resnet50_se", "28.09", "4.13", 935, 76.71, 93.38),
        ("resnet50_cbam", "28.09", "4.13", 590, 77.34, 93.69),
        ("resnet50_bam", "25.92", "4.21", 803, 75.98, 92.82),
        ("resnet50_gsop", "28.29", "6.41", 641, 77.68, 93.98),
        ("resnet50_gc", "28.10", "4.13", 575, 77.70, 93.66),
        ("resnet50_eca", "25.56", "4.13", 938, 77.40, 93.61),
        ("resnet50_sa", "25.56", "4.13", 773, 77.72, 93.80),
        ("resnet50_ta", "25.56", "4.17", 495, 77.48, 93.68),
        ("resnet50_lma", "25.56", "4.13", 961, 78.02, 93.98),
    )
)


@dataclass
class Row:
    """A row as it is here.

    Attributes:
        published: the paper's row.
        parameters: number of weights, equal in both frameworks.
        macs: multiply-accumulates of one 224 x 224 image in the table's convention.
        products: those of convolutions and matrix products, equal in both frameworks.
        fps: images/s by framework, of those that were measured.
        relative_fps: the same over the plain host's, measured in turns.
        top1, top5: validation accuracy (%) of the checkpoint that was named.
        marks: what differs from the printed figures, and why.
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
    """A row with its counts, and marks where they are not as printed.

    Raises:
        ArithmeticError: the frameworks differ, which would be a bug.
    """
    from flax import nnx

    import lma_jax
    import lma_torch
    from convert.flops import count

    name = published.model
    jax_model = nnx.eval_shape(lambda: lma_jax.create_model(name, rngs=nnx.Rngs(0)))
    torch_model = lma_torch.create_model(name, device="meta")
    counts = count(name, jax_model=jax_model, torch_model=torch_model)
    parameters = sum(weight.numel() for weight in torch_model.parameters())
    if counts.problems or counts.parameters != parameters or counts.table1 is None or counts.jax is None:
        raise ArithmeticError(f"{name}: {counts.problems or 'the frameworks have different numbers of parameters'}")
    row = Row(published, parameters, counts.table1, sum(counts.jax.values()))
    row.marks += difference("parameters", parameters / 1e6, published.parameters, "M")
    row.marks += difference("MACs", counts.table1 / 1e9, published.macs, "G")
    return row


def difference(what: str, value: float, printed: str, unit: str) -> list[str]:
    """Why a value is not what is printed with two decimals, as a list of one mark or none."""
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
        UserError: a run has no checkpoint, none that was evaluated, or its network is not among the rows.
    """
    from lma_jax.checkpoint.format import load_checkpoint

    by_model = {row.published.model: row for row in rows}
    for workdir in checkpoints:
        metadata = load_checkpoint(workdir, "best").metadata
        row = by_model.get(metadata["model"])
        if row is None:
            raise UserError(f"{workdir} is a {metadata['model']}, which is not among the rows")
        if "val_top1" not in metadata["metrics"]:
            raise UserError(f"{workdir} has not been evaluated: its checkpoint holds no accuracy")
        row.top1, row.top5 = metadata["metrics"]["val_top1"], metadata["metrics"]["val_top5"]
        if metadata["num_classes"] != 1000:
            row.marks.append(f"accuracy of {metadata['num_classes']} classes, not ImageNet's 1000")


def fill_fps(rows: Sequence[Row], frameworks: Sequence[str], **options: Any) -> None:
    """Measures images/s of the rows, those of one host in turns with its plain network.

    Args:
        rows: what to fill in.
        frameworks: "jax", "torch" or both.
        options: dtype, batch_size, image_size, device ("cpu" or "gpu") and rounds.
    """
    from convert.measure.fps import images_per_second
    from convert.measure.runs import MODES, Variant, build
    from convert.measure.timing import measure

    for framework in frameworks:
        for host in dict.fromkeys(row.published.model.partition("_")[0] for row in rows):
            own = [row for row in rows if row.published.model.partition("_")[0] == host]
            names = dict.fromkeys([host, *(row.published.model for row in own)])
            mode, precision, size = MODES[framework][0], options["dtype"], options["batch_size"]
            variants = [Variant(name, framework, mode, precision, size) for name in names]
            builders = {v: lambda v=v: build(v, options["image_size"], options["device"]) for v in variants}
            plain, *others = measure(builders, rounds=options["rounds"])
            for row in own:
                timing = next(t for t in (plain, *others) if t.variant.model == row.published.model)
                if timing.error is None and plain.error is None:
                    row.fps[framework] = images_per_second(timing)
                    row.relative_fps[framework] = ratio(timing.seconds, plain.seconds)


def ratio(seconds: Sequence[float], plain: Sequence[float]) -> float:
    """The median over the rounds of a network's images/s over its plain host's."""
    import statistics

    return statistics.median(b / a for a, b in zip(seconds, plain))


def records(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The rows as flat dictionaries, for CSV and JSON."""
    published_fps = {row.model: row.fps for row in TABLE1}
    flat = []
    for row in rows:
        paper = asdict(row.published)
        host = paper["model"].partition("_")[0]
        record: dict[str, Any] = {"model": paper.pop("model"), "parameters": row.parameters, "macs": row.macs}
        record |= {"products": row.products, "top1": row.top1, "top5": row.top5}
        for framework in ("jax", "torch"):
            record[f"fps_{framework}"] = row.fps.get(framework)
            record[f"relative_fps_{framework}"] = row.relative_fps.get(framework)
        record |= {f"paper_{name}": value for name, value in paper.items()}
        record["paper_relative_fps"] = row.published.fps / published_fps[host]
        flat.append({**record, "marks": "; ".join(row.marks)})
    return flat


def markdown(rows: Sequence[Row]) -> str:
    """The table in Markdown: this project's figures, the paper's in parentheses, and the marks below."""
    heads = ["network", "parameters", "MACs", "FPS / plain host, JAX", "PyTorch", "top-1 (%)", "top-5 (%)"]
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


# What is drawn against MACs: its label, and the colours of the figures known here.
PANELS = {
    "top1": ("top-1 (%)", {"top1": "tab:green"}),
    "relative_fps": ("FPS / plain host", {"relative_fps_jax": "tab:blue", "relative_fps_torch": "tab:orange"}),
}


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Draws accuracy and relative FPS against MACs, a column a host: hollow the paper's, filled what is known here.

    Raises:
        UserError: matplotlib is absent, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("--plot needs matplotlib: pip install matplotlib") from error

    flat = records(rows)
    hosts = list(dict.fromkeys(record["model"].partition("_")[0] for record in flat))
    figure = Figure(figsize=(1 + 3.6 * len(hosts), 7.5), layout="constrained")
    grid = figure.subplots(2, len(hosts), squeeze=False)
    for column, host in zip(grid.T, hosts):
        own = [record for record in flat if record["model"].partition("_")[0] == host]
        for axes, (name, (label, keys)) in zip(column, PANELS.items()):
            for number, record in enumerate(sorted(own, key=lambda record: record[f"paper_{name}"])):
                giga, paper = record["macs"] / 1e9, record[f"paper_{name}"]
                axes.plot(giga, paper, "o", markerfacecolor="none", color="black")
                title = record["model"].partition("_")[2].upper() or "plain"
                offset, side = ((6, "left"), (-6, "right"))[number % 2]  # neighbours on both sides
                axes.annotate(title, (giga, paper), (offset, -3), textcoords="offset points", fontsize=8, ha=side)
                for key, colour in keys.items():
                    if record[key] is not None:
                        axes.plot(giga, record[key], "o", color=colour)
            axes.set(xlabel="MACs (G)", ylabel=label)
            axes.margins(0.25)
            axes.grid(alpha=0.3)
        column[0].set_title(host)
    names = {"black": "paper (hollow)", "tab:green": "checkpoint", "tab:blue": "JAX", "tab:orange": "PyTorch"}
    handles = [grid[0, 0].plot([], [], "o", color=colour, label=label)[0] for colour, label in names.items()]
    handles[0].set_markerfacecolor("none")
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {path}: {error}") from error


def define_flags() -> None:
    """Adds the options of the command; not on import, since commands share names."""
    flags.DEFINE_list("rows", ["*"], "Rows of the table: names or patterns.")
    flags.DEFINE_bool("quick", False, "Parameters and MACs alone.")
    flags.DEFINE_list("checkpoints", [], "Workdirs of training runs, for their accuracy.")
    flags.DEFINE_enum("framework", "both", ["both", "jax", "torch"], "Where to measure FPS.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16", "float16"], "Precision of the FPS.")
    flags.DEFINE_integer("batch_size", 32, "Images a batch of the FPS.", lower_bound=1)
    flags.DEFINE_integer("image_size", 224, "Height and width of the images of the FPS.", lower_bound=1)
    flags.DEFINE_integer("steps", 20, "Timed batches of each network.", lower_bound=1)
    flags.DEFINE_enum("device", "auto", ["auto", "cpu", "gpu"], "Where to run; auto is a GPU that all can use.")
    flags.DEFINE_string("markdown", None, "File for the table as printed.")
    flags.DEFINE_string("csv", None, "File for all figures.")
    flags.DEFINE_string("json", None, "File for all figures.")
    flags.DEFINE_string("plot", None, "File for a picture, such as table1.png.")


def main() -> None:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # both frameworks share a GPU
    options = flags.FLAGS
    rows = [counted(published) for published in chosen(options.rows)]
    fill_accuracy(rows, options.checkpoints)
    if not options.quick:
        from convert.measure.runs import choose_device

        frameworks = ("jax", "torch") if options.framework == "both" else (options.framework,)
        device, title = choose_device(options.device, frameworks)
        print(title)
        sizes = dict(batch_size=options.batch_size, image_size=options.image_size, rounds=options.steps)
        fill_fps(rows, frameworks, dtype=options.dtype, device=device, **sizes)
    print(markdown(rows), end="")
    texts = {"markdown": markdown(rows), "csv": csv_text(records(rows)), "json": json.dumps(records(rows), indent=1)}
    for name, text in texts.items():
        if path := options[name].value:
            write_text(path, text)
    if options.plot:
        draw(Path(options.plot), rows)


if __name__ == "__main__":
    from lma_jax import cli

    define_flags()
    cli.run(main)
