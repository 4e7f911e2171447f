"""The zygote of a lab: a small process without threads that forks the residents.

Law: it imports everything a resident needs, then only receives, forks and ends with its control socket. Residents are
forked here and not in the process that builds the lab, because that one may have threads, big memory and open files;
and they are forked, not started, because starting Python a dozen times would take most of a second.
"""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
import resource
import signal
import socket
import sys
from multiprocessing.connection import Connection
from pathlib import Path

from .messages import Birth
from .resident import live

_CLONE_NEWNET = 0x40000000
_LARGEST_BIRTH = 65536


def main(control: socket.socket) -> None:
    """Fork a resident for each birth that is asked for, until the control socket ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    gc.freeze()
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, _LARGEST_BIRTH, 1)
        if not message:
            return
        birth: Birth = pickle.loads(message)  # noqa: S301 - from the process that started this one
        if os.fork() == 0:
            control.close()
            _be_resident(birth, descriptors[0])
        os.close(descriptors[0])


def _be_resident(birth: Birth, descriptor: int) -> None:
    """Live in the namespace; never returns to the zygote's loop."""
    status = 1
    try:
        _enter(birth.namespace_path)
        live(birth, Connection(descriptor))
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        raise
    finally:
        os._exit(status)


def _enter(namespace_path: str) -> None:
    """Move this process into the namespace; Python has os.setns from 3.12 on."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(namespace_path).open("rb") as namespace:
        if libc.setns(namespace.fileno(), _CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), namespace_path)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
