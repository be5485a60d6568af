"""What a program compiled by XLA moves: its kernels, and the bytes that each reads from and writes to device memory.

They are counted in the program's text, since XLA's own count includes what stays on the chip. A kernel reads each
operand once and writes each result once; an operand of which a fusion reads slices only counts as those slices.
In the text of a scheduled program, the instructions stand in the order in which they run.
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from measurements.hlo_flops import flops_of

# Instructions that move nothing; nor does the second half of an asynchronous pair, "...-done".
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "opt-barrier", "iota", "add-dependency", "async-update",
}  # fmt: skip
# Transfers between the device's memories, with the place of their destination among the arrays of the result.
_TRANSFERS = {"copy-start": 0, "slice-start": 1}
_CALLS = {"call": "to_apply", "while": "body", "async-start": "calls"}
_SLICES = {"slice", "dynamic-slice", "gather"}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
_BITS = re.compile(r"^\D*(\d+)")

_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_SHAPE = re.compile(r"\w+\[[\d,]*\](?:\{[^}]*\})?")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)(?=\s[\w\-]+\()|\S+) ([\w\-]+)\((.*)$")
_TILE = re.compile(r"T\(([\d,]+)\)")


def array_bytes(shape: str) -> int:
    """Bytes in device memory of the arrays in a shape as XLA writes it: padded to tiles, 0 for those on the chip."""
    return sum(_one_array(*found) for found in _ARRAY.findall(shape))


def elements(shape: str) -> int:
    """The number of values of an array."""
    found = _ARRAY.search(shape)
    return math.prod(int(size) for size in found[2].split(",") if size) if found else 0


def _one_array(dtype: str, sizes: str, order: str, layout: str) -> int:
    if "S(1)" in layout or dtype in ("token", "opaque"):
        return 0
    bits = 8 if dtype == "pred" else int(_BITS.match(dtype)[1])  # type: ignore[index]
    dims = [int(size) for size in sizes.split(",") if size]
    if tile := _TILE.search(layout):
        by_layout = [dims[int(axis)] for axis in order.split(",") if axis][::-1]  # from major to minor
        factors = [int(size) for size in tile[1].split(",")]
        by_layout = [1] * (len(factors) - len(by_layout)) + by_layout
        for axis, factor in enumerate(factors, len(by_layout) - len(factors)):
            by_layout[axis] = math.ceil(by_layout[axis] / factor) * factor
        dims = by_layout
    return math.prod(dims) * bits // 8


@dataclass(frozen=True)
class Instruction:
    """A line of a program: its name, the shape of its result, its operation, operands and attributes."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    text: str

    def attribute(self, name: str) -> str | None:
        """The computation, or the word, that an attribute names."""
        found = re.search(rf'[ ,]{name}="?%?([\w.$-]+)', self.text)
        return found[1] if found else None


@dataclass(frozen=True)
class Kernel:
    """A launch of the device.

    Attributes:
        name: in the program.
        kind: the operation, or the target of a custom call.
        read, written: bytes in device memory.
        flops: of its convolutions and matrix products.
    """

    name: str
    kind: str
    read: int
    written: int
    flops: int

    @property
    def bytes(self) -> int:
        return self.read + self.written


class Program:
    """The computations of a program's text, by name, each with its instructions by name."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        current: dict[str, Instruction] | None = None
        for line in text.splitlines():
            header = re.match(r"^(ENTRY )?%?([\w.\-]+) .*\{$", line)
            if header and " = " not in line.split("->")[0]:
                current = self.computations[header[2]] = {}
                self.entry = header[2] if header[1] else self.entry
            elif current is not None and (instruction := _parse(line)):
                current[instruction.name] = instruction

    @cached_property
    def kernels(self) -> list[Kernel]:
        """The launches in the order of the program; those in a loop of known length as often as it runs."""
        return list(self.launches(self.entry))

    def launches(self, computation: str) -> Iterator[Kernel]:
        """The launches of one computation."""
        for one in self.computations[computation].values():
            yield from self.launches_of(one, self.computations[computation])

    def launches_of(self, one: Instruction, among: Mapping[str, Instruction]) -> Iterator[Kernel]:
        """The launches of an instruction, whose operands are `among` others."""
        if one.opcode in _FREE or one.opcode.endswith("-done"):
            return
        if one.opcode in _CALLS and (inner := one.attribute(_CALLS[one.opcode])) in self.computations:
            trips = re.search(r'known_trip_count":\{"n":"(\d+)"', one.text) if one.opcode == "while" else None
            for _ in range(int(trips[1]) if trips else 1):
                yield from self.launches(str(inner))
            return
        yield _transfer(one, among) if one.opcode in _TRANSFERS else self._kernel(one, among)

    def _kernel(self, one: Instruction, among: Mapping[str, Instruction]) -> Kernel:
        fusion = one.attribute("calls") if one.opcode == "fusion" else None
        read = sum(
            self._read(fusion, number, among[name].shape)
            for number, name in enumerate(one.operands)
            if name in among and one.operands.index(name) == number
        )
        kind = one.attribute("custom_call_target") or one.opcode
        return Kernel(one.name, kind, read, array_bytes(one.shape), self._flops(one, among))

    def _flops(self, one: Instruction, among: Mapping[str, Instruction]) -> int:
        """The FLOPs of an instruction; those of a fusion lie in its computation."""
        inside = self.computations.get(one.attribute("calls") or "") if one.opcode == "fusion" else None
        if inside is not None:
            return sum(self._flops(inner, inside) for inner in inside.values())
        return flops_of(one.opcode, one.text, [among[name].shape for name in one.operands if name in among], one.shape)

    def _read(self, fusion: str | None, number: int, shape: str) -> int:
        """Bytes of an operand that a kernel reads: of its slices, if its fusion uses nothing else of it."""
        whole = array_bytes(shape)
        if fusion is None or whole == 0:
            return whole
        inside = self.computations[fusion].values()
        name = next(one.name for one in inside if one.opcode == "parameter" and one.text.startswith(f"{number})"))
        sliced = self._sliced(fusion, name)
        return whole if sliced is None else min(whole, math.ceil(whole * sliced / elements(shape)))

    def _sliced(self, fusion: str, name: str) -> int | None:
        """The elements of the slices of a value in a fusion; None if it is used as a whole."""
        total = 0
        users = [one for one in self.computations[fusion].values() if name in one.operands]
        for user in users:
            if user.opcode in _SLICES and user.operands[0] == name:
                found: int | None = elements(user.shape)
            else:
                found = self._sliced(fusion, user.name) if user.opcode in ("bitcast", "convert") else None
            if found is None:
                return None
            total += found
        return total if users else None


def _transfer(one: Instruction, among: Mapping[str, Instruction]) -> Kernel:
    """A copy between memories: it reads as much of its source as it writes, in the layout of the source."""
    source, target = among[one.operands[0]].shape, _SHAPE.findall(one.shape)[_TRANSFERS[one.opcode]]
    read = math.ceil(array_bytes(source) * elements(target) / elements(source))
    return Kernel(one.name, one.opcode, read, array_bytes(target), 0)


def _parse(line: str) -> Instruction | None:
    line = re.sub(r"/\*.*?\*/", "", line)
    match = _INSTRUCTION.match(line)
    if match is None:
        return None
    name, shape, opcode, rest = match.groups()
    depths = itertools.accumulate((letter in "({[") - (letter in ")}]") for letter in rest)
    end = next((place for place, depth in enumerate(depths) if depth < 0), len(rest))
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[:end]))
    return Instruction(name, shape, opcode, operands, rest)
