"""The resident of a namespace: the one process that serves and probes there.

Law: it does what the control socket asks, many things at a time, and is gone when that socket ends, whichever way the
process that built the lab ends.
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
from .load import Load
from .messages import (
    Ask,
    Birth,
    Close,
    Failure,
    Open,
    ReportLoad,
    Request,
    Send,
    Serve,
    StartLoad,
    StopLoad,
    StopServing,
)
from .server import Server


def live(birth: Birth, control: Connection) -> None:
    """Be the resident, inside the namespace already, until the control socket ends."""
    for name, value in birth.sysctls.items():
        path = Path("/proc/sys") / name
        if path.exists():
            path.write_text(value)
    asyncio.run(Resident(birth.name, control).run())


def families() -> tuple[socket.AddressFamily, ...]:
    """Return the families whose addresses can be used here."""
    disabled = Path("/proc/sys/net/ipv6/conf/all/disable_ipv6")
    if disabled.exists() and disabled.read_text().strip() == "0":
        return (socket.AF_INET, socket.AF_INET6)
    return (socket.AF_INET,)


class Resident:
    """Answers requests in the order in which they are done."""

    def __init__(self, name: str, control: Connection) -> None:
        """Serve nothing yet."""
        self._control = control
        self._server = Server(name, families())
        self._numbers = itertools.count(1)
        self._channels: dict[int, client.Channel] = {}
        self._loads: dict[int, Load] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Report for duty, then work until the control socket ends."""
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
        except Exception:  # noqa: BLE001 - the boundary of the process: the fault is raised where the request came from
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
            case StartLoad(probe, per_second):
                answer = number = next(self._numbers)
                self._loads[number] = Load(probe, per_second)
            case ReportLoad(number):
                answer = self._loads[number].report()
            case StopLoad(number):
                answer = await self._loads.pop(number).stop()
        return answer
