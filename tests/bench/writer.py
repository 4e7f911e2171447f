"""Sends changes to the API server at a fixed rate, in a process of its own so that it does not delay the measurement.

``python -m tests.bench.writer`` reads the task from standard input, writes a line when it is ready, waits for a line,
and finally writes when each request was confirmed, on the clock of `time.monotonic`.
"""

import http.client
import json
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Self
from zlib import crc32

from tests.cluster.controlplane import ControlPlane
from tests.cluster.namespace import command_inside

from .cluster import Patch, patch, patch_headers

_CONNECTIONS = 4


class Writer:
    """A process that sends changes."""

    def __init__(self, control_plane: ControlPlane, changes: Sequence[Patch], per_second: float | None) -> None:
        """Prepare to send changes at this rate, or as fast as the API server confirms them on four connections."""
        task = {
            "port": control_plane.port,
            "token": control_plane.static_token("admin"),
            "authority": str(control_plane.authority.certificate),
            "per_second": per_second,
            "changes": changes,
        }
        self._process = subprocess.Popen(
            command_inside(control_plane.namespace, [sys.executable, "-m", "tests.bench.writer"]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._exchange(json.dumps(task))

    def __enter__(self) -> Self:
        """Start sending."""
        self._send("go")
        self.started = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    @property
    def is_running(self) -> bool:
        """Return whether changes remain."""
        return self._process.poll() is None

    def last_confirmed(self) -> float:
        """Wait for the end, and return the time of the last confirmation."""
        assert self._process.stdout
        times: list[float] = json.loads(self._process.stdout.readline())
        self._process.wait()
        return max(times, default=self.started)

    def _send(self, line: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def _exchange(self, line: str) -> None:
        self._send(line)
        assert self._process.stdout
        self._process.stdout.readline()


def send(task: dict[str, Any], part: int, started: float, confirmed: list[float]) -> None:
    """Send a part of the changes over one connection; all of one object, so that their order is kept."""
    tls = ssl.create_default_context(cafile=task["authority"])
    connection = http.client.HTTPSConnection("127.0.0.1", task["port"], context=tls, timeout=60)
    headers = patch_headers(task["token"])
    for number, (path, body) in enumerate(task["changes"]):
        if crc32(path.encode()) % _CONNECTIONS != part:
            continue
        if task["per_second"]:
            time.sleep(max(0.0, started + number / task["per_second"] - time.monotonic()))
        patch(connection, headers, path, body)
        confirmed.append(time.monotonic())


def main() -> None:
    """Perform a task."""
    task = json.loads(sys.stdin.readline())
    print("ready", flush=True)
    sys.stdin.readline()
    confirmed: list[float] = []
    started = time.monotonic()
    threads = [threading.Thread(target=send, args=(task, part, started, confirmed)) for part in range(_CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(confirmed) != len(task["changes"]):
        sys.exit("not all changes were confirmed")
    print(json.dumps(confirmed), flush=True)


if __name__ == "__main__":
    main()
