"""Attention modules of a user: what registers them is recorded, named in errors, and imported on request only."""

import sys
from pathlib import Path

import numpy as np
import pytest

import lma_jax.registry
import lma_torch.registry
from convert.importing import import_weights
from lma_jax import cli
from lma_jax.checkpoint.format import Checkpoint, Metadata
from lma_jax.checkpoint.restore import restore_model
from lma_jax.errors import UserError
from lma_jax.weight_files import write_weights
from tests.helpers.commands import fail, run

MINE = """
import lma_jax
import lma_torch

lma_jax.register_attention("mine", lma_jax.LMA)
lma_torch.register_attention("mine", lma_torch.LMA)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch) -> Path:
    """A module of a user, `my_layers`, that can be imported by its name or its file."""
    for package in (lma_jax, lma_torch):
        attention = package.attention
        attentions = dict(attention.ATTENTIONS)
        monkeypatch.setattr(attention, "ATTENTIONS", attentions)
        monkeypatch.setattr(package.registry, "ATTENTIONS", attentions)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_layers", raising=False)
    path = tmp_path / "my_layers.py"
    path.write_text(MINE)
    return path


def test_the_module_that_registers_is_known_by_name_or_by_file(mine):
    cli.import_modules(["my_layers"])
    assert lma_jax.registry.registered_by("resnet18_mine") == "my_layers"
    assert lma_torch.attention.ATTENTIONS["mine"].registered_by == "my_layers"
    for package in (lma_jax, lma_torch):
        del package.attention.ATTENTIONS["mine"]
    cli.import_modules([str(mine)])
    assert lma_jax.registry.registered_by("resnet18_mine") == str(mine)
    assert lma_jax.registry.registered_by("resnet18_lma") == lma_jax.registry.registered_by("resnet18") == ""


def test_without_it_a_checkpoint_and_an_export_say_what_to_import_and_nothing_is_imported(mine, tmp_path):
    expected = "its attention 'mine' was registered by my_layers: add --import=my_layers"
    metadata = Metadata("resnet18_mine", 2, None, {}, registered_by="my_layers")
    assert Metadata.from_json(metadata.to_json()) == metadata
    with pytest.raises(UserError, match=f"cannot be built: {expected}"):
        restore_model(Checkpoint(1, {}, metadata))
    described = {"model": "resnet18_mine", "registered_by": "my_layers"}
    write_weights(tmp_path / "mine.safetensors", {"fc.weight": np.zeros((2, 3), np.float32)}, described)
    with pytest.raises(UserError, match=f"mine.safetensors: {expected}"):
        import_weights(tmp_path / "mine.safetensors", tmp_path / "run")
    assert "my_layers" not in sys.modules


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("my_layers.py", "1 / 0", "ZeroDivisionError: division by zero"),
        ("my_layers", "import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("no_such_module", "", "No module named 'no_such_module'"),
        ("no_such_file.py", "", "FileNotFoundError"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_error(name, content, expected, mine, monkeypatch):
    mine.write_text(content)
    monkeypatch.chdir(mine.parent)
    with pytest.raises(UserError, match=f"--import={name} cannot be imported: .*{expected}"):
        cli.import_modules([name])


@pytest.mark.process
def test_commands_import_it(mine):
    options = "--model=resnet18_mine", "--framework=jax", "--input_size=32"
    assert "did you mean" in fail("convert.flops", *options)
    assert "resnet18_mine" in run("convert.flops", *options, f"--import={mine}")
