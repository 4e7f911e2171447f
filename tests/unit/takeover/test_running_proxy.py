"""How a running kube-proxy is detected: by the responses of its servers."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from pyproxy.config.config import Config, Takeover
from pyproxy.model.address import ListenAddress, parse_ip
from pyproxy.takeover import running_proxy
from pyproxy.takeover.running_proxy import detect_running_proxy, wait_for_running_proxy

HEALTH = '{"lastUpdated": "2026-01-01 00:00:00 +0000 UTC", "currentTime": "2026-01-01 00:00:01 +0000 UTC"}'


@pytest.fixture(autouse=True)
def _nobody_at_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use only the servers of a test: kube-proxy's ports on this machine may be in use."""
    monkeypatch.setattr(running_proxy, "_KUBE_PROXYS_PORTS", ())
    monkeypatch.setattr(running_proxy, "_ANSWER_SECONDS", 0.5)


@asynccontextmanager
async def answering(answers: dict[str, str]) -> AsyncIterator[Config]:
    """Serve responses by path, and give a configuration with that server's address."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        body = answers.get(request.split()[1].decode())
        status = "404 Not Found" if body is None else "200 OK"
        writer.write(f"HTTP/1.0 {status}\r\n\r\n{body or 'not here'}".encode())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    async with server:
        yield asking(port)


def asking(port: int) -> Config:
    """Give a configuration for which only one port is examined."""
    return Config(metrics_bind_address=ListenAddress(parse_ip("0.0.0.0"), port), healthz_bind_address=None)  # noqa: S104


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"/proxyMode": "iptables"}, "/proxyMode says iptables"),
        ({"/proxyMode": "ipvs\n"}, "/proxyMode says ipvs"),
        ({"/healthz": HEALTH}, "/healthz answers as a proxy's"),
        ({"/proxyMode": "transparent"}, ""),
        ({"/healthz": "ok"}, ""),
        ({"/healthz": '["lastUpdated"]'}, ""),
        ({"/healthz": "[" * 5000}, ""),
        ({}, ""),
    ],
)
def test_who_is_there(answers: dict[str, str], expected: str) -> None:
    """The metrics or health server of a proxy is detected; responses of other programs are not."""

    async def ask() -> tuple[str, int]:
        async with answering(answers) as config:
            assert isinstance(config.metrics_bind_address, ListenAddress)
            return await detect_running_proxy(config), config.metrics_bind_address.port

    found, port = asyncio.run(ask())

    assert (f"127.0.0.1:{port}{expected}" if expected else "") == found


@pytest.mark.parametrize(
    ("words", "may_be_proxy"),
    [
        (["/usr/local/bin/kube-proxy"], True),
        (["/opt/microk8s/kubelite"], True),
        (["/usr/local/bin/k3s", "server"], True),
        (["python3", "/opt/pyproxy/bin/pyproxy"], True),
        (["nc", "-l"], False),
    ],
)
def test_who_is_silent(words: list[str], may_be_proxy: bool) -> None:  # noqa: FBT001  # a case's
    """A server that does not respond may be a busy proxy, if its process has the name of one."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port, descriptor = server.getsockname()[1], server.fileno()
        # Of Python it has the executable only.
        argv = [words[0], "-Sc", "input()", *words[1:]]
        holder = subprocess.Popen(argv, executable=sys.executable, stdin=subprocess.PIPE, pass_fds=[descriptor])
    with holder:
        found = asyncio.run(detect_running_proxy(asking(port)))
        holder.communicate()

    assert (f"127.0.0.1:{port} is in use, but does not respond" if may_be_proxy else "") == found


def test_nobody_is_waited_for_where_nobody_listens() -> None:
    """Without a server the wait ends at once."""

    async def wait() -> None:
        async with answering({}) as config:
            pass
        await wait_for_running_proxy(config)

    asyncio.run(wait())


@pytest.mark.parametrize("flags", [{"takeover": Takeover.NEVER}, {"service_proxy_name": "trial"}])
def test_some_do_not_wait(flags: dict[str, object]) -> None:
    """With --takeover=never and side-by-side a running proxy does not matter."""

    async def wait() -> None:
        async with answering({"/proxyMode": "iptables"}) as config:
            await wait_for_running_proxy(Config(metrics_bind_address=config.metrics_bind_address, **flags))  # type: ignore[arg-type]  # two of many fields

    asyncio.run(wait())


def test_the_end_is_seen(caplog: pytest.LogCaptureFixture) -> None:
    """The wait ends with the proxy, and is logged once."""

    async def wait() -> None:
        async with answering({"/proxyMode": "nftables"}) as config:
            waiting = asyncio.create_task(wait_for_running_proxy(config))
            while "waiting until" not in caplog.text:  # noqa: ASYNC110  # a log record sets no event
                await asyncio.sleep(0.01)
        await waiting

    asyncio.run(wait())

    assert 1 == caplog.text.count("waiting until")
