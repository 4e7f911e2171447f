"""The fork server of a lab: a small single-threaded process that forks the workers.

It imports everything that a worker needs, then forks one worker per request, until its control socket is closed.
Forking replaces some 130 ms of CPU time per worker, for starting Python and importing modules, by 1.3 ms. Workers are
not forked from the process that builds the lab, because that one may have threads, a large heap and open files.
"""

from __future__ import annotations

import gc
import os
import pickle
import resource
import signal
import socket
import sys
from multiprocessing.connection import Connection
from pathlib import Path

from .messages import SpawnRequest
from .namespace import enter
from .worker import work

_LARGEST_REQUEST = 65536


def main(control: socket.socket) -> None:
    """Fork a worker for each request, until the control socket is closed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the workers
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    gc.freeze()
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, _LARGEST_REQUEST, 1)
        if not message:
            return
        request: SpawnRequest = pickle.loads(message)  # noqa: S301 - sent by the process that started this one
        if os.fork() == 0:
            control.close()
            _be_worker(request, descriptors[0])
        os.close(descriptors[0])


def _be_worker(request: SpawnRequest, descriptor: int) -> None:
    """Run a worker in this forked process; never returns to the loop of the fork server."""
    status = 1
    try:
        with Path(request.namespace_path).open("rb") as namespace:
            enter(namespace.fileno())
        work(request, Connection(descriptor))
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        raise
    finally:
        os._exit(status)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
