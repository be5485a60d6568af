"""Errors for users: what was given, what is allowed, what to do."""

import difflib
import importlib
import sys
from collections.abc import Iterable

# Where the name of a package is not that of its module.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "importlib_resources": "importlib-resources",
    "sklearn": "scikit-learn",
    "cykooz": "cykooz-resizer",
    "orbax": "orbax-checkpoint",
    "tensorflow_datasets": "tensorflow-datasets",
    "absl": "absl-py",
}


class UserError(Exception):
    """An error that the user can fix. Commands print it in one line on stderr and exit with code 2."""


class InterruptedRun(Exception):  # noqa: N818 (not an error: the user asked for it)
    """The run was stopped by a signal and saved. Commands print it on stderr and exit with code 75."""


class LostWorker(InterruptedRun):
    """A process that reads the data is gone, and the run cannot go on in this process."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """The member of `allowed` that is spelled most like `word`."""
    return difflib.get_close_matches(word[:100], list(allowed), n=1, cutoff=0)[0]  # the time grows with the length


def one_line(message: object) -> str:
    r"""A message in one line: white space becomes one space, and what a terminal would obey becomes visible.

    >>> print(one_line("cannot read a\nb\x1b[2J.png"))
    cannot read a b\x1b[2J.png
    """
    text = " ".join(str(message).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def warn(message: object) -> None:
    """Prints a warning in one line on stderr."""
    print("warning:", one_line(message), file=sys.stderr, flush=True)


def require_packages(purpose: str, *modules: str) -> None:
    """Raises a UserError that says how to install those of the `modules` that are missing.

    Args:
        purpose: what needs them, such as "--plot".
        modules: names of top-level modules.
    """
    missing = [DISTRIBUTIONS.get(module, module) for module in modules if not _is_importable(module)]
    if missing:
        raise UserError(f"{purpose} needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def _is_importable(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True
