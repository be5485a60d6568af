"""The types that a user's checker sees after an install, also an editable one, from a folder of the user's own."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import lma_jax
import lma_torch
from tests.helpers.commands import ROOT

PROGRAM = """
import jax, jax.numpy as jnp, torch
from flax import nnx
import convert, lma_jax, lma_torch
attention: lma_jax.LMA = lma_jax.LMA(64, rngs=nnx.Rngs(0))
model = lma_jax.create_model("resnet50_lma", num_classes=10, rngs=nnx.Rngs(0))
features: jax.Array = model.forward_features(jnp.zeros((1, 32, 32, 3)))
twin = lma_torch.create_model("resnet50_lma", num_classes=10)
maps: torch.Tensor = twin.forward_features(torch.zeros(1, 3, 32, 32))
twin.load_state_dict(convert.to_torch(model))
names: list[str] = lma_torch.list_models("resnet*")
"""
# What it must not accept, to see that the types are not Any.
MISTAKES = """
model.forward_futures(features)
twin.forward_futures(maps)
number: int = convert.to_torch(model)
layer: str = lma_torch.LMA(64)
"""
CHECKERS = {
    # With the options and the cache of the project's own run, from which only the program's folder differs.
    "mypy": [f"--config-file={ROOT}/pyproject.toml", f"--cache-dir={ROOT}/.mypy_cache"],
    "basedpyright": ["--level=error", f"--pythonpath={sys.executable}"],
}


@pytest.mark.process
@pytest.mark.parametrize("checker", CHECKERS)
def test_a_users_checker_sees_the_types(checker, tmp_path):
    (tmp_path / "right.py").write_text(PROGRAM)
    (tmp_path / "wrong.py").write_text(PROGRAM + MISTAKES)
    command = [str(Path(sys.executable).with_name(checker)), *CHECKERS[checker], "right.py", "wrong.py"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    found = [line for line in process.stdout.splitlines() if " error: " in line or " - error: " in line]
    lines = {(line.partition(":")[0].rpartition("/")[2].strip(), int(line.split(":")[1])) for line in found}
    expected = [n for n, line in enumerate((PROGRAM + MISTAKES).splitlines(), start=1) if line and line in MISTAKES]
    assert lines == {("wrong.py", number) for number in expected}, process.stdout


def test_the_version_has_one_value():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dynamic"] == ["version"]
    assert lma_jax.__version__ == lma_torch.__version__
    assert f"version: {lma_jax.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {lma_jax.__version__}" in (ROOT / "CHANGELOG.md").read_text()
