"""Runs the short check on each Python with the oldest and the newest packages that are allowed: make matrix

Prints a Markdown table. The environments stay in .cache/matrix, so that a run that was stopped goes on.
"""

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".cache/matrix"
PYTHONS = ("3.11", "3.12", "3.13")
SHOWN = ("jax", "flax", "optax", "orbax-checkpoint", "numpy", "torch")


def interpreter(version: str) -> str | None:
    """A Python of this version: on the path, or pyenv's newest."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    found = sorted(pyenv.glob(f"{version}.*/bin/python"), key=lambda path: int(path.parts[-3].rpartition(".")[2]))
    return str(found[-1]) if found else shutil.which(f"python{version}")


def ranges() -> list[str]:
    """The versions that the commands allow."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return sorted({one for one in project["dependencies"] + extras["jax"] + extras["train"] if ">=" in one})


def cpu_torch() -> str:
    """The build of PyTorch without CUDA: the others are gigabytes. It is the tested version in both columns."""
    (pinned,) = re.findall(r"^torch==.+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return f"{pinned}+cpu"


def install(folder: Path, python: str, constraints: list[str]) -> None:
    """Makes an environment with `train`, and with PyTorch where there is a build for CPUs."""
    subprocess.run([python, "-m", "venv", "--clear", folder], check=True)
    (folder / "constraints.txt").write_text("\n".join(constraints))
    pip = [str(folder / "bin/python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-compile"]
    subprocess.run([*pip, "--constraint", str(folder / "constraints.txt"), f"{ROOT}[train]"], check=True)
    subprocess.run([*pip, cpu_torch()], stderr=subprocess.DEVNULL)


def versions(folder: Path) -> dict[str, str]:
    """The packages of an environment."""
    command = [str(folder / "bin/python"), "-m", "pip", "list", "--format=json"]
    return {package["name"]: package["version"] for package in json.loads(subprocess.check_output(command))}


def check(folder: Path) -> str:
    """The last line of the short check."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [str(folder / "bin/python"), "-m", "tests.helpers.smoke"]
    with (folder / "log.txt").open("w") as log:
        code = subprocess.call(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
    last = (folder / "log.txt").read_text().splitlines()[-1]
    return last if code == 0 else f"**{last}**"


def row(version: str, packages: str) -> str:
    """A row of the table. Its environment is made anew only if the ranges have changed."""
    python, folder = interpreter(version), CACHE / f"{version}-{packages}"
    if python is None:
        return f"| {version} | {packages} |{' |' * len(SHOWN)} no such Python here |"
    made = folder / "made.json"
    known = json.loads(made.read_text()) if made.exists() else {}
    if known.get("ranges") != ranges():
        constraints = [one.replace(">=", "==") for one in ranges()] if packages == "oldest" else []
        try:
            install(folder, python, constraints)
        except subprocess.CalledProcessError:
            return f"| {version} | {packages} |{' |' * len(SHOWN)} **not installable** |"
        known = {"ranges": ranges(), "versions": versions(folder)}
        made.write_text(json.dumps(known))
    cells = [version, packages, *(known["versions"].get(name, "none") for name in SHOWN), check(folder)]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    print("| Python | packages |", *(f"{name} |" for name in SHOWN), "result |")
    print("|---" * (len(SHOWN) + 3) + "|", flush=True)
    for version in PYTHONS:
        for packages in ("oldest", "newest"):
            print(row(version, packages), flush=True)


if __name__ == "__main__":
    main()
