"""Tensors that still lie in a file: what is known of them before a byte of them is read.

Readers of weight files take names, shapes and places first, so that a file of another network, or one that claims to
be larger than it is, is refused before it takes any memory.
"""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import BinaryIO

import ml_dtypes
import numpy as np

# What the readable dtypes are called in both formats; all are little-endian.
READABLE = {
    "float64": np.dtype("<f8"),
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int64": np.dtype("<i8"),
}
# The bytes of names, shapes and metadata: ten times those of a ResNet-152 with its optimizer.
HEADER_LIMIT = 2**22


class UnusableError(ValueError):
    """A file holds something that is no tensor of a network, or lies."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Attributes:
        shape: its shape.
        dtype: name of its dtype, as PyTorch has it.
        offset: its first byte in the file.
        strides: elements from one index to the next, for each axis.
    """

    shape: tuple[int, ...]
    dtype: str
    offset: int
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of a tensor of a readable dtype."""
        return math.prod(self.shape) * READABLE[self.dtype].itemsize

    def reshape(self, shape: tuple[int, ...]) -> "Stored":
        """The same tensor with more or fewer axes of size 1."""
        strides = iter([stride for stride, size in zip(self.strides, self.shape, strict=True) if size != 1])
        return replace(self, shape=shape, strides=tuple(1 if size == 1 else next(strides) for size in shape))

    def require_readable(self, file_size: int) -> None:
        """Raises an UnusableError if it is not a dense tensor of a readable dtype within the file."""
        if self.dtype not in READABLE:
            raise UnusableError(f"is {self.dtype}, not one of {', '.join(READABLE)}")
        if len(self.shape) > 8 or min((self.offset, *self.shape)) < 0:
            raise UnusableError(f"has the shape {self.shape[:9]}")
        if math.prod(self.shape) > 0 and not self._is_dense():
            raise UnusableError(f"of shape {self.shape} has the strides {self.strides}, and so uses its memory twice")
        if self.offset + self.nbytes > file_size:
            raise UnusableError(f"of shape {self.shape} does not fit into the file")

    def read(self, file: BinaryIO) -> np.ndarray:
        """The tensor from a file that is open."""
        file.seek(self.offset)
        values = np.fromfile(file, READABLE[self.dtype], math.prod(self.shape))
        by_stride = sorted(range(len(self.shape)), key=lambda axis: -self.strides[axis])
        as_it_lies = values.reshape([self.shape[axis] for axis in by_stride])
        return np.ascontiguousarray(as_it_lies.transpose(np.argsort(by_stride))).reshape(self.shape)

    def _is_dense(self) -> bool:
        """Whether the axes, in some order, are those of a contiguous array."""
        axes = sorted((stride, size) for stride, size in zip(self.strides, self.shape, strict=True) if size != 1)
        sizes = itertools.accumulate((size for _, size in axes), lambda a, b: a * b, initial=1)
        return all(stride == size for (stride, _), size in zip(axes, sizes))


def require_apart(tensors: Iterable[Stored]) -> None:
    """Raises an UnusableError if two readable tensors share bytes of the file."""
    places = sorted((tensor.offset, tensor.offset + tensor.nbytes) for tensor in tensors if tensor.nbytes)
    if any(end > start for (_, end), (start, _) in itertools.pairwise(places)):
        raise UnusableError("two of its tensors share their memory")
