"""Connections through a Service while something happens: one that is held for all the time, and 20 new ones a second.

Run as ``python -m tests.e2e.traffic KIND=HOST:PORT...`` with the kinds `held` and `new`, it sends requests until standard input
is closed, and then prints a line of JSON. `Traffic` starts it in the network namespace of a client.
"""

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

HELD_PERIOD_SECONDS = 0.2
NEW_PERIOD_SECONDS = 0.05
TIMEOUT_SECONDS = 5.0
SLOW_SECONDS = 1.0
"""A SYN that is lost is sent again after one second."""


@dataclass(slots=True)
class Count:
    """What one kind of connection to one address has seen."""

    address: str
    kind: str
    requests: int = 0
    slow: int = 0
    failures: list[str] = field(default_factory=list)


class Traffic:
    """Connections of kinds to addresses, from a client; `end` returns the counts."""

    def __init__(self, command: Sequence[str], targets: Iterable[tuple[str, str]]) -> None:
        """Start; the command runs a further command in the client's network namespace."""
        self._process = subprocess.Popen(
            [*command, sys.executable, "-m", "tests.e2e.traffic", *(f"{kind}={address}" for kind, address in targets)],
            # Entering a mount namespace changes the working directory.
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        """Return the running client."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the client, if `end` has not."""
        self._process.kill()
        self._process.wait()

    def end(self) -> list[Count]:
        """End all connections, and return one count for each address and kind."""
        output, _ = self._process.communicate("", timeout=4 * TIMEOUT_SECONDS)
        return [Count(**each) for each in json.loads(output)]


def _request(connection: http.client.HTTPConnection, count: Count) -> None:
    started = time.monotonic()
    connection.request("GET", "/hostname")
    connection.getresponse().read()
    count.requests += 1
    count.slow += time.monotonic() - started > SLOW_SECONDS


def _hold(count: Count, ended: threading.Event) -> None:
    """Send requests on one connection, which must never break."""
    connection = _connection(count.address)
    try:
        while not ended.wait(HELD_PERIOD_SECONDS):
            # A connection that the server has closed would otherwise be opened again silently.
            connection.auto_open = 0 if count.requests else 1
            _request(connection, count)
    except (OSError, http.client.HTTPException) as error:
        count.failures.append(f"{time.strftime('%T')} {error!r}")


def _open(count: Count, ended: threading.Event) -> None:
    """Send one request on each of many connections."""
    while not ended.wait(NEW_PERIOD_SECONDS):
        connection = _connection(count.address)
        try:
            _request(connection, count)
        except (OSError, http.client.HTTPException) as error:
            count.failures.append(f"{time.strftime('%T')} {error!r}")
        finally:
            connection.close()


def _connection(address: str) -> http.client.HTTPConnection:
    host, _, port = address.rpartition(":")
    return http.client.HTTPConnection(host.strip("[]"), int(port), timeout=TIMEOUT_SECONDS)


def main() -> None:
    """Send requests until standard input is closed."""
    ended = threading.Event()
    counts, threads = [], []
    for word in sys.argv[1:]:
        kind, _, address = word.partition("=")
        count = Count(address, kind)
        counts.append(count)
        threads.append(threading.Thread(target={"held": _hold, "new": _open}[kind], args=(count, ended)))
    for thread in threads:
        thread.start()
    sys.stdin.read()
    ended.set()
    for thread in threads:
        thread.join()
    print(json.dumps([asdict(count) for count in counts]))


if __name__ == "__main__":
    main()
