"""The import rule of docs/architecture.md."""

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.commands import ROOT

PACKAGES = ("lma_jax", "lma_torch", "convert", "configs")
ROW = re.compile(r"^\| (\w+) \| (`.+?) \| ([\w, ]*)\|$", re.MULTILINE)


def expanded(pattern: str) -> list[Path]:
    """The modules of a pattern such as `lma_jax/{lma,layers}.py` or `lma_jax/data/`."""
    head, _, rest = pattern.partition("{")
    names, _, tail = rest.partition("}")
    paths = [ROOT / f"{head}{name}{tail}" for name in names.split(",")] if rest else [ROOT / pattern]
    return [module for path in paths for module in ([path] if path.suffix else sorted(path.rglob("*.py")))]


def rooms() -> tuple[dict[Path, str], dict[str, set[str]]]:
    """The room of every module, a later row overriding an earlier one, and the rooms that each room may import."""
    owner: dict[Path, str] = {}
    allowed: dict[str, set[str]] = {}
    for room, files, imports in ROW.findall((ROOT / "docs/architecture.md").read_text()):
        allowed[room] = {room, *re.findall(r"\w+", imports)}
        modules = list(itertools.chain.from_iterable(map(expanded, re.findall("`(.+?)`", files))))
        assert modules
        assert all(module.exists() for module in modules), [str(m) for m in modules if not m.exists()]
        owner |= dict.fromkeys(modules, room)
    return owner, allowed


OWNER, ALLOWED = rooms()
MODULES = [module for package in PACKAGES for module in sorted((ROOT / package).rglob("*.py"))]


def imported(module: Path) -> Iterator[Path]:
    """The modules of the project that a module imports, at its top or within a function."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.partition(".")[0] in PACKAGES:
                path = ROOT / name.replace(".", "/")
                candidates = [path.with_suffix(".py"), path / "__init__.py"]
                candidates += [path.parent.with_suffix(".py"), path.parent / "__init__.py"]
                yield next(candidate for candidate in candidates if candidate.is_file())


def test_every_module_has_a_room():
    assert [str(module.relative_to(ROOT)) for module in MODULES if module not in OWNER] == []


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_what_the_page_allows(room):
    lazy = ROOT / "lma_jax/__init__.py", ROOT / "convert/__init__.py"
    forbidden = [
        f"{module.relative_to(ROOT)} imports {target.relative_to(ROOT)}"
        for module in MODULES
        if OWNER.get(module) == room and module not in lazy
        for target in imported(module)
        if OWNER[target] not in ALLOWED[room]
    ]
    assert forbidden == []


def test_rooms_import_each_other_in_one_direction():
    order = list(ALLOWED)
    for room in order:
        assert ALLOWED[room] - {room} <= set(order[: order.index(room)])


def test_no_test_module_imports_another():
    for path in (ROOT / "tests").rglob("*.py"):
        text = path.read_text()
        assert not re.search(r"^\s*(from|import) (tests\.(\w+\.)*)?(test_\w+|conftest)\b", text, re.MULTILINE), path
