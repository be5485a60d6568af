"""The command that prepares data."""

from types import SimpleNamespace

import pytest
from absl import flags

from lma_jax.data import prepare
from lma_jax.data.building import build
from lma_jax.data.indexing import index_folder
from lma_jax.errors import UserError
from tests.helpers import commands
from tests.helpers.datasets import contents, flowers, write_folder


@pytest.mark.process
def test_the_command_prepares_a_folder_once(tmp_path):
    source = write_folder(tmp_path / "source", flowers())
    arguments = ("--folder", source, "--name=flowers", "--data_dir", tmp_path / "builds")
    written = commands.run("lma_jax.data.prepare", *arguments)
    assert "wrote 7 train and 2 validation images of 3 classes" in written
    assert f"--config.dataset=flowers --config.data_dir={tmp_path / 'builds'}" in written
    build(index_folder(source), tmp_path / "here" / "flowers" / "1.0.0")
    folders = [tmp_path / name / "flowers" / "1.0.0" for name in ("builds", "here")]
    assert contents(folders[0]) == contents(folders[1])  # in this process or another
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "builds").rglob("*")}
    assert "already exists" in commands.run("lma_jax.data.prepare", *arguments)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "builds").rglob("*")} == before


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(), "give one source"),
        (dict(archives="a", folder="b"), "give one source"),
        (dict(folder="b"), "--folder needs --name as well"),
        (dict(folder="b", name="Flowers"), "--name=Flowers must be a word"),
        (dict(folder="b", name="cifar10"), "not the name of another data set"),
        (dict(folder="b", name="folder"), "not the name of another data set"),
        (dict(folder="/dev/null", name="flowers"), "/dev/null/train must be a folder"),
        (
            dict(folder="{source}", name="flowers", data_dir="/dev/null"),
            "write /dev/null/flowers/1.0.0: Not a directory",
        ),
    ],
)
def test_a_wrong_command_line_is_explained(tmp_path, monkeypatch, values, message):
    source = write_folder(tmp_path / "source", flowers())
    defaults = dict(archives=None, partial=False, folder=None, name=None, data_dir=str(tmp_path), threads=1)
    values = {name: value.format(source=source) for name, value in values.items()}
    monkeypatch.setattr(flags, "FLAGS", SimpleNamespace(**{**defaults, **values}))
    with pytest.raises(UserError, match=message):
        prepare.main()


@pytest.mark.process
def test_the_command_answers_a_mistake_in_one_line(tmp_path):
    line = commands.fail("lma_jax.data.prepare", f"--archives={tmp_path}", f"--data_dir={tmp_path}")
    assert f"{tmp_path}/ILSVRC2012_img_train.tar is missing" in line
