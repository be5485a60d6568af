"""What the commands refuse in one line before they start, in this process."""

from pathlib import Path

import pytest
from absl import app

from lma_jax import cli, train
from lma_jax.errors import UserError
from tests.helpers.commands import ROOT


def problem_with_null_bytes() -> str:
    """What this version of Python calls them: a ValueError, later a SyntaxError."""
    try:
        compile(b"\0", "", "exec")
    except (SyntaxError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"def get_config(:\n", "config.py, line 1: SyntaxError: invalid syntax"),
        (b"import nopackage\n", "config.py, line 1: ModuleNotFoundError: No module named 'nopackage'"),
        (b"x = 1\n\ndef get_config():\n    return 1 / 0\n", "config.py, line 4: ZeroDivisionError: division by zero"),
        (b"def get_config():\n    raise SystemExit(0)\n", "config.py, line 2: SystemExit: 0"),
        (b"def get_config():\n    return get_config()\n", "config.py, line 2: RecursionError"),
        (b"def get_config(model):\n    return None\n", "missing 1 required positional argument: 'model'"),
        (b"\xff\xfe\x00\n", f"config.py: {problem_with_null_bytes()}"),
        (b"x = '\xe9'\n", "SyntaxError: (unicode error) 'utf-8' codec can't decode"),
        (b"x = 1\n", "is no config: its function get_config() must return a ConfigDict"),
        (b"get_config = 5\n", "is no config: its function get_config() must return a ConfigDict"),
        (b"def get_config():\n    return {}\n", "is no config: its function get_config() must return a ConfigDict"),
        (b"from configs import common\nget_config = lambda: common.get_config().model.x\n", "line 2: AttributeError"),
    ],
)
def test_a_config_that_cannot_be_loaded_is_named_with_its_line(content, expected, tmp_path):
    (tmp_path / "config.py").write_bytes(content)
    with pytest.raises(UserError) as error:
        cli._ConfigParser().parse(str(tmp_path / "config.py"))
    assert expected in str(error.value)


def test_a_config_is_loaded_once_and_takes_an_argument(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "from pathlib import Path\nfrom configs import imagenet\n\ndef get_config(model):\n"
        f"    Path({str(tmp_path / 'loaded')!r}).mkdir()\n    return imagenet.get_config(model)\n"
    )
    assert cli._ConfigParser().parse(f"{path}:resnet50_se").model == "resnet50_se"
    assert (tmp_path / "loaded").is_dir()


def test_a_folder_is_no_config(tmp_path):
    with pytest.raises(UserError, match="is no config: it is no regular file"):
        cli._ConfigParser().parse(str(tmp_path))


def ended(monkeypatch, capsys, error: Exception) -> str:
    """What a command prints that ends by an error; the code must be 2."""

    def main() -> None:
        raise error

    monkeypatch.setattr(app, "run", lambda guarded, flags_parser: guarded(["command"]))
    with pytest.raises(SystemExit) as end:
        cli.run(main, lambda: None)
    assert end.value.code == 2
    return capsys.readouterr().err


def caught(path: Path) -> OSError:
    with pytest.raises(OSError) as error:
        path.stat()
    return error.value


def test_files_that_cannot_be_used_and_missing_packages_are_one_line(monkeypatch, capsys):
    name = "x" * 300
    assert ended(monkeypatch, capsys, caught(Path(name))) == f"error: cannot use {name}: File name too long\n"
    missing = ModuleNotFoundError("No module named 'PIL.Image'", name="PIL.Image")
    assert ended(monkeypatch, capsys, missing) == "error: the package pillow is missing: pip install pillow\n"
    assert ended(monkeypatch, capsys, UserError("cannot read a\x1b[2J\nb")) == "error: cannot read a\\x1b[2J b\n"


@pytest.mark.parametrize("bug", [ModuleNotFoundError("x", name="lma_jax.nothing"), OSError("x"), KeyError("x")])
def test_a_bug_keeps_its_traceback(bug, monkeypatch):
    def main() -> None:
        raise bug

    monkeypatch.setattr(app, "run", lambda guarded, flags_parser: guarded(["command"]))
    with pytest.raises(type(bug)):
        cli.run(main, lambda: None)


@pytest.mark.parametrize("address", ["host", "host:", "host:x", ":1234", "http://host:1234", "a b:1234", "host:²"])
def test_an_address_has_a_host_and_a_port(address):
    with pytest.raises(UserError, match="must be <host>:<port>"):
        train._require_job(address, 2, 0)


def test_ports_and_ranks_have_bounds():
    for address in ("10.0.0.1:1234", "node-7.cluster:65535", "[::1]:1234"):
        train._require_job(address, 2, 1)
    train._require_job(None, None, None)
    for port in ("0", "65536", "9" * 5000):
        with pytest.raises(UserError, match="a port is a number from 1 to 65535"):
            train._require_job(f"host:{port}", 2, 0)
    with pytest.raises(UserError, match="--process_id=2 must be below --num_processes=2"):
        train._require_job("host:1234", 2, 2)


def test_every_command_with_outputs_checks_them():
    commands = [*ROOT.glob("convert/*.py"), ROOT / "lma_jax/gradcam.py"]
    writing = [path for path in commands if "cli.run(" in path.read_text() and path.stem != "to_jax"]
    assert len(writing) == 9
    assert all("cli.define_force()" in path.read_text() and "require_outputs(" in path.read_text() for path in writing)
