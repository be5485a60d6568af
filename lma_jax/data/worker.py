"""How a worker process of the loader ends. Only the standard library is imported."""

import os
import signal
import threading
import time

from lma_jax import output


def end_with_parent(parent: int, worker: int = 0, workers: int = 1) -> None:
    """Ends this process when process `parent` ends, and makes it ignore SIGINT and SIGTERM, which the parent handles.

    Grain leaves its workers running when their parent is killed. Ctrl-C and a cluster's SIGTERM reach the workers too
    and would stop the data of a parent that is about to save. A warning that it cannot print ends it as little.
    """
    output.never_required()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
