"""Errors for users: what was given, what is allowed, what to do."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that its user can mend. Command lines print its one line to stderr and exit with code 2."""


class InterruptedRun(Exception):  # noqa: N818 (no error: it was asked for)
    """A run that ended in order on a signal. Command lines print its line and exit with code 75: run it again."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """The member of `allowed` that is spelled most like `word`."""
    return difflib.get_close_matches(word, list(allowed), n=1, cutoff=0)[0]
