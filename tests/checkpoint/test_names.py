"""Workdirs of any name: libraries take some of them for patterns, URLs or bad text."""

import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from lma_jax.checkpoint.format import Metadata, load_checkpoint
from lma_jax.checkpoint.manager import Checkpoints
from lma_jax.errors import UserError

NAMES = ["a[b]", "a\\b", "a*b", "a?b#c", "a%20b", "a|b", "gs:", "\n\x01 ...", os.fsdecode(b"\xff")]


def save(workdir: Path, *steps: int) -> None:
    with Checkpoints(workdir, keep=1) as checkpoints:
        for step in steps:
            state = {"step": jnp.int32(step), "params": {"kernel": jnp.arange(4.0) + step}}
            checkpoints.save(state, Metadata("tiny", 3, None, {}), top1=100.0 - step)


@pytest.mark.parametrize("name", NAMES)
def test_a_workdir_may_have_any_name(tmp_path, capsys, name):
    for decoy in ("axb", "a b", "ab"):
        (tmp_path / decoy / "checkpoints").mkdir(parents=True)
    save(tmp_path / name, 1, 2)
    np.testing.assert_array_equal(load_checkpoint(tmp_path / name).arrays["params/kernel"], [2, 3, 4, 5])
    with Checkpoints(tmp_path / name, keep=1) as checkpoints:
        assert checkpoints.load() is not None
    assert sorted(os.listdir(tmp_path / name / "checkpoints")) == ["1", "2"]
    assert capsys.readouterr().err == ""


def test_a_workdir_may_be_relative_a_link_or_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "l[i]nk").symlink_to("r[u]n", target_is_directory=True)
    save(Path("r[u]n"), 1)
    for name in ("r[u]n", "l[i]nk", "~/r[u]n"):
        assert load_checkpoint(name).step == 1


def test_a_name_is_refused_where_the_system_offers_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda path: False)
    with pytest.raises(UserError, match=r"a\[b\]/checkpoints contains '\[', which not every library accepts: rename"):
        save(tmp_path / "a[b]", 1)
