"""Compiled programs as tables in Markdown and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from measurements.compiled import Compiled, Setting, ratios
from measurements.overlap import Collective
from measurements.prediction_tables import markdown

PROGRAM = ("model", "program")
MEMORY = ("temporary", "arguments", "peak")
HEADER = (*PROGRAM, "traffic", "plain / model", "kernels", *MEMORY, "roofline", "plain / model")
COLLECTIVES = (*PROGRAM, "collective", "bytes", "asynchronous", "kernels meanwhile", "with products", "their roofline")
SMALL = 0.02
LARGEST = ("target", *PROGRAM, "kernel", "kind", "reads", "writes")


def report(programs: Sequence[Compiled], setting: Setting, *, top: int) -> str:
    """A section for each target and number of devices, and the `top` largest kernels of each program."""
    groups = dict.fromkeys((one.target, one.devices) for one in programs)
    parts = [_section([one for one in programs if (one.target, one.devices) == group], setting) for group in groups]
    if top and programs:
        parts.append(markdown(LARGEST, _largest(programs, top)))
    return "\n\n".join(parts)


def _section(programs: Sequence[Compiled], setting: Setting) -> str:
    """A table of programs for one target, and one of their collectives if they have any."""
    target, devices, found = programs[0].target, programs[0].devices, ratios(programs)
    size = f"{setting.image_size} x {setting.image_size}, {setting.dtype}"
    where = f"{target}, {devices} devices, each" if devices > 1 else f"{target},"
    rows = [_row(one, found.get(one.key, {})) for one in programs]
    section = f"{where} {setting.batch_size} images of {size}\n\n{markdown(HEADER, rows)}"
    sent = _collectives(programs)
    return f"{section}\n\n{markdown(COLLECTIVES, sent)}" if sent else section


def _row(one: Compiled, ratio: dict[str, float]) -> list[str]:
    def of_plain(figure: str) -> str:
        return f"{ratio[figure]:.3f}" if figure in ratio else ""

    memory = [f"{one.memory[kind] / 2**30:.2f} GiB" for kind in MEMORY]
    moved = [f"{one.bytes / 1e9:.2f} GB", of_plain("bytes"), f"{len(one.kernels):,}"]
    return [one.model, one.program, *moved, *memory, f"{1e3 * one.roofline:.2f} ms", of_plain("roofline")]


def _collectives(programs: Sequence[Compiled]) -> list[list[str]]:
    """A row for each collective with a share of SMALL or more of the program's bytes, and one for all others."""
    rows = []
    for one in programs:
        least = SMALL * sum(sent.bytes for sent in one.collectives)
        rows += [_collective(one, sent.kind, [sent]) for sent in one.collectives if sent.bytes >= least]
        if small := [sent for sent in one.collectives if sent.bytes < least]:
            rows.append(_collective(one, f"{len(small)} smaller", small))
    return rows


def _collective(one: Compiled, name: str, sent: Sequence[Collective]) -> list[str]:
    asynchronous = sum(each.asynchronous for each in sent)
    return [
        *(one.model, one.program, name, f"{sum(each.bytes for each in sent) / 1e6:,.2f} MB"),
        {0: "no", len(sent): "yes"}.get(asynchronous, f"{asynchronous} of them"),
        *(str(sum(each.kernels for each in sent)), str(sum(each.products for each in sent))),
        f"{1e3 * sum(each.seconds for each in sent):.2f} ms",
    ]


def _largest(programs: Sequence[Compiled], top: int) -> list[list[str]]:
    return [
        [
            *(one.target, one.model, one.program, kernel.name, kernel.kind),
            *(f"{kernel.read / 1e6:,.1f} MB", f"{kernel.written / 1e6:,.1f} MB"),
        ]
        for one in programs
        for kernel in one.largest(top)
    ]


def as_json(programs: Sequence[Compiled], *, top: int) -> list[dict[str, Any]]:
    """Each program with its `top` largest kernels; bytes, FLOPs and seconds are those of one device."""
    found = ratios(programs)
    return [
        {
            "target": one.target,
            "devices": one.devices,
            "model": one.model,
            "program": one.program,
            "bytes": one.bytes,
            "flops": one.flops,
            "kernels": len(one.kernels),
            "memory": one.memory,
            "roofline_seconds": one.roofline,
            "plain_over_model": found.get(one.key),
            "collectives": [asdict(sent) for sent in one.collectives],
            "compile_seconds": round(one.seconds, 1),
            "largest": [
                {"name": kernel.name, "kind": kernel.kind, "read": kernel.read, "written": kernel.written}
                for kernel in one.largest(top)
            ],
        }
        for one in programs
    ]
