"""Errors for users: what was given, what is allowed, what to do."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """An error that the user can fix. Commands print it in one line on stderr and exit with code 2."""


class InterruptedRun(Exception):  # noqa: N818 (not an error: the user asked for it)
    """The run was stopped by a signal and saved. Commands print it on stderr and exit with code 75."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """The member of `allowed` that is spelled most like `word`."""
    return difflib.get_close_matches(word, list(allowed), n=1, cutoff=0)[0]
