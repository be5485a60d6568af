"""The README's commands and code run, on small networks, where only the packages are that its install line brings."""

import os
import re
import shlex
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

import lma_torch
from tests.helpers.commands import ROOT, SHORT, python, run
from tests.helpers.datasets import flowers, write_archives, write_folder
from tests.helpers.extras import PROJECT, README_EXTRAS
from tests.helpers.pairs import know_resnet10, register_resnet10

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
SCRIPTS = [block.replace("\\\n", " ") for language, block in BLOCKS if language == "sh"]
SHELL = [line for script in SCRIPTS for line in script.splitlines() if line]
PYTHON = [block for language, block in BLOCKS if language == "python"]

# What is given after the README's own arguments, and overrides them.
SMALL = {
    "lma_jax.train": (
        "--config.dataset=digits",
        "--config.val_split=test",
        "--config.model=resnet10_lma",
        "--config.schedule=step",
        *SHORT,
    ),
    "convert.to_jax": ("--model=resnet10_lma",),
    "convert.flops": ("--model=resnet10_lma", "--input_size=32", "--framework=torch"),
    "convert.table1": ("--rows=resnet18_lma", "--quick"),
    "convert.fps": (
        "--model=resnet10_lma",
        "--batch_size=1",
        "--image_size=32",
        "--steps=1",
        "--framework=torch",
        "--modes=eager",
    ),
}
# What the README writes in angle brackets.
GIVEN = {
    "folder of the two .tar files": "archives",
    "image folder": "flowers",
    "where builds lie": "builds",
}


def know_resnet10_in(folder: Path) -> None:
    know_resnet10()
    os.chdir(folder)


def module_of(program: str) -> str:
    """The module that a console script runs."""
    package, name = PROJECT["scripts"][program].split(".scripts:")
    return "lma_jax.data.prepare" if name == "prepare" else f"{package}.{name}"


@pytest.mark.process
def test_every_command_runs_where_the_readmes_install_is(tmp_path, monkeypatch):
    (tmp_path / "configs").symlink_to(ROOT / "configs")  # as if this folder were the clone
    write_archives(tmp_path / "archives")
    write_folder(tmp_path / "flowers", flowers())
    Image.new("RGB", (32, 24), "teal").save(tmp_path / "cat.jpg")
    register_resnet10(monkeypatch)
    for file, name in (("resnet50", "resnet10_lma"), ("resnet18", "resnet10")):
        torch.save(lma_torch.create_model(name).state_dict(), tmp_path / f"{file}.pth")
    for line in SHELL:
        program, *arguments = shlex.split(re.sub("<(.+?)>", lambda match: GIVEN[match[1]], line), comments=True)
        if program == "make":
            assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        elif program == "pip":
            assert line.split('".[')[1].split("]")[0] == ",".join(README_EXTRAS)
        else:
            module = module_of(program) if program in PROJECT["scripts"] else arguments.pop(0) and arguments.pop(0)
            if module == "lma_jax.data.prepare" and "--archives" in arguments:
                arguments.append("--partial")
            run(module, *arguments, *SMALL.get(module, ()), setup=partial(know_resnet10_in, tmp_path))


def test_every_extra_that_is_named_exists():
    named = re.findall(r"pip install [^`\n]*\[([\w,]+)\]", README + (ROOT / "docs/recipes.md").read_text())
    assert named
    assert {extra for group in named for extra in group.split(",")} <= PROJECT["optional-dependencies"].keys()


# Other projects that the README shows LMA in.
PEERS = """
import sys
from types import SimpleNamespace
sys.modules["timm"] = timm = SimpleNamespace(create_model=lambda name, block_args: block_args["attn_layer"](64))
"""


@pytest.mark.process
@pytest.mark.parametrize("block", PYTHON, ids=range(len(PYTHON)))
def test_code_runs_where_only_its_framework_is(block):
    extras = {
        extra for extra, use in dict(jax="lma_jax|convert", torch="lma_torch|convert").items() if re.search(use, block)
    }
    assert extras
    hidden = f"from tests.helpers.extras import Hider\nHider({extras}).hide()\n"
    process = python("-c", hidden + PEERS + block.replace("resnet50", "resnet18"))
    assert process.returncode == 0, process.stderr
