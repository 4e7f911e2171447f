"""Work inside a named network namespace, without moving the process that asks.

None stands for the namespace of the caller everywhere, so that the tools work on the host's loopback as well.
"""

import ctypes
import itertools
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count(1)


@contextmanager
def fresh_namespace() -> Iterator[str]:
    """Make a network namespace that has nothing but its loopback, and remove it in the end."""
    name = f"pyproxy-cluster-{os.getpid()}-{next(_numbers)}"
    _ip("netns", "add", name)
    try:
        _ip("-netns", name, "link", "set", "lo", "up")
        yield name
    finally:
        _ip("netns", "delete", name)


def command_inside(namespace: str | None, command: Sequence[str]) -> list[str]:
    """Return the command that runs in a namespace; it replaces itself, so that the process id is the command's own."""
    if namespace is None:
        return list(command)
    return ["nsenter", f"--net={_path(namespace)}", "--", *command]


def call_inside(namespace: str | None, function: Callable[[], T]) -> T:
    """Call a function on a thread that has moved into a namespace; a socket made there belongs to it for ever."""
    if namespace is None:
        return function()

    def enter_and_call() -> T:
        _enter(namespace)
        return function()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(enter_and_call).result()


def _enter(namespace: str) -> None:
    """Move the calling thread; the other threads of the process stay where they are."""
    with _path(namespace).open() as file:
        if _libc.setns(file.fileno(), _CLONE_NEWNET):
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), namespace)


def _path(namespace: str) -> Path:
    return Path("/run/netns", namespace)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
