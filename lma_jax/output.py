"""Standard output and error that cannot be written: a reader that is gone, a full disk, a closed terminal.

Only the standard library is imported.
"""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

# What a shell reports of a program that SIGPIPE ended.
BROKEN_PIPE = 128 + 13


class _Stream:
    """A text stream whose failures go to `failed`; everything else is that of `stream`."""

    def __init__(self, stream: Any, failed: Callable[[Exception], object]) -> None:
        self._stream = stream
        self._failed = failed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            self._failed(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._failed(error)


@contextlib.contextmanager
def unimportant() -> Iterator[None]:
    """Within the block, output that cannot be written is dropped: progress is not worth a run."""
    with _streams(_ignore):
        yield


def never_required() -> None:
    """The same for the life of the process."""
    sys.stdout, sys.stderr = _Stream(sys.stdout, _ignore), _Stream(sys.stderr, _ignore)


@contextlib.contextmanager
def required() -> Iterator[None]:
    """Within the block, standard output that cannot be written ends the program; standard error is dropped.

    Raises:
        SystemExit: silently with BROKEN_PIPE if the reader of standard output, such as `head`, is gone; with 2 after
            one line on standard error if it cannot be written for another reason.
    """
    with _streams(_end):
        yield


def open_streams() -> None:
    """Opens what the caller closed (`>&-`) as /dev/null, and makes any text printable.

    Otherwise the next file to be opened would be standard output. In a locale without UTF-8 the program starts again
    with UTF-8: TensorStore and Python would give the same path different names.
    """
    if sys.getfilesystemencoding() != "utf-8":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, this one
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (for the life of the program)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def drop_unwritten() -> None:
    """Empties the buffers of both streams: the interpreter would complain of them and change the exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())
                stream.flush()


@contextlib.contextmanager
def _streams(failed: Callable[[Exception], object]) -> Iterator[None]:
    with (
        contextlib.redirect_stdout(_Stream(sys.stdout, failed)),
        contextlib.redirect_stderr(_Stream(sys.stderr, _ignore)),
    ):
        yield


def _ignore(error: Exception) -> None:
    pass


def _end(error: Exception) -> NoReturn:
    if isinstance(error, BrokenPipeError):
        raise SystemExit(BROKEN_PIPE) from None
    print(f"error: cannot write to standard output: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
    raise SystemExit(2) from None
