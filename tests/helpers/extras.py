"""An environment that holds exactly what an install with some extras brings: the other packages are hidden."""

import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

README_EXTRAS = ("train", "torch")  # what its commands are said to need
OWN = {"configs", "convert", "lma_jax", "lma_torch"}
PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def distributions(extras: Iterable[str]) -> set[str]:
    """The packages that an install of this project with some extras brings."""
    found: set[str] = set()
    remaining = [(canonicalize_name(PROJECT["name"]), extra) for extra in ("", *extras)]
    seen = set(remaining)
    while remaining:
        name, extra = remaining.pop()
        found.add(name)
        for requirement in map(Requirement, _requirements(name, extra)):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                needed = {(canonicalize_name(requirement.name), needed) for needed in ("", *requirement.extras)}
                remaining += needed - seen
                seen |= needed
    return found


def _requirements(distribution: str, extra: str) -> list[str]:
    if distribution == canonicalize_name(PROJECT["name"]):
        return PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    try:
        return metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:  # none on this system
        return []


def hidden_modules(extras: Iterable[str]) -> set[str]:
    """The top-level modules of the other packages of this environment."""
    there = distributions(extras)
    return {
        module
        for module, owners in metadata.packages_distributions().items()
        if there.isdisjoint(map(canonicalize_name, owners))
    } - OWN


class Hider:
    """Stands for the finder of modules in sys.meta_path: as if the other packages were not installed."""

    def __init__(self, extras: Iterable[str]):
        self._modules = hidden_modules(extras)
        self._distributions = distributions(extras)

    def find_spec(self, name: str, *where: Any) -> ModuleSpec | None:
        hidden = name.partition(".")[0] in self._modules
        return None if hidden else PathFinder.find_spec(name, *where)

    def find_distributions(self, *context: Any) -> Iterator[metadata.Distribution]:
        found = PathFinder.find_distributions(*context)
        return (distribution for distribution in found if canonicalize_name(distribution.name) in self._distributions)

    def invalidate_caches(self) -> None:
        PathFinder.invalidate_caches()

    def hide(self) -> None:
        """Hides the modules, also those that are loaded."""
        sys.meta_path[sys.meta_path.index(PathFinder)] = self
        for name in [name for name in sys.modules if name.partition(".")[0] in self._modules]:
            del sys.modules[name]

    def reveal(self) -> None:
        """Ends it for what is imported from now on."""
        sys.meta_path[sys.meta_path.index(self)] = PathFinder
