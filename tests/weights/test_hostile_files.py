"""Hostile and damaged weight files: one line each, in the memory and the time of a small file, or the same tensors."""

import gc
import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lma_jax.errors import UserError
from lma_jax.stored import HEADER_LIMIT
from lma_jax.weight_files import SUFFIXES, open_weights, read_weights, write_weights
from tests.helpers.torch_tiny import TorchTiny

STATE = {key: tensor.numpy() for key, tensor in TorchTiny().state_dict().items()}
DESCRIBED = {"model": "tiny_lma", "class_names": ["cat", "dog"], "preprocessing": {"image_size": 16, "std": [0.5] * 3}}
WEIGHT = torch.zeros(4, 4)


def saved(content, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def legacy(content) -> bytes:
    return saved(content, _use_new_zipfile_serialization=False)


def zipped(
    pickled: bytes, *, storage: bytes = bytes(64), compression: int = zipfile.ZIP_STORED, **more: bytes
) -> bytes:
    """A file of torch.save with this pickle, and with one storage of the key 0."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in {"data.pkl": pickled, "data/0": storage, **more}.items():
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def safetensors(header, data: bytes = b"", size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def itself(kind):
    content = kind()
    content["state_dict"] = content
    return content


def wrapped(times: int):
    content: dict = {"fc.weight": WEIGHT}
    for _ in range(times):
        content = {"state_dict": content}
    return content


def shared(times: int) -> list:
    """A list that is small, and 2 ** times large where it is written out."""
    content: list = ["x" * 100]
    for _ in range(times):
        content = [content, content]
    return content


def described(metadata) -> OrderedDict:
    content: Any = OrderedDict({"fc.weight": WEIGHT})
    content.metadata = metadata
    return content


def pickle_of(tensor: bytes, *, head: bytes = b"") -> bytes:
    """A pickle of a mapping with one entry."""
    return b"\x80\x02" + head + b"}X\x01\x00\x00\x00a" + tensor + b"s."


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def tuple_of(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def tensor_of(shape, strides, *, size: int = 16, first: int = 0, kind: str = "FloatStorage") -> bytes:
    """The opcodes of a tensor on a storage of `size` elements."""
    pid = tuple_of(text("storage"), f"ctorch\n{kind}\n".encode(), text("0"), text("cpu"), number(size))
    axes = [tuple_of(*map(number, values)) for values in (shape, strides)]
    args = tuple_of(pid + b"Q", number(first), *axes, b"\x89", b")")
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + args + b"R"


def nested_key(depth: int) -> bytes:
    """A mapping whose key is a tuple within a tuple ...: its hash would overflow the stack."""
    return b"\x80\x02}K\x01" + b"\x85" * depth + b"K\x01s."


PTH = {
    "a mapping that holds itself": saved(itself(dict)),
    "an ordered one": saved(itself(OrderedDict)),
    "a legacy one": legacy(itself(dict)),
    "wrapped too often": saved(wrapped(100)),
    "nested lists": zipped(pickle_of(b"]" * 50_000 + b"a" * 49_999)),
    "a key of nested tuples": zipped(nested_key(100_000)),
    "keys that are no strings": saved({1: WEIGHT}),
    "a key twice": zipped(pickle_of(tensor_of([4], [1]) + b"s" + text("a") + tensor_of([4], [1]))),
    "one byte": b"P",
    "zeros": bytes(5000),
    "a deflated zip": zipped(pickle_of(tensor_of([4, 4], [4, 1])), compression=zipfile.ZIP_DEFLATED),
    "a bomb": zipped(b"\x80\x02}.", storage=bytes(2**24), compression=zipfile.ZIP_DEFLATED),
    "a bomb of a pickle": zipped(b"}" * (HEADER_LIMIT + 1)),
    "a pickle without an end": zipped(b"\x80\x02" + b"}" * 1000),
    "a stride of zero": zipped(pickle_of(tensor_of([2**40, 4], [0, 1]))),
    "an expanded tensor": saved({"fc.weight": torch.zeros(1).expand(1000, 1000)}),
    "overlapping windows": saved({"fc.weight": torch.zeros(8).as_strided((4, 4), (1, 1))}),
    "two tensors in one place": saved({"a": WEIGHT, "b": WEIGHT}),
    "two that overlap": saved({"a": WEIGHT[:3], "b": WEIGHT[1:]}),
    "a tensor beyond its storage": zipped(pickle_of(tensor_of([1000], [1]))),
    "a tensor before its storage": zipped(pickle_of(tensor_of([4], [1], first=-4))),
    "a negative stride": zipped(pickle_of(tensor_of([4], [-1], first=8))),
    "a negative size": zipped(pickle_of(tensor_of([-4], [1]))),
    "a storage larger than the file": zipped(pickle_of(tensor_of([2**40], [1], size=2**40))),
    "more strides than axes": zipped(pickle_of(tensor_of([4], [4, 1]))),
    "a hundred axes": zipped(pickle_of(tensor_of([1] * 100, [1] * 100))),
    "an unknown storage": zipped(pickle_of(tensor_of([4], [1], kind="Float"))),
    "a storage that is missing": zipped(pickle_of(tensor_of([4], [1]).replace(text("0"), text("1")))),
    "memory for an index": zipped(b"\x80\x02}r\xff\xff\xff\x7f."),
    "a bytearray of a terabyte": zipped(b"\x80\x02c__builtin__\nbytearray\n\x8a\x06" + bytes(5) + b"\x01\x85R."),
    "a storage that is made": zipped(b"\x80\x02ctorch\nFloatStorage\n\x8a\x06" + bytes(5) + b"\x01\x85R."),
    "attributes of a function": zipped(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb."),
    "a float8 tensor": saved({"fc.weight": WEIGHT.to(torch.float8_e4m3fn)}),
    "a complex tensor": saved({"fc.weight": WEIGHT.to(torch.complex64)}),
    "an int32 tensor": saved({"fc.weight": WEIGHT.to(torch.int32)}),
    "a boolean tensor": saved({"fc.weight": WEIGHT.bool()}),
    "a quantised tensor": zipped(pickle_of(b"ctorch._utils\n_rebuild_qtensor\n)R")),
    "a sparse tensor": saved({"fc.weight": torch.eye(4).to_sparse()}),
    "a tensor without values": saved({"fc.weight": torch.zeros(4, device="meta")}),
    "a legacy file that is cut": legacy({"fc.weight": WEIGHT})[:-8],
    "a legacy file that claims a terabyte": legacy({"fc.weight": WEIGHT}).replace(
        b"K\x10N", b"\x8a\x05" + bytes(4) + b"\x10N"
    ),
    "a tar file": b"storages".ljust(257, b"\0") + b"ustar" + bytes(1000),
    "a name of escapes": saved({"fc\x1b[31m.weight": WEIGHT}),
    "a name with a new line": saved({"fc\n.weight": WEIGHT}),
    "a long name": saved({"module." * 1000 + "fc.weight": WEIGHT}),
    "two names for one entry": saved({"layer1.0.se.w": WEIGHT, "layer1.0.attention.w": WEIGHT.clone()}),
    "metadata that hold themselves": saved(described(itself(dict))),
    "metadata that grow": saved(described({"a": shared(60)})),
    "metadata of tensors": saved(described({"a": WEIGHT})),
    "a file of a big-endian machine": zipped(pickle_of(tensor_of([4], [1])), byteorder=b"big"),
}
ENTRY = dict(dtype="F32", shape=[2, 3], data_offsets=[0, 24])
NESTED = b'{"a":' * 1000 + b"1" + b"}" * 1000
SAFETENSORS = {
    "nothing": b"",
    "one byte": b"\0",
    "a header of a terabyte": safetensors({}, size=2**40),
    "a header of 5 MiB": safetensors(b" " * (HEADER_LIMIT + 1)),
    "a nested header": safetensors(NESTED),
    "a name twice": safetensors(b'{"a": %b, "a": %b}' % (2 * (json.dumps(ENTRY).encode(),)), bytes(24)),
    "a tensor beyond the file": safetensors({"a": {**ENTRY, "shape": [2**40], "data_offsets": [0, 2**42]}}, bytes(24)),
    "a size that overflows": safetensors({"a": {**ENTRY, "shape": [2**40, 2**40]}}, bytes(24)),
    "a negative size": safetensors({"a": {**ENTRY, "shape": [-2, -3]}}, bytes(24)),
    "two in one place": safetensors({"a": ENTRY, "b": ENTRY}, bytes(24)),
    "a hundred axes": safetensors({"a": {**ENTRY, "shape": [2, 3, *[1] * 98]}}, bytes(24)),
    "a list": safetensors([1, 2]),
    "a number for an entry": safetensors({"a": 1}),
    "a float8 tensor": safetensors({"a": {**ENTRY, "dtype": "F8_E4M3", "shape": [24]}}, bytes(24)),
    "a boolean tensor": safetensors({"a": {**ENTRY, "dtype": "BOOL", "shape": [24]}}, bytes(24)),
    "a complex tensor": safetensors({"a": {**ENTRY, "dtype": "C64", "shape": [3]}}, bytes(24)),
    "a number for metadata": safetensors({"__metadata__": 3, "a": ENTRY}, bytes(24)),
    "another digest": safetensors({"__metadata__": {"digest": '"0"'}, "a": ENTRY}, bytes(24)),
    "a list for a digest": safetensors({"__metadata__": {"digest": "[[]]"}, "a": ENTRY}, bytes(24)),
}
HOSTILE = [(f"weights{suffix}", name) for suffix, cases in zip(SUFFIXES, (SAFETENSORS, PTH)) for name in cases]


@pytest.mark.parametrize(("file_name", "case"), HOSTILE)
def test_a_hostile_file_is_refused_in_one_line_and_a_few_megabytes(file_name, case, tmp_path):
    content = (SAFETENSORS if file_name.endswith("safetensors") else PTH)[case]
    (tmp_path / file_name).write_bytes(content)
    gc.collect()
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=file_name) as error:
            read_weights(tmp_path / file_name)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000


def test_a_pickle_that_runs_code_runs_none(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "run"),)

    for number_, content in enumerate((saved({"a": Evil()}), legacy({"a": Evil()}), pickle.dumps(Evil()))):
        path = tmp_path / f"{number_}.pth"
        path.write_bytes(content)
        with pytest.raises(UserError):
            read_weights(path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_no_regular_file_is_not_opened(suffix, tmp_path):
    (tmp_path / f"folder{suffix}").mkdir()
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"device{suffix}").symlink_to("/dev/zero")
    for name in ("folder", "pipe", "device"):
        with pytest.raises(UserError, match="is no regular file"):
            open_weights(tmp_path / f"{name}{suffix}")
    with pytest.raises(UserError, match="does not exist"):
        open_weights(tmp_path / ("x" * 5000 + suffix))


def test_a_large_file_of_another_network_is_not_read(tmp_path):
    """A file with a hole of 64 GB: its names and shapes are known at once."""
    header = {"a": dict(dtype="F32", shape=[2**34], data_offsets=[0, 2**36])}
    path = tmp_path / "large.safetensors"
    path.write_bytes(safetensors(header))
    os.truncate(path, path.stat().st_size + 2**36)
    assert open_weights(path).tensors["a"].shape == (2**34,)


@pytest.mark.parametrize("save", [saved, legacy, lambda content: saved(content, pickle_protocol=4)])
def test_files_of_training_scripts_go_on_loading(save, tmp_path):
    """Optimizers, counters, sizes, parameters, transposed and channels-last weights, storages with several tensors."""
    rows = torch.arange(12.0).reshape(3, 4)
    weights = OrderedDict(
        {
            "transposed": torch.arange(6.0).reshape(2, 3).T,
            "channels_last": torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last),
            "parameter": torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16)),
            "row0": rows[0],
            "row2": rows[2],
            "empty": torch.zeros(0, 3),
            "scalar": torch.tensor(2.0, dtype=torch.float64),
        }
    )
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    content = {
        "epoch": 90,
        "arch": "resnet50",
        "state_dict": weights,
        "best_acc1": torch.tensor(76.1),
        "optimizer": optimizer.state_dict(),
        "scheduler": schedule.state_dict(),
        "rng": torch.get_rng_state(),
        "size": torch.Size([1, 2]),
        "nothing": None,
    }
    (tmp_path / "run.pth").write_bytes(save(content))
    found, metadata = read_weights(tmp_path / "run.pth")
    assert (list(found), metadata) == (list(weights), {})
    for name, tensor in weights.items():
        bits = tensor.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16) if name == "parameter" else tensor
        assert found[name].shape == tensor.shape
        np.testing.assert_array_equal(found[name], bits)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    for suffix in SUFFIXES:
        write_weights(folder / f"tiny{suffix}", STATE, DESCRIBED)
    return folder


def refusal_of(path: Path) -> str:
    """Why a file is refused; empty if it is not."""
    try:
        read_weights(path)
    except UserError as error:
        return str(error)
    return ""


def require_refused_or_same(path: Path, content: bytes) -> bool:
    """Whether a damaged copy of an export is refused; otherwise its tensors must be those of the export."""
    path.write_bytes(content)
    if refusal := refusal_of(path):
        assert "\n" not in refusal
        return True
    found, _ = read_weights(path)
    assert found.keys() == STATE.keys()
    for name, array in STATE.items():
        assert (found[name].dtype, found[name].tobytes()) == (array.dtype, array.tobytes()), name
    return False


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_flipped_byte_of_an_export_is_refused_or_changes_no_tensor(suffix, exported, tmp_path):
    content = (exported / f"tiny{suffix}").read_bytes()
    positions = range(0, len(content), max(1, 1500 // settings().max_examples))
    refused = [
        require_refused_or_same(
            tmp_path / f"x{suffix}", content[:at] + bytes([content[at] ^ (1 << at % 8)]) + content[at + 1 :]
        )
        for at in positions
    ]
    assert sum(refused) > (0.95 if suffix == ".safetensors" else 0.3) * len(positions)


@given(st.data())
def test_a_damaged_file_is_refused_or_has_the_same_tensors(exported, tmp_path_factory, data):
    """The fuzzer of the reader: bytes changed, removed, repeated or inserted anywhere, in both formats."""
    suffix = data.draw(st.sampled_from(SUFFIXES))
    content = bytearray((exported / f"tiny{suffix}").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(len(content), start + 40)))
        content[start:end] = data.draw(st.binary(max_size=40))
    require_refused_or_same(exported / f"fuzzed{suffix}", bytes(content))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=8), inner, max_size=2),
    max_leaves=4,
)
OPCODE = st.sampled_from([bytes([code]) for code in range(256)])
PIECE = st.one_of(
    OPCODE,
    st.sampled_from(
        [tensor_of([4], [1]), tensor_of([2, 2], [1, 2]), text("a"), number(3), b"ccollections\nOrderedDict\n"]
    ),
    st.binary(max_size=4),
)


@given(st.lists(PIECE, max_size=30), st.booleans())
def test_no_pickle_escapes(exported, pieces, is_mapping):
    """The fuzzer of the unpickler: any sequence of opcodes and arguments gives tensors or one line."""
    body = b"".join(pieces)
    path = exported / "pickle.pth"
    path.write_bytes(zipped(pickle_of(body) if is_mapping else b"\x80\x02" + body + b"."))
    assert "\n" not in refusal_of(path)


@given(st.dictionaries(st.text(max_size=8), JSON | st.fixed_dictionaries(dict.fromkeys(ENTRY, JSON)), max_size=2))
def test_no_header_escapes(exported, header):
    """The fuzzer of the header of .safetensors."""
    path = exported / "header.safetensors"
    path.write_bytes(safetensors({"a": ENTRY, **header}, bytes(24)))
    assert "\n" not in refusal_of(path)
