"""The signals that stop a run. Only the standard library is imported."""

import os
import signal
import threading
from contextlib import suppress

# Exit code, "try again" in sysexits.h: what could be saved is saved, and the same command resumes the run.
INTERRUPTED = 75
# Ctrl-C, a scheduler, and a terminal that was closed.
STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

# The one that some systems lack and nohup turns off, and that multiprocessing does not ignore as it does the others.
HANGUP = {*STOPPING} - {signal.SIGINT, signal.SIGTERM}


def heeded() -> list[signal.Signals]:
    """The signals that stop this run: SIGHUP does not under nohup."""
    return [number for number in STOPPING if number not in HANGUP or signal.getsignal(number) != signal.SIG_IGN]


def exit_on_signals() -> None:
    """Makes these signals end the program at once, with one line on stderr, for as long as there is nothing to save.

    A thread does it, since the main thread does not see a signal while it waits inside a library.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def wait() -> None:
        number = 0
        while number not in STOPPING:
            number = os.read(reader, 1)[0]
        with suppress(OSError):
            os.write(
                2, f"stopped by {signal.Signals(number).name} with nothing to save; the same command goes on\n".encode()
            )
        os._exit(INTERRUPTED)

    threading.Thread(target=wait, name="signals", daemon=True).start()
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for heard in heeded():
        signal.signal(heard, lambda *_: None)


def ignore_signals() -> None:
    """Makes the program deaf to these signals, for its last moments: everything is saved, or said to be lost.

    A process of a job that ended at once would look lost to the others.
    """
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
