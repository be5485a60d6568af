"""Checkpoints: exact, verified, and passed over where they are damaged."""

import contextlib
import json
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lma_jax.checkpoint.format import RECORD_LIMIT, DamagedError, Metadata, load_checkpoint, read
from lma_jax.checkpoint.manager import Checkpoints
from lma_jax.checkpoint.restore import fill
from lma_jax.errors import UserError
from lma_jax.training.state import TrainState


def state(step: int, *, width: int = 5) -> TrainState:
    weights = jnp.arange(width, dtype=jnp.float32) * 0.1 + step
    return TrainState(jnp.int32(step), {"conv1": {"kernel": weights}}, {0: {"mean": weights * 2}}, (weights * 3,))


def metadata(**metrics: float) -> Metadata:
    return Metadata("tiny", 3, ("a", "b", "c"), {}, metrics)


def save(workdir: Path, *steps: int, keep: int = 9) -> None:
    """Checkpoints whose validation top-1 falls with the step."""
    with Checkpoints(workdir, keep=keep) as checkpoints:
        for step in steps:
            checkpoints.save(state(step), metadata(val_top1=100.0 - step), top1=100.0 - step)


def restore(workdir: Path, template: TrainState | None = None) -> Any:
    """As the trainer does."""
    template = template or state(0)
    with Checkpoints(workdir, keep=9) as checkpoints:
        checkpoint = checkpoints.load()
        if checkpoint is None:
            return None
        restored = fill(template, checkpoint.arrays, sharding=template.step.sharding, source=str(checkpoint))
        checkpoints.set_aside_after(checkpoint.step)
        return restored


def data_file(workdir: Path, step: int) -> Path:
    """The largest file with values of a checkpoint's arrays."""
    files = (workdir / "checkpoints" / str(step) / "state").rglob("d/*")
    return max(files, key=lambda path: path.stat().st_size)


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(bytes(content))


def test_a_state_comes_back_bit_for_bit(tmp_path):
    save(tmp_path, 7)
    expected, restored = state(7), restore(tmp_path)
    assert str(jax.tree.structure(restored)) == str(jax.tree.structure(expected))
    jax.tree.map(np.testing.assert_array_equal, restored, expected)
    assert all(a.dtype == b.dtype for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(expected)))


def test_a_workdir_without_checkpoints_starts_afresh(tmp_path):
    assert restore(tmp_path) is None


def test_the_newest_and_the_best_are_kept(tmp_path):
    save(tmp_path, 1, 2, 3, 4, 5, keep=2)
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [1, 4, 5]
    assert load_checkpoint(tmp_path).step == 5
    assert load_checkpoint(tmp_path, "best").step == 1
    assert load_checkpoint(tmp_path, "4").step == 4


def test_any_flipped_byte_of_the_arrays_is_noticed(tmp_path, capsys):
    save(tmp_path, 1, 2)
    pristine = tmp_path / "pristine"
    shutil.copytree(tmp_path / "checkpoints", pristine)
    path = data_file(tmp_path, 2)
    size = path.stat().st_size
    harmless = 0
    for position in range(0, size, max(1, size // 25)):
        flip(path, position)
        checkpoint = load_checkpoint(tmp_path)
        if checkpoint.step == 2:  # a byte that no array depends on
            np.testing.assert_array_equal(checkpoint.arrays["params/conv1/kernel"], state(2).params["conv1"]["kernel"])
            harmless += 1
        else:
            assert "2 (" in capsys.readouterr().err
        flip(path, position)
    assert harmless < 20
    assert load_checkpoint(tmp_path).step == 2


@pytest.mark.parametrize(("old", "new"), [(b'"num_classes"', b'"num_klasses"'), (b'"tiny"', b'"tine"'), (b"{", b"")])
def test_a_changed_record_is_noticed(tmp_path, capsys, old, new):
    save(tmp_path, 1, 2)
    (path,) = (path for path in (tmp_path / "checkpoints/2/record").rglob("*") if old in path.read_bytes())
    path.write_bytes(path.read_bytes().replace(old, new))
    assert load_checkpoint(tmp_path).step == 1
    assert "skipped damaged checkpoints 2" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["truncated", "missing", "empty folder", "half-written"])
def test_training_goes_on_from_the_one_before_a_damaged_checkpoint(tmp_path, capsys, damage):
    save(tmp_path, 1, 2)
    folder = tmp_path / "checkpoints" / "2"
    if damage == "truncated":
        data_file(tmp_path, 2).write_bytes(data_file(tmp_path, 2).read_bytes()[:-3])
    elif damage == "missing":
        shutil.rmtree(folder / "state")
    elif damage == "empty folder":
        shutil.rmtree(folder)
        folder.mkdir()
    else:
        folder.rename(folder.with_name("2.orbax-checkpoint-tmp"))
    restored = restore(tmp_path)
    assert int(restored.step) == 1
    if damage != "half-written":
        assert "using 1" in capsys.readouterr().err
        assert (tmp_path / "damaged" / "2").is_dir()
    save(tmp_path, 2)
    assert load_checkpoint(tmp_path).step == 2


def test_nothing_is_trained_anew_over_damaged_checkpoints(tmp_path):
    save(tmp_path, 1)
    flip(tmp_path / "checkpoints/1/record/metadata", 20)
    with pytest.raises(UserError, match=r"every checkpoint .* is damaged: 1 \("):
        restore(tmp_path)
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(tmp_path, "1")
    assert (tmp_path / "checkpoints/1").is_dir()


def test_a_checkpoint_of_another_network_is_refused_naming_the_differences(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(
        UserError, match=r"checkpoint 1, a tiny with 3 classes, is of another network \(3 differences: .*conv1/kernel"
    ):
        restore(tmp_path, state(0, width=6))


def test_a_full_disk_is_reported_and_the_next_save_tries_again(tmp_path, capsys, monkeypatch):
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        for step, free in ((1, 10**9), (2, 50), (3, 10**9)):
            monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: shutil._ntuple_diskusage(0, 0, free))
            checkpoints.save(state(step), metadata(), top1=0.0)
        checkpoints.wait()
        errors = capsys.readouterr().err
        assert errors.count("\n") == 1
        assert "could not be written" in errors
        assert "MB are free on the disk" in errors
        assert "training goes on, the newest checkpoint is 1" in errors
        assert checkpoints.newest == 3
    assert load_checkpoint(tmp_path, "3").step == 3


def test_a_write_that_fails_in_the_background_is_reported_and_the_next_save_tries_again(tmp_path, capsys, monkeypatch):
    def fail():
        raise ValueError("Disk quota exceeded\nand a long story")

    with Checkpoints(tmp_path, keep=9) as checkpoints:
        checkpoints.save(state(1), metadata(), top1=0.0)
        checkpoints.wait()
        monkeypatch.setattr(checkpoints._manager, "wait_until_finished", fail)
        (tmp_path / "checkpoints/2.orbax-checkpoint-tmp").mkdir()
        checkpoints.save(state(3), metadata(), top1=0.0)
        errors = capsys.readouterr().err
        assert errors.count("\n") == 1
        assert "(Disk quota exceeded); training goes on, the newest checkpoint is 1" in errors
    assert load_checkpoint(tmp_path, "3").step == 3
    assert list((tmp_path / "checkpoints").glob("2*")) == []


def test_a_state_saved_on_a_signal_is_replaced_once_it_is_evaluated(tmp_path):
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        checkpoints.save(state(1), metadata(), top1=-1.0)
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        checkpoints.save(state(1), metadata(val_top1=50.0), top1=50.0)
    assert load_checkpoint(tmp_path, "1").metadata.metrics == {"val_top1": 50.0}
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]


def test_a_state_that_was_to_be_replaced_survives_a_kill_and_a_failure(tmp_path, capsys, monkeypatch):
    save(tmp_path, 1)
    folder = tmp_path / "checkpoints"
    (folder / "1").rename(folder / "1.replaced")  # as a kill before the new one is whole leaves it
    assert int(restore(tmp_path).step) == 1
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "save", lambda *_, **__: 1 / 0)
        checkpoints.save(state(1), metadata(), top1=0.0)
    assert "division by zero" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["1"]


@pytest.mark.parametrize("step", ["3", "first"])
def test_a_missing_checkpoint_names_those_there_are(tmp_path, step):
    save(tmp_path, 1, 2)
    with pytest.raises(UserError, match=rf"no checkpoint '{step}'; it holds 2, 1, newest and best"):
        load_checkpoint(tmp_path, step)


def test_a_folder_without_checkpoints_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_checkpoint(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_data_must_have_the_classes_of_a_checkpoint():
    metadata(val_top1=1.0).require_classes(("a", "b", "c"), "the data")
    with pytest.raises(UserError, match="classes of pets are not the 3 classes of the checkpoint: 'b' is called 'x'"):
        metadata().require_classes(("a", "x", "c"), "pets")
    with pytest.raises(UserError, match="not the 3 classes of the checkpoint: 'a' is called 'b' there"):
        metadata().require_classes(("b", "a", "c"), "pets")
    with pytest.raises(UserError, match="not the 3 classes"):
        metadata().require_classes(("a", "b"), "pets")
    unknown = replace(metadata(), class_names=None)
    unknown.require_classes(("x", "y", "z"), "pets")
    with pytest.raises(UserError, match="not the 3 classes"):
        unknown.require_classes(("x", "y"), "pets")


def test_classes_in_another_order_are_told_from_other_classes():
    with pytest.raises(UserError, match=r"'a' is called 'c' there, the same names in another order$"):
        metadata().require_classes(("c", "a", "b"), "pets")


def test_a_record_of_another_version_is_refused(tmp_path):
    save(tmp_path, 1)
    path = tmp_path / "checkpoints/1/record/metadata"
    record = json.loads(path.read_text())
    del record["checksum"]
    record["metadata"]["colour"] = "blue"
    record["checksum"] = f"{zlib.crc32(json.dumps(record, sort_keys=True).encode()):08x}"
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match="its metadata are those of another version of this project"):
        load_checkpoint(tmp_path, "1")


RECORDS: dict[str, Callable[[dict], bytes]] = {
    "a list": lambda record: b"[1, 2]",
    "a number": lambda record: b"3",
    "nothing": lambda record: b"null",
    "deep nesting": lambda record: b'{"checksum": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a number of many digits": lambda record: b'{"checksum": ' + b"1" * 10_000 + b"}",
    "no text": lambda record: b"\xff\xfe\x00",
    "too much text": lambda record: b" " * (RECORD_LIMIT + 1),
    "no metadata": lambda record: sealed({"checksums": record["checksums"]}),
    "metadata in a list": lambda record: sealed({**record, "metadata": [record["metadata"]]}),
    "no checksums": lambda record: sealed({"metadata": record["metadata"]}),
    "checksums in a list": lambda record: sealed({**record, "checksums": list(record["checksums"])}),
    "a checksum of another type": lambda record: sealed({**record, "checksums": dict.fromkeys(record["checksums"], 1)}),
    "a path out of the folder": lambda record: sealed({**record, "checksums": {"../../secret": "0"}}),
}
VALUES: dict[str, list] = {
    "model": [None, 3, ["tiny"]],
    "num_classes": [0, -1, 3.0, True, "3", None, 10**400],
    "class_names": ["abc", ["a", "b"], [1, 2, 3], 3, {"a": 1}],
    "config": [None, [], "x", {"image_size": 10**9}],
    "metrics": [[], {"val_top1": "high"}, {"val_top1": [1]}, {"val_top1": None}],
    "sums": [3, {"loss": {}}],
    "imported_from": [3],
}


def sealed(record: dict) -> bytes:
    """A record with the checksum that belongs to it."""
    checksum = f"{zlib.crc32(json.dumps(record, sort_keys=True).encode()):08x}"
    return json.dumps({**record, "checksum": checksum}).encode()


def with_metadata(record: dict, **changes: Any) -> bytes:
    return sealed({**record, "metadata": {**record["metadata"], **changes}})


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory) -> Path:
    """A workdir with the checkpoints 1 and 2, whose record of 2 a test overwrites."""
    workdir = tmp_path_factory.mktemp("saved")
    save(workdir, 1, 2)
    return workdir


@pytest.fixture(scope="module")
def good_record(saved_run) -> dict:
    record = json.loads((saved_run / "checkpoints/2/record/metadata").read_text())
    return {key: value for key, value in record.items() if key != "checksum"}


def require_damaged(workdir: Path, record: bytes) -> None:
    """Gives the checkpoint 2 a record: it must count as damaged, so that the one before it is used."""
    (workdir / "checkpoints/2/record/metadata").write_bytes(record)
    with pytest.raises(UserError, match=r"checkpoint 2 of .* is damaged"):
        load_checkpoint(workdir, "2")
    assert load_checkpoint(workdir).step == 1


@pytest.mark.parametrize("case", RECORDS)
def test_a_record_of_another_shape_is_damaged(case, saved_run, good_record):
    require_damaged(saved_run, RECORDS[case](good_record))


@pytest.mark.parametrize("name", VALUES)
def test_metadata_of_another_type_are_damaged(name, saved_run, good_record):
    for value in VALUES[name]:
        require_damaged(saved_run, with_metadata(good_record, **{name: value}))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=8), inner, max_size=2),
    max_leaves=4,
)


@given(st.data())
def test_no_record_escapes(saved_run, good_record, data):
    """The fuzzer of the record: values of any type anywhere in it, also where its checksum is right, and bytes."""
    changes = data.draw(st.dictionaries(st.sampled_from([*good_record["metadata"], "other"]), JSON, max_size=2))
    content = with_metadata(good_record, **changes)
    if data.draw(st.booleans()):
        content = sealed(data.draw(st.dictionaries(st.sampled_from(["metadata", "checksums", "other"]), JSON)))
    start = data.draw(st.integers(0, 2 * len(content)))
    content = content[:start] + data.draw(st.binary(max_size=8)) + content[start:]
    (saved_run / "checkpoints/2/record/metadata").write_bytes(content)
    with contextlib.suppress(DamagedError):
        read(saved_run / "checkpoints", 2)
