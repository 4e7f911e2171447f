"""How a kube-proxy that lives on the node is known: by what its servers answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from pyproxy.config import Config
from pyproxy.flags.grammar import ListenAddress
from pyproxy.flags.takeover import Takeover
from pyproxy.model.address import parse_ip
from pyproxy.modes import predecessor
from pyproxy.modes.predecessor import find_proxy, wait_until_gone

HEALTH = '{"lastUpdated": "2026-01-01 00:00:00 +0000 UTC", "currentTime": "2026-01-01 00:00:01 +0000 UTC"}'


@pytest.fixture(autouse=True)
def _nobody_at_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask only the servers of a test: who is at kube-proxy's ports on this machine is not its business."""
    monkeypatch.setattr(predecessor, "_KUBE_PROXYS_PORTS", ())
    monkeypatch.setattr(predecessor, "_ANSWER_SECONDS", 0.5)


@asynccontextmanager
async def answering(answers: dict[str, str] | None) -> AsyncIterator[Config]:
    """Serve answers by path, or none at all, and give a configuration with that server's address."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        if answers is None:
            await reader.read()
        else:
            body = answers.get(request.split()[1].decode())
            status = "404 Not Found" if body is None else "200 OK"
            writer.write(f"HTTP/1.0 {status}\r\n\r\n{body or 'not here'}".encode())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    async with server:
        yield Config(metrics_bind_address=ListenAddress(parse_ip("0.0.0.0"), port), healthz_bind_address=None)  # noqa: S104


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"/proxyMode": "iptables"}, "/proxyMode says iptables"),
        ({"/proxyMode": "ipvs\n"}, "/proxyMode says ipvs"),
        ({"/healthz": HEALTH}, "/healthz answers as a proxy's"),
        ({"/proxyMode": "transparent"}, ""),
        ({"/healthz": "ok"}, ""),
        ({"/healthz": '["lastUpdated"]'}, ""),
        ({}, ""),
        (None, " is taken, and does not answer"),
    ],
)
def test_who_is_there(answers: dict[str, str] | None, expected: str) -> None:
    """Metrics or health of a proxy, or silence where one may be, count; other programs' answers do not."""

    async def ask() -> tuple[str, int]:
        async with answering(answers) as config:
            assert isinstance(config.metrics_bind_address, ListenAddress)
            return await find_proxy(config), config.metrics_bind_address.port

    found, port = asyncio.run(ask())

    assert (f"127.0.0.1:{port}{expected}" if expected else "") == found


def test_nobody_is_waited_for_where_nobody_listens() -> None:
    """Where no server is, the wait is over at once."""

    async def wait() -> None:
        async with answering({}) as config:
            pass
        await wait_until_gone(config)

    asyncio.run(wait())


@pytest.mark.parametrize("flags", [{"takeover": Takeover.NEVER}, {"service_proxy_name": "trial"}])
def test_some_do_not_wait(flags: dict[str, object]) -> None:
    """With --takeover=never, and on trial, a live proxy is none of our business."""

    async def wait() -> None:
        async with answering({"/proxyMode": "iptables"}) as config:
            await wait_until_gone(Config(metrics_bind_address=config.metrics_bind_address, **flags))  # type: ignore[arg-type]  # two of many fields

    asyncio.run(wait())


def test_the_end_is_seen(caplog: pytest.LogCaptureFixture) -> None:
    """The wait ends with the proxy, and is told once."""

    async def wait() -> None:
        async with answering({"/proxyMode": "nftables"}) as config:
            waiting = asyncio.create_task(wait_until_gone(config))
            while "waiting until" not in caplog.text:  # noqa: ASYNC110  # a log tells nobody
                await asyncio.sleep(0.01)
        await waiting

    asyncio.run(wait())

    assert 1 == caplog.text.count("waiting until")
