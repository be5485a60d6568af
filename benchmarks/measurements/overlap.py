"""The collectives of a compiled program, and what the device computes while they are under way."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from measurements.accelerators import Accelerator
from measurements.hlo import COLLECTIVES, Instruction, Program, array_bytes

# A TPU starts and ends some collectives by fusions, of which only the names tell.
START, END = "async-collective-start", "async-collective-done"


@dataclass(frozen=True)
class Collective:
    """A collective of a scheduled program.

    Attributes:
        kind: such as "all-reduce".
        bytes: of its result, wherever it lies.
        asynchronous: whether it has a start and an end, so that kernels may run in between.
        kernels: the number of kernels between start and end.
        products: how many of them have a convolution or a matrix product.
        seconds: their roofline.
    """

    kind: str
    bytes: int
    asynchronous: bool
    kernels: int
    products: int
    seconds: float


def collectives(program: Program, accelerator: Accelerator) -> list[Collective]:
    """The collectives in the order of the program; one in a loop counts once."""
    called = {one.attribute("calls") for inside in program.computations.values() for one in inside.values()}
    return [
        _collective(place, inside, program, accelerator)
        for name, inside in program.computations.items()
        if name not in called
        for place, one in enumerate(inside.values())
        if collective_in(one, program)
    ]


def collective_in(one: Instruction, program: Program) -> Instruction | None:
    """The collective that an instruction is, or starts by a call; None if it is another instruction, or ends one."""
    if one.opcode.removesuffix("-start") in COLLECTIVES:
        return one
    called = one.attribute("calls") if one.opcode == "async-start" or one.name.startswith(START) else None
    inside = program.computations.get(called or "", {}).values()
    return next((inner for inner in inside if inner.opcode in COLLECTIVES), None)


def _collective(place: int, inside: Mapping[str, Instruction], program: Program, on: Accelerator) -> Collective:
    """The collective that the instruction at a place in its computation is or starts."""
    rest = list(inside.values())[place:]
    found = collective_in(rest[0], program)
    assert found is not None
    end = _end(rest)
    meanwhile = [one for one in rest[1:end] if not collective_in(one, program)]
    kernels = [kernel for one in meanwhile for kernel in program.launches_of(one, inside)]
    return Collective(
        kind=found.opcode.removesuffix("-start"),
        bytes=array_bytes(re.sub(r"\{[^}]*\}", "", found.shape)),  # without layouts, so without padding and places
        asynchronous=end > 0,
        kernels=len(kernels),
        products=sum(kernel.flops > 0 for kernel in kernels),
        seconds=sum(on.seconds(kernel.bytes, kernel.flops) for kernel in kernels),
    )


def _end(rest: Sequence[Instruction]) -> int:
    """How far the end of a collective is from its start, the first instruction; 0 if it has no end of its own.

    A TPU passes the handle through fusions that compute while they send.
    """
    if not (rest[0].opcode.endswith("-start") or rest[0].name.startswith(START)):
        return 0
    handles = {rest[0].name}
    for distance, one in enumerate(rest):
        if handles & {*one.operands}:
            if one.opcode.endswith("-done") or one.name.startswith(END):
                return distance
            if one.opcode in ("get-tuple-element", "fusion") or one.opcode.endswith("-update"):
                handles.add(one.name)
    return 0
