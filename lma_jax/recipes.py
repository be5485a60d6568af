"""The recipes of this package, which commands find by name from any folder, and from which a user's own one starts."""

import json
import re
import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lma_jax.errors import UserError, nearest

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def list_recipes() -> list[str]:
    """The sorted names of the recipes."""
    return sorted(_files())


def load(recipe: str) -> "ConfigDict":
    """The config of a recipe, such as `digits`, `imagenet:resnet50_se` or `folder/mine.py`.

    Raises:
        UserError: there is no such recipe.
    """
    path, colon, argument = find(recipe).partition(":")
    return runpy.run_path(path)["get_config"](*[argument] if colon else [])


def defaults() -> dict[str, Any]:
    """The values of the recipe `common` as JSON gives them back: those of keys that a saved config did not have yet."""
    return json.loads(json.dumps(load("common").to_dict()))


def find(recipe: str) -> str:
    """The file of a recipe that is given by name or as a path; what follows a colon, the recipe's argument, stays.

    A word without folder and suffix is the name of a recipe of this package, whatever the current folder holds.

    Raises:
        UserError: there is no such recipe.
    """
    given, colon, argument = recipe.partition(":")
    path, recipes = Path(given), _files()
    if re.fullmatch(r"[\w-]*", given):
        if given not in recipes:
            raise UserError(f"no recipe is called {given!r}, did you mean {nearest(given, recipes)}?")
        path = recipes[given]
    elif path.exists() and not path.is_file():
        raise UserError(f"{path} is no config: it is no regular file")
    elif not path.is_file():
        near = {name: name for name in recipes} | {file.stem: str(file) for file in path.parent.glob("*.py")}
        raise UserError(f"config file {path} does not exist, did you mean {near[nearest(path.stem, near)]}?")
    elif path.suffix != ".py":
        raise UserError(f"{path} is no config: it must be a Python file with a function get_config()")
    return f"{path}{colon}{argument}"


def _files() -> dict[str, Path]:
    """The files of this package's recipes by name: inside the package if it is installed, beside it in a clone."""
    package = Path(__file__).parent
    inside = package / "configs"
    folder = inside if inside.is_dir() else package.parent / "configs"
    return {path.stem: path for path in folder.glob("*.py")}
