"""What torch.save writes, read as data: nothing in it is executed, and nothing but a few types is built.

A file is a zip of a pickle (`data.pkl`) and of the bytes of each storage, or, before PyTorch 1.6, a row of pickles with
the storages behind them. torch.load allocates what a file claims, before it reads it, and expands what is compressed.
"""

import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from lma_jax.stored import HEADER_LIMIT, Stored, UnusableError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
STORAGES = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
    "torch.ComplexFloatStorage": "complex64",
    "torch.ComplexDoubleStorage": "complex128",
    "torch.storage.UntypedStorage": "uint8",
}


class NeedsCodeError(UnusableError):
    """A pickle names a class or a function that is not built here."""


class Contents(dict):
    """A mapping of a pickle, and the attributes that it had (an OrderedDict can have some).

    Attributes:
        attributes: them by name.
    """

    def __init__(self, items: Iterable[Any] | Mapping[Any, Any] = ()):
        super().__init__()
        self.attributes: Mapping[Any, Any] = {}
        for key, value in items.items() if isinstance(items, dict) else items:
            put(self, key, value)


@dataclass
class Storage:
    """The memory of some tensors, `size` elements; its place in the file is found later."""

    key: str
    dtype: str
    size: int
    offset: int = -1

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        import torch

        return self.size * getattr(torch, self.dtype).itemsize


@dataclass(frozen=True)
class PickledTensor:
    """A tensor as a pickle describes it, in elements of its storage."""

    storage: Storage
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str

    def stored(self) -> Stored:
        """The same, in bytes of the file, which is checked against the storage."""
        import torch

        itemsize = getattr(torch, self.dtype).itemsize
        last = self.first + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        is_within = 0 in self.shape or (last + 1) * itemsize <= self.storage.nbytes
        if min((self.first, *self.shape, *self.strides)) < 0 or not is_within:
            raise UnusableError(f"a tensor of shape {self.shape} does not fit into its memory")
        return Stored(self.shape, self.dtype, self.storage.offset + self.first * itemsize, self.strides)


def read_pickled(path: Path) -> Any:
    """The content of a file of torch.save: mappings, lists and numbers, with a PickledTensor for each tensor.

    Raises:
        UnusableError: it holds something else.
        Exception: it is damaged. What a damaged pickle raises cannot be listed.
    """
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        return _read_zip(file) if is_zip else _read_legacy(file)


def put(target: dict, key: Any, value: Any) -> None:
    """Sets an entry that is new. Keys of other types could be made to take for ever."""
    is_small = isinstance(key, int) and abs(key) < 2**31
    if not (isinstance(target, dict) and (isinstance(key, str) or is_small)) or key in target:
        raise UnusableError(f"it has a key of the type {type(key).__name__}, or one that comes twice")
    target[key] = value


def _tensor(storage: Any, first: Any, shape: Any, strides: Any, *others: Any, dtype: str = "") -> PickledTensor:
    numbers = (first, *shape, *strides)
    if not isinstance(storage, Storage) or not all(type(number) is int for number in numbers):
        raise UnusableError("it holds a tensor without memory")
    return PickledTensor(storage, first, tuple(shape), tuple(strides), dtype or storage.dtype)


def _tensor_of_dtype(*args: Any) -> PickledTensor:
    return _tensor(*args[:6], dtype=args[6].path.removeprefix("torch."))


def _parameter(tensor: Any, *others: Any) -> Any:
    return tensor


def _inert(*args: Any) -> Any:
    return args


# What pickles of training scripts call, and what is done instead.
CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": Contents,
    "collections.Counter": Contents,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _parameter,
    **dict.fromkeys(("torch.Size", "torch.device", "_codecs.encode", "builtins.set", "builtins.bytearray"), _inert),
}


@dataclass(frozen=True)
class Name:
    """A class, function or dtype that a pickle names."""

    path: str


OPCODES = (
    *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.BINPERSID),
    *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.BINGET, pickle.LONG_BINGET),
    *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1),
    *(pickle.BINFLOAT, pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINSTRING, pickle.SHORT_BINSTRING),
    *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
    *(pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS, pickle.EMPTY_DICT),
)


# The unpickler that is written in C allocates memory for any index that a pickle names.
PythonUnpickler: Any = pickle._Unpickler


class Unpickler(PythonUnpickler):
    """Builds what OPCODES and CALLS allow.

    Attributes:
        storages: those that the pickle refers to, by key.
    """

    def __init__(self, file: BinaryIO):
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, Storage] = {}

    dispatch: ClassVar = {code[0]: PythonUnpickler.dispatch[code[0]] for code in OPCODES}

    def find_class(self, module: str, name: str) -> Name:
        import torch

        path = f"{module}.{name}"
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if path in CALLS or path in STORAGES or is_dtype:
            return Name(path)
        if path.startswith("torch._utils._rebuild_"):
            raise UnusableError(f"it holds tensors that are not dense arrays of numbers ({name})")
        raise NeedsCodeError(path)

    def persistent_load(self, pid: Any) -> Storage:
        kind, name, key, _, size, *view = pid
        if kind != "storage" or any(view) or not isinstance(key, str) or type(size) is not int or size < 0:
            raise UnusableError("it refers to unknown memory")
        storage = self.storages.setdefault(key, Storage(key, STORAGES[name.path], size))
        if (storage.dtype, storage.size) != (STORAGES[name.path], size):
            raise UnusableError("its tensors disagree about their memory")
        return storage

    def _reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = CALLS[self.stack[-1].path](*args)

    def _build(self) -> None:
        attributes, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, Contents) or not isinstance(attributes, dict):
            raise UnusableError("it holds objects")
        target.attributes = attributes

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        put(self.stack[-1], key, value)

    def _set_items(self) -> None:
        items = self.pop_mark()
        for key, value in zip(items[::2], items[1::2], strict=True):
            put(self.stack[-1], key, value)

    dispatch |= {
        pickle.REDUCE[0]: _reduce,
        pickle.BUILD[0]: _build,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
    }


class BoundedFile(io.RawIOBase):
    """A file for zipfile, which reads the directory at once: no read may take more than HEADER_LIMIT bytes."""

    def __init__(self, file: BinaryIO):
        self.file = file

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def read(self, size: int = -1) -> bytes:
        content = self.file.read(HEADER_LIMIT + 1 if size is None or size < 0 else min(size, HEADER_LIMIT + 1))
        if len(content) > HEADER_LIMIT:
            raise UnusableError(f"its directory takes more than {HEADER_LIMIT:,} bytes")
        return content


def _read_zip(file: BinaryIO) -> Any:
    with zipfile.ZipFile(BoundedFile(file)) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise UnusableError("two of its members have one name")
        if any(member.compress_size != member.file_size for member in members.values()):
            raise UnusableError("it is compressed, as torch.save leaves no file")
        (folder,) = (name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl"))
        order = members.get(f"{folder}byteorder")
        if order and archive.read(order) != b"little":
            raise UnusableError("it was written on a big-endian machine")
        if members[f"{folder}data.pkl"].file_size > HEADER_LIMIT:
            raise UnusableError(f"its pickle takes more than {HEADER_LIMIT:,} bytes")
        unpickler = Unpickler(io.BytesIO(archive.read(f"{folder}data.pkl")))
        content = unpickler.load()
        for storage in unpickler.storages.values():
            member = members[f"{folder}data/{storage.key}"]
            if member.file_size != storage.nbytes:
                raise UnusableError(f"a storage of {storage.nbytes:,} bytes has {member.file_size:,}")
            storage.offset = _start_of(member, file)
    return content


def _start_of(member: zipfile.ZipInfo, file: BinaryIO) -> int:
    """The first byte of a member's data, behind its local header."""
    file.seek(member.header_offset)
    signature, name_length, extra_length = struct.unpack("<4s22xHH", file.read(30))
    if signature != b"PK\x03\x04":
        raise UnusableError("its directory leads to no member")
    return member.header_offset + 30 + name_length + extra_length


def _read_legacy(file: BinaryIO) -> Any:
    pickles = io.BytesIO(file.read(HEADER_LIMIT))
    if Unpickler(pickles).load() != LEGACY_MAGIC or Unpickler(pickles).load() != 1001:
        raise UnusableError("torch.save wrote no such file")
    if not Unpickler(pickles).load()["little_endian"]:
        raise UnusableError("it was written on a big-endian machine")
    unpickler = Unpickler(pickles)
    content = unpickler.load()
    keys, offset = Unpickler(pickles).load(), pickles.tell()
    if sorted(keys) != sorted(unpickler.storages):
        raise UnusableError("its tensors are not those that it lists")
    for storage in map(unpickler.storages.__getitem__, keys):
        file.seek(offset)
        if file.read(8) != struct.pack("<q", storage.size):
            raise UnusableError("its tensors have other sizes than it says")
        storage.offset = offset + 8
        offset += 8 + storage.nbytes
    return content
