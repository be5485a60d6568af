"""Errors for users: what was given, what is allowed, what to do."""

import difflib
import importlib
import re
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress

# Where the name of a package is not that of its module.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "importlib_resources": "importlib-resources",
    "sklearn": "scikit-learn",
    "cykooz": "cykooz-resizer",
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
    return visible(" ".join(str(message).split()))


def visible(text: str) -> str:
    r"""A text whose characters that cannot be printed are escaped, as Python and YAML do it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def warn(message: object) -> None:
    """Prints a warning in one line on stderr. It is no reason to end a run that nobody reads it."""
    with suppress(OSError, ValueError):
        print("warning:", one_line(message), file=sys.stderr, flush=True)


class Occasionally:
    """Thins out messages that repeat themselves: the first, second, fourth, eighth time and so on are due."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def due(self, message: str) -> bool:
        """Counts a message and says whether to show it. Messages are the same if only numbers in them differ."""
        key = re.sub(r"\d+", "0", message)
        self._counts[key] += 1
        return self._counts[key].bit_count() == 1


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
