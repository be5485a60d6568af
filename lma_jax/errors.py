"""Errors for users: what was given, what is allowed, what to do."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that its user can mend. Command lines print its one line to stderr and exit with code 2."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """The member of `allowed` that is spelled most like `word`."""
    return difflib.get_close_matches(word, list(allowed), n=1, cutoff=0)[0]
