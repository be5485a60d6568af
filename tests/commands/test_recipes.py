"""How a recipe is found: by name from any folder, or as a file."""

import pytest
from ml_collections import ConfigDict

from lma_jax import cli, recipes
from lma_jax.errors import UserError
from tests.helpers.commands import ROOT

NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


@pytest.fixture(autouse=True)
def user_folder(tmp_path, monkeypatch):
    """A folder whose own `configs` must not be taken for this package's."""
    monkeypatch.chdir(tmp_path)
    for name in ("__init__", "common", "digits"):
        path = tmp_path / f"configs/{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text("raise ZeroDivisionError")
    monkeypatch.syspath_prepend(tmp_path)


def test_a_name_is_found_from_any_folder():
    assert recipes.list_recipes() == NAMES
    assert [recipes.find(name) for name in NAMES] == [str(ROOT / f"configs/{name}.py") for name in NAMES]
    assert all(isinstance(recipes.load(name), ConfigDict) for name in NAMES)
    assert recipes.load("digits").model == "resnet18_lma"


def test_a_name_is_found_although_a_folder_or_file_is_called_so(tmp_path):
    (tmp_path / "digits").mkdir()
    (tmp_path / "imagenet").touch()
    assert recipes.find("digits") == str(ROOT / "configs/digits.py")
    assert recipes.find("imagenet:resnet18_se") == f"{ROOT}/configs/imagenet.py:resnet18_se"


@pytest.mark.parametrize(("network", "batch_size"), [("resnet50_se", 256), ("mobilenetv2_cbam", 96)])
def test_what_follows_a_colon_is_the_recipes_argument(network, batch_size):
    config = recipes.load(f"imagenet:{network}")
    assert (config.model, config.batch_size) == (network, batch_size)


def test_a_file_is_taken_by_its_path(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from lma_jax import recipes\n"
        "def get_config(rate):\n"
        "    config = recipes.load('digits')\n"
        "    config.learning_rate = float(rate)\n"
        "    return config\n"
    )
    for path in ("mine.py", "./mine.py", str(tmp_path / "mine.py")):
        assert recipes.find(path).endswith("mine.py")
        assert recipes.load(f"{path}:0.5").learning_rate == 0.5


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("resnet5_lma", "no recipe is called 'resnet5_lma', did you mean resnet50_lma?"),
        ("imagenets:resnet50_se", "no recipe is called 'imagenets', did you mean imagenet?"),
        ("configs/resnet50_lma.py", "configs/resnet50_lma.py does not exist, did you mean resnet50_lma?"),
        ("configs/digit.py", "configs/digit.py does not exist, did you mean configs/digits.py?"),
        ("resnet50_lma.py", "resnet50_lma.py does not exist, did you mean resnet50_lma?"),
        ("./digits", "digits does not exist, did you mean digits?"),
        ("notes.txt", "notes.txt is no config: it must be a Python file"),
        ("empty.py", "empty.py is no config: its function get_config() must return a ConfigDict"),
        ("number.py", "number.py is no config: its function get_config() must return a ConfigDict"),
        ("digits:3", "digits.py takes nothing after its name: leave out :3, "),
    ],
)
def test_a_mistake_is_named_with_the_nearest_recipe(recipe, expected, tmp_path):
    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty.py").touch()
    (tmp_path / "number.py").write_text("def get_config(): return 3")
    with pytest.raises(UserError) as error:
        cli._ConfigParser().parse(recipe)
    assert expected in str(error.value)
