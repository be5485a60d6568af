"""Files are replaced as a whole, and only where nothing is lost by it."""

import errno
import os
import stat
from pathlib import Path

import pytest

from lma_jax import files
from lma_jax.errors import UserError, one_line, require_packages, warn
from lma_jax.overwriting import Kind, require_outputs

TABLE = Kind(holds=("model,macs",), lacks=("fps",))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_replaced_file_keeps_its_permissions_and_the_links_to_it(tmp_path):
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real/table.csv", tmp_path / "table.csv"
    link.symlink_to("real/table.csv")
    files.write(link, "first")  # a link that leads nowhere yet
    target.chmod(0o640)
    files.write(link, "second")
    assert link.is_symlink()
    assert target.read_text() == "second"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert names(tmp_path / "real") == ["table.csv"]


def test_a_full_disk_leaves_the_old_file_and_no_new_folder(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "table.csv").write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    for path in (tmp_path / "table.csv", tmp_path / "new/folder/table.csv"):
        with pytest.raises(UserError, match=r"cannot write .*table.csv: No space left on device"):
            files.write(path, "new")
    assert names(tmp_path) == ["table.csv"]
    assert (tmp_path / "table.csv").read_text() == "old"


def test_a_temporary_file_of_somebody_else_is_not_written_through(tmp_path):
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / ".table.tmp.csv").symlink_to("theirs")
    files.write(tmp_path / "table.csv", "mine")
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert names(tmp_path) == ["table.csv", "theirs"]


def test_devices_and_pipes_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/null"), tmp_path / "pipe"):
        with pytest.raises(UserError, match="it is no regular file"):
            files.write(path, "text")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_only_own_files_are_overwritten_without_force(tmp_path):
    output = tmp_path / "table.csv"
    require_outputs({"csv": (output, TABLE)}, force=False)
    assert names(tmp_path) == []
    for own in ("", "model,macs\nresnet18,1\n"):
        output.write_text(own)
        require_outputs({"csv": (output, TABLE), "json": (None, TABLE)}, force=False)
    for other in ("my notes", "model,macs,fps\n", "\0" * (3 << 20)):
        output.write_text(other)
        with pytest.raises(UserError, match=r"--csv=.*table.csv exists .* by --force"):
            require_outputs({"csv": (output, TABLE)}, force=False)
        require_outputs({"csv": (output, TABLE)}, force=True)
        assert output.read_text() == other


def test_a_text_into_which_a_user_put_a_table_is_not_overwritten(tmp_path):
    kind, output = Kind(holds=("| model |",), lines=("|", "Note: ")), tmp_path / "table.md"
    table = "| model |\n|---|\n| a |\n\nNote: x\n"
    output.write_text(table)
    require_outputs({"markdown": (output, kind)}, force=False)
    for report in (f"# Mine\n\n{table}", f"{table}\nSo a is best.\n"):
        output.write_text(report)
        with pytest.raises(UserError, match="exists and is no file of this kind"):
            require_outputs({"markdown": (output, kind)}, force=False)


def test_a_large_file_is_recognised_at_its_end(tmp_path):
    (tmp_path / "table.csv").write_text("x" * (3 << 20) + "model,macs")
    require_outputs({"csv": (tmp_path / "table.csv", TABLE)}, force=False)


def test_a_foreign_file_is_recognised_behind_a_folder_that_is_missing(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is no file of this kind"):
        require_outputs({"csv": (tmp_path / "missing" / ".." / "notes.txt", TABLE)}, force=False)


@pytest.mark.parametrize("name", ["weights", "../{0}/weights", "hard", "soft", "linked/weights", "read/step/new"])
def test_an_input_is_never_an_output(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("weights").write_text("model,macs")
    os.link("weights", "hard")
    Path("soft").symlink_to("weights")
    Path("linked").symlink_to(".")
    Path("read/step").mkdir(parents=True)
    with pytest.raises(UserError, match="is an input of this command"):
        require_outputs(
            {"json": (name.format(tmp_path.name), TABLE)}, inputs=[tmp_path / "weights", "read", None, ""], force=True
        )


@pytest.mark.parametrize("other", ["table.csv", "TABLE.csv", "./new/../table.csv"])
def test_two_outputs_are_two_files(other, tmp_path):
    with pytest.raises(UserError, match=r"--csv=.* and --json=.* are one file"):
        require_outputs({"csv": (tmp_path / "table.csv", TABLE), "json": (tmp_path / other, TABLE)}, force=True)


@pytest.mark.parametrize("name", ["file/table.csv", "folder", "x" * 300, "/proc/none/table.csv"])
def test_what_cannot_be_written_is_told_before_anything_else(name, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        require_outputs({"csv": (tmp_path / name, TABLE)}, force=True)
    assert names(tmp_path) == ["file", "folder"]


def test_a_message_is_one_line_whatever_the_names_of_files(capsys):
    warn("cannot read a\nb\x1b]0;title\x07\u2028\x85\udc80.png")
    line = capsys.readouterr().err
    assert line == r"warning: cannot read a b\x1b]0;title\x07 \udc80.png" + "\n"
    assert one_line("grün  日本") == "grün 日本"


def test_missing_packages_are_named_with_the_command_that_installs_them():
    require_packages("this", "json", "sys")
    with pytest.raises(UserError, match="--plot needs nopackage and nothing: pip install nopackage nothing"):
        require_packages("--plot", "json", "nopackage", "nothing")
