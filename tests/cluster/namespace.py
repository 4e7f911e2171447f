"""Operations inside a named network namespace, without moving the calling process.

None means the namespace of the caller everywhere, so that the tools also work on the loopback of the host.
"""

import itertools
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tests.lab.namespace import enter

T = TypeVar("T")

_numbers = itertools.count(1)


@contextmanager
def fresh_namespace() -> Iterator[str]:
    """Create a network namespace with only a loopback interface, and remove it on exit."""
    name = f"pyproxy-cluster-{os.getpid()}-{next(_numbers)}"
    _ip("netns", "add", name)
    try:
        _ip("-netns", name, "link", "set", "lo", "up")
        yield name
    finally:
        _ip("netns", "delete", name)


def command_inside(namespace: str | None, command: Sequence[str]) -> list[str]:
    """Return a command line that runs a command in a namespace; it calls exec, so the pid is that of the command."""
    if namespace is None:
        return list(command)
    return ["nsenter", f"--net={_path(namespace)}", "--", *command]


def call_inside(namespace: str | None, function: Callable[[], T]) -> T:
    """Call a function on a thread inside a namespace; sockets created there stay in the namespace."""
    if namespace is None:
        return function()

    def enter_and_call() -> T:
        with _path(namespace).open("rb") as file:
            enter(file.fileno())
        return function()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(enter_and_call).result()


def _path(namespace: str) -> Path:
    return Path("/run/netns", namespace)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
