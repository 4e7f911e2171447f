"""The worker: the one process per namespace that runs the servers and sends the probes there.

It handles requests from the control socket concurrently, and exits when that socket is closed. So it never outlives
the process that built the lab, even if that one is killed.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

from . import client
from .load import Hold, Load
from .messages import (
    Ask,
    Close,
    Failure,
    Open,
    ReportLoad,
    Request,
    Send,
    Serve,
    SpawnRequest,
    StartLoad,
    StopLoad,
    StopServing,
)
from .server import Server


def work(request: SpawnRequest, control: Connection) -> None:
    """Run a worker in this process, which is already in the namespace, until the control socket is closed."""
    for name, value in request.sysctls.items():
        path = Path("/proc/sys") / name
        if path.exists():
            path.write_text(value)
    asyncio.run(Worker(request.name, control).run())


def families() -> tuple[socket.AddressFamily, ...]:
    """Return the address families that can be used in this namespace."""
    disabled = Path("/proc/sys/net/ipv6/conf/all/disable_ipv6")
    if disabled.exists() and disabled.read_text().strip() == "0":
        return (socket.AF_INET, socket.AF_INET6)
    return (socket.AF_INET,)


class Worker:
    """Handles requests concurrently, and answers each when it is done."""

    def __init__(self, name: str, control: Connection) -> None:
        """Create a worker that serves nothing yet."""
        self._control = control
        self._server = Server(name, families())
        self._numbers = itertools.count(1)
        self._channels: dict[int, client.Channel] = {}
        self._loads: dict[int, Load | Hold] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Send the pid to the lab, then handle requests until the control socket is closed."""
        asyncio.get_running_loop().add_reader(self._control.fileno(), self._read)
        self._control.send((0, os.getpid()))
        await self._over.wait()

    def _read(self) -> None:
        try:
            number, request = self._control.recv()
        except (EOFError, OSError):
            self._over.set()
            return
        task = asyncio.create_task(self._answer(number, request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, number: int, request: Request[object]) -> None:
        result: object
        try:
            result = await self._do(request)
        except Exception:  # noqa: BLE001 - process boundary: the handle raises it in the test process
            result = Failure(traceback.format_exc())
        self._control.send((number, result))

    async def _do(self, request: Request[object]) -> object:
        answer: object = None
        match request:
            case Send(probes):
                answer = tuple(await asyncio.gather(*map(client.send, probes)))
            case Serve(ports):
                await self._server.serve(ports)
            case StopServing(ports, keep_connections):
                self._server.stop(ports, keep_connections=keep_connections)
            case Open(probe):
                number = next(self._numbers)
                self._channels[number] = client.open_channel(probe)
                answer = number, await self._channels[number].first()
            case Ask(number):
                answer = await self._channels[number].again()
            case Close(number):
                self._channels.pop(number).close()
            case StartLoad(probe, per_second, is_held):
                answer = number = next(self._numbers)
                self._loads[number] = (Hold if is_held else Load)(probe, per_second)
            case ReportLoad(number):
                answer = self._loads[number].report()
            case StopLoad(number):
                answer = await self._loads.pop(number).stop()
        return answer
