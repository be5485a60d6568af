"""Output that cannot be written ends no run; a command that prints a result ends as programs in a pipe do."""

import errno
import io
import os
import sys

import pytest

from lma_jax import cli, output


class Broken(io.StringIO):
    """A stream that fails with `number`."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))

    def flush(self) -> None:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC, errno.EIO])
def test_progress_is_dropped(monkeypatch, number):
    monkeypatch.setattr(sys, "stdout", Broken(number))
    monkeypatch.setattr(sys, "stderr", Broken(number))
    with output.unimportant():
        print("a step", flush=True)
        print("a warning", file=sys.stderr, flush=True)


def test_streams_are_those_of_before_after_the_block(capsys):
    with output.unimportant():
        print("within")
    assert type(sys.stdout) is not output._Stream
    assert capsys.readouterr().out == "within\n"


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(errno.EPIPE, 141, ""), (errno.ENOSPC, 2, "error: cannot write to standard output: No space left on device\n")],
)
def test_a_result_that_cannot_be_written_ends_the_command(monkeypatch, capsys, number, code, said):
    monkeypatch.setattr(sys, "stdout", Broken(number))
    with pytest.raises(SystemExit) as ended, output.required():
        print("a result", flush=True)
    assert ended.value.code == code
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(("progress", "code"), [(True, 0), (False, 141)])
def test_commands_end_with_their_own_code_and_leave_nothing_to_the_interpreter(monkeypatch, progress, code):
    """A pipe without a reader, at the level of the system: what is buffered fails at the very end."""
    reader, writer = os.pipe()
    os.close(reader)
    stream = open(writer, "w")  # noqa: SIM115
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "argv", ["command"])
    ended = []

    def run(main, **options):
        try:
            main(["command"])
        except SystemExit as end:
            ended.append(end.code)
        else:
            ended.append(0)

    monkeypatch.setattr(cli.app, "run", run)
    cli.run(lambda: print("result"), lambda: None, prints_progress=progress)
    assert ended == [code]
    stream.flush()  # does not fail any more
    stream.close()


def test_a_closed_stream_becomes_null_and_any_name_can_be_printed(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", None)
    output.open_streams()
    print("é \udcff")
    print("nobody hears", file=sys.stderr)
    stream.flush()
    assert stream.buffer.getvalue() == rb"\xe9 \udcff" + b"\n"
    sys.stderr.close()
