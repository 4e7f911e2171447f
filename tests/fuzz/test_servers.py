"""Damaged requests to the HTTP pages and the control socket: each is answered, refused or closed, and never a fault.

Slow clients and many clients are in `tests/unit/serve/test_hostile_clients.py` and `test_control.py`.
"""

import asyncio
import json
import logging
import socket
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from urllib.parse import quote

import pytest

from pyproxy.agent.metrics_server import _status_page
from pyproxy.serve.agent_status import AgentStatus
from pyproxy.serve.control import ControlServer
from pyproxy.serve.http_exchange import exchange
from pyproxy.serve.pages import application, fixed
from tests.fuzz.conftest import Sources
from tests.fuzz.mutation import damaged_bytes, packed, text, value
from tests.lab.http_shapes import SHAPES
from tests.unit.serve.status import status

PATIENCE_SECONDS = 20.0
COMMANDS = ("services", "objects", "drift", "")


def found(query: str, number: int) -> AgentStatus:
    """Return a status that has the query on its page."""
    made = status()
    made.services.query, made.services.page, made.services.pages = query, number, number + 1
    return made


PAGES = application({"/healthz": fixed("ok"), "/statusz": partial(_status_page, status=found, started_at=0.0)}, {})


def request(source: Random) -> bytes:
    """Return a request for a page, with hostile parts or damaged as bytes."""
    if source.random() < 0.3:
        return damaged_bytes(source.choice(list(SHAPES.values())).request[:5000], source, most=10)
    query = "&".join(
        f"{source.choice(('service', 'page', 'x'))}={quote(text(source)[:300].encode(errors='replace'))}"
        for _ in range(source.choice((0, 1, 2, 12)))
    )
    accept = source.choice(("text/html", "application/json", "*/*"))
    head = f"GET /statusz?{query} HTTP/1.1\r\nHost: a\r\nAccept: {accept}\r\n\r\n"
    return damaged_bytes(head.encode(), source) if source.random() < 0.5 else head.encode()


def answer(data: bytes) -> bytes:
    """Return what the server answers to a client that sends data and no more."""
    client, server = socket.socketpair()
    with client, server:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        with suppress(OSError):  # the client may be gone
            exchange(server, PAGES)
        server.shutdown(socket.SHUT_WR)
        return b"".join(iter(partial(client.recv, 1 << 16), b""))


def test_pages(sources: Sources, caplog: pytest.LogCaptureFixture) -> None:
    """Each request gets an answer of HTTP or none; a page that cannot be made would be an error in the log."""
    for source in sources(1500):
        data = request(source)
        reply = answer(data)
        assert reply == b"" or reply.startswith((b"HTTP/1.0 ", b"HTTP/1.1 ")), data
        assert b"500 Internal" not in reply, data
        head, _, body = reply.partition(b"\r\n\r\n")
        if b"application/json" in head and not data.startswith(b"HEAD"):
            json.loads(body)
    assert [] == [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def line(source: Random) -> bytes:
    """Return a line for the control socket."""
    fields = {"command": source.choice(COMMANDS)} | ({text(source): value(source)} if source.random() < 0.5 else {})
    data = packed(fields, source)
    return damaged_bytes(data, source)[:10_000] + source.choice((b"\n", b"", b"\n\n", b"\0\n"))


def test_control_socket(sources: Sources, tmp_path: Path, needs_root: None) -> None:  # noqa: ARG001
    """Each request gets a line of JSON, or is closed without one if it is not complete; the last request is answered."""
    path = tmp_path / "control.sock"

    async def reply_to(data: bytes) -> bytes:
        async with asyncio.timeout(PATIENCE_SECONDS):
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(data)
            writer.write_eof()
            with suppress(ConnectionResetError, BrokenPipeError):
                reply = await reader.read()
            writer.close()
            return reply

    async def echo(request: dict[str, object]) -> bytes:
        return json.dumps(request).encode()

    async def main() -> None:
        task = asyncio.create_task(ControlServer(str(path), echo).run())
        while not path.exists():  # noqa: ASYNC110  # the kernel has no event for it
            await asyncio.sleep(0)
        for source in sources(200):
            reply = await reply_to(line(source))
            assert reply.endswith(b"\n")
            assert json.loads(reply).keys() in ({"result"}, {"error"})
        assert b'{"result":{"command": "services"}}\n' == await reply_to(b'{"command": "services"}\n')
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
