"""What an install brings: a wheel from the source distribution, an editable install, a clone on the path."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.helpers.commands import ROOT

pytestmark = pytest.mark.process

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMMANDS = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("lma_jax", "convert")
    for path in (ROOT / package).rglob("*.py")
    if re.search(r"^    cli\.run\(", path.read_text(), re.MULTILINE)
}


def environment() -> dict[str, str]:
    """Of a user who has installed something: nothing leads to the clone."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}


def succeed(*command: str | Path, cwd: Path | None = None) -> str:
    process = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def installed(folder: Path, *what: str | Path) -> Path:
    """The programs of a new environment with an install, and with the libraries of this one, but not what it edits."""
    succeed(sys.executable, "-m", "venv", "--without-pip", folder)
    packages = succeed(folder / "bin/python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    Path(packages, "libraries.pth").write_text("\n".join(libraries))
    pip = ("-m", "pip", f"--python={folder / 'bin/python'}", "install", "--quiet", "--no-deps", "--no-index")
    succeed(sys.executable, *pip, "--no-build-isolation", *what)
    return folder / "bin"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from the source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    succeed(sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", folder, cwd=ROOT)
    (source,) = folder.glob("*.tar.gz")
    build = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    succeed(sys.executable, *build, "--wheel-dir", folder, source)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def programs(wheel) -> Path:
    return installed(wheel.parent / "wheel", wheel)


@pytest.fixture
def user_folder(tmp_path) -> Path:
    """With a folder `configs` of the user's own, and a recipe that starts from one of this package."""
    (tmp_path / "configs").mkdir()
    for name in ("__init__", "common", "resnet50_lma"):
        (tmp_path / f"configs/{name}.py").write_text("raise ZeroDivisionError")
    (tmp_path / "mine.py").write_text(
        "from lma_jax import recipes\ndef get_config(): return recipes.load('imagenet:resnet50_se')\n"
    )
    return tmp_path


def test_a_wheel_holds_the_packages_and_their_recipes_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    metadata = "-".join(wheel.name.split("-")[:2]) + ".dist-info"
    assert metadata.startswith("lma_attention-")
    assert {name.split("/")[0] for name in names} == {"convert", "lma_jax", "lma_torch", metadata}
    folders = {"convert": "convert", "lma_jax": "lma_jax", "lma_torch": "lma_torch", "configs": "lma_jax/configs"}
    sources = {
        f"{target}/{path.relative_to(ROOT / folder)}"
        for folder, target in folders.items()
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".typed")
    }
    assert {name for name in names if ".dist-info/" not in name} == sources
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_every_command_is_a_script_of_the_same_help(programs, user_folder):
    found = set()
    for script in PROJECT["scripts"]:
        process = subprocess.run([programs / script, "--help"], cwd=user_folder, env=environment(), capture_output=True)
        (module,) = [name for name in COMMANDS if f"/{name.replace('.', '/')}.py:" in process.stdout.decode()]
        assert module.rpartition(".")[2].replace("_", "-") == script.removeprefix("lma-")
        found.add(module)
    assert found == COMMANDS


def misspelled(*command: str | Path, cwd: Path, path: str = "") -> str:
    """The end of a training whose config is read, and found to lack a key."""
    arguments = [*command, "--config.batch_sise=3"]
    process = subprocess.run(
        arguments, cwd=cwd, env={**environment(), "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert process.returncode == 2
    return process.stderr


KEY = "error: the config has no key 'batch_sise', did you mean 'batch_size'?\n"


def test_an_install_finds_recipes_from_a_folder_with_configs_of_its_own(programs, user_folder):
    assert misspelled(programs / "lma-train", "--config=resnet50_lma", cwd=user_folder) == KEY
    assert misspelled(programs / "lma-train", "--config", "mine.py", cwd=user_folder) == KEY
    module = (programs / "python", "-m", "lma_jax.train")
    assert misspelled(*module, "--config=imagenet:resnet50_se", cwd=user_folder) == KEY


def test_an_editable_install_and_a_clone_on_the_path_find_them_as_well(tmp_path, user_folder):
    editable = installed(tmp_path / "editable", "--editable", ROOT)
    assert misspelled(editable / "lma-train", "--config=resnet50_lma", cwd=user_folder) == KEY
    clone = (sys.executable, "-m", "lma_jax.train")
    assert misspelled(*clone, "--config=resnet50_lma", cwd=user_folder, path=str(ROOT)) == KEY
    assert misspelled(*clone, "--config=configs/resnet50_lma.py", cwd=ROOT) == KEY


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("absl", "the package absl-py is missing: pip install 'lma-attention[train,torch]'"),
        ("ml_collections", "the package ml_collections is missing: pip install ml_collections"),
    ],
)
def test_a_script_without_the_packages_of_the_commands_says_what_to_install(module, expected, programs, user_folder):
    code = f"import sys; sys.modules[{module!r}] = None; from lma_jax import scripts; scripts.train()"
    process = subprocess.run([programs / "python", "-c", code], cwd=user_folder, env=environment(), capture_output=True)
    assert process.returncode == 2
    assert process.stderr.decode() == f"error: {expected}\n"
