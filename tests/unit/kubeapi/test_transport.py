"""Single requests to a real server on loopback: TLS with changing files, proxies, refusals, broken responses."""

import asyncio
import gzip
import re
import shutil
import ssl
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from pyproxy.errors import SourceError
from pyproxy.kubeapi import transport
from pyproxy.kubeapi.access import Access, Pem, Server
from pyproxy.kubeapi.transport import HttpStatusError, Timing, Transport, UnreachableError
from pyproxy.model.request_record import RequestRecord
from tests.fakes.apiserver import SERVICES, ApiServer, listed, refused
from tests.unit.kubeapi.running import in_loop

TIMING = Timing(connect=1.0, answer=0.5, silence=0.5)


class Certificates:
    """A certificate authority, its certificates for a server and a client, and an authority that is not trusted."""

    def __init__(self, folder: Path) -> None:
        self.ca, self.stranger = folder / "ca.crt", folder / "stranger.crt"
        for certificate in (self.ca, self.stranger):
            openssl(certificate, "/CN=authority")
        issuer = ("-CA", str(self.ca), "-CAkey", str(self.ca.with_suffix(".key")))
        self.server, self.client = folder / "server.crt", folder / "client.crt"
        openssl(self.server, "/CN=server", *issuer, "-addext", "subjectAltName=IP:127.0.0.1,DNS:kubernetes")
        openssl(self.client, "/CN=client", *issuer, "-addext", "extendedKeyUsage=clientAuth")

    def server_tls(self, *, asks_client: bool = False) -> ssl.SSLContext:
        """Return the TLS settings of the server."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server, self.server.with_suffix(".key"))
        if asks_client:
            context.load_verify_locations(self.ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def openssl(certificate: Path, subject: str, *options: str) -> None:
    """Make a certificate with its key."""
    files = ("-keyout", str(certificate.with_suffix(".key")), "-out", str(certificate))
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc")
    subprocess.run(
        ["openssl", "req", "-x509", *key, "-subj", subject, *files, *options], check=True, capture_output=True
    )


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Issue certificates for all tests here."""
    return Certificates(tmp_path_factory.mktemp("certificates"))


async def ask(find: Callable[[], Access], times: int = 1, between: Callable[[], object] = lambda: None) -> list[bytes]:
    """Request Services through a transport."""

    async def find_access() -> Access:
        return find()

    bodies = []
    async with Transport(find_access, TIMING) as asking:
        for _ in range(times):
            bodies.append(await asking.body(SERVICES, {}))
            between()
    return bodies


async def reported_requests(url: str) -> list[RequestRecord]:
    """Request Services, and return the record of the request."""

    async def find_access() -> Access:
        return Access(servers=(Server(url),))

    reported: list[RequestRecord] = []
    async with Transport(find_access, TIMING, reported.append) as asking:
        with suppress(SourceError):
            await asking.body(SERVICES, {})
    return reported


async def hello(_: web.Request) -> web.StreamResponse:
    """Say hello."""
    return web.Response(text="hello")


@in_loop
@pytest.mark.parametrize("compress", [True, False])
async def test_compressed_stream(compress: bool) -> None:  # noqa: FBT001
    """The lines of a stream arrive at once, also if the server compresses each as a gzip member, as 1.37 does."""
    lines = [b'{"number": %d}' % number for number in range(3)]
    encodings: list[str] = []
    received: list[bytes] = []
    is_read = asyncio.Event()

    async def stream(request: web.Request) -> web.StreamResponse:
        encodings.append(request.headers["Accept-Encoding"])
        accepts = "gzip" in encodings
        response = web.StreamResponse(headers={"Content-Encoding": "gzip"} if accepts else {})
        await response.prepare(request)
        for line in lines:
            await response.write(gzip.compress(line + b"\n") if accepts else line + b"\n")
        await is_read.wait()  # the lines must not wait for the end of the response
        return response

    async def find_access() -> Access:
        return Access(servers=(Server(server.url),), compress=compress)

    async with ApiServer() as server, Transport(find_access, TIMING) as asking:
        server.say(SERVICES, stream)
        async with asking.lines(SERVICES, {}) as opened:
            while len(received) < len(lines):
                received += await opened.read()
        is_read.set()

    assert (["gzip" if compress else "identity"], lines) == (encodings, received)


@in_loop
async def test_requests_are_told() -> None:
    """A complete response is recorded with its size, a refusal with its status, and a failure with neither."""
    async with ApiServer() as server:
        server.say(SERVICES, hello, refused(404))
        reported = [*await reported_requests(server.url), *await reported_requests(server.url)]
    reported += await reported_requests(server.url)

    assert [("200", 5), ("404", None), ("<error>", None)] == [(each.code, each.received_bytes) for each in reported]
    assert {("GET", server.url.removeprefix("http://"), 0)} == {
        (each.method, each.host, each.sent_bytes) for each in reported
    }
    assert all(each.seconds is not None and each.seconds > 0 for each in reported)


@in_loop
async def test_a_password_in_a_url_is_not_told() -> None:
    """The error about a server that does not respond has its URL, without user and password."""
    access = Access(servers=(Server("http://joe:secret@127.0.0.1:1", proxy="http://ann:hidden@127.0.0.1:1"),))
    with pytest.raises(UnreachableError) as caught:
        await ask(lambda: access)

    assert "http://127.0.0.1:1: Connection refused" == str(caught.value)
    assert not {"joe", "secret", "ann", "hidden"} & set(re.split(r"\W", str(caught.value)))


@in_loop
async def test_trusted_server(certificates: Certificates) -> None:
    """A server certificate of the CA is accepted for the name in the URL, or the name that is given."""
    async with ApiServer(certificates.server_tls()) as server:
        server.say(SERVICES, hello, hello)
        by_url = Access(servers=(Server(server.url),), ca=Pem(str(certificates.ca)))
        by_name = Access(
            servers=(Server(server.url.replace("127.0.0.1", "localhost")),),
            ca=Pem(content=certificates.ca.read_bytes()),
            tls_server_name="kubernetes",
        )

        assert [b"hello"] * 2 == await ask(lambda: by_url) + await ask(lambda: by_name)


@in_loop
async def test_untrusted_server(certificates: Certificates) -> None:
    """A server of another CA, or with another name, gets no request."""
    async with ApiServer(certificates.server_tls()) as server:
        other_ca = Access(servers=(Server(server.url),), ca=Pem(str(certificates.stranger)))
        other_name = Access(servers=(Server(server.url),), ca=Pem(str(certificates.ca)), tls_server_name="other")
        with pytest.raises(UnreachableError, match="certificate verify failed"):
            await ask(lambda: other_ca)
        with pytest.raises(UnreachableError, match="Hostname mismatch"):
            await ask(lambda: other_name)


@in_loop
async def test_insecure(certificates: Certificates) -> None:
    """Without verification any server is accepted."""
    async with ApiServer(certificates.server_tls()) as server:
        server.say(SERVICES, hello)

        assert [b"hello"] == await ask(lambda: Access(servers=(Server(server.url),), verify=False))


@in_loop
async def test_client_certificate_from_files_and_inline(certificates: Certificates) -> None:
    """A client certificate is sent, from files or inline; without it this server refuses the connection."""
    certificate, key = Pem(str(certificates.client)), Pem(str(certificates.client.with_suffix(".key")))
    async with ApiServer(certificates.server_tls(asks_client=True)) as server:
        server.say(SERVICES, hello, hello)
        stranger = Access(servers=(Server(server.url),), ca=Pem(str(certificates.ca)))
        files = replace(stranger, certificate=certificate, key=key)
        inline = replace(stranger, certificate=Pem(content=certificate.read()), key=Pem(content=key.read()))

        assert [b"hello"] * 2 == await ask(lambda: files) + await ask(lambda: inline)
        with pytest.raises(UnreachableError):
            await ask(lambda: stranger)


@in_loop
async def test_rotated_ca(certificates: Certificates, tmp_path: Path) -> None:
    """The CA file is read for each connection."""
    ca = tmp_path / "ca.crt"
    shutil.copy(certificates.ca, ca)
    async with ApiServer(certificates.server_tls()) as server:
        server.say(SERVICES, hello)
        with pytest.raises(UnreachableError, match="certificate verify failed"):
            await ask(
                lambda: Access(servers=(Server(server.url),), ca=Pem(str(ca))),
                times=2,
                between=lambda: shutil.copy(certificates.stranger, ca),
            )


@pytest.mark.parametrize("content", ["", "two\nlines", None])
@in_loop
async def test_unusable_token_file(content: str | None, tmp_path: Path) -> None:
    """A token file that is missing or empty is an error that names it, and no request is sent without a token."""
    token = tmp_path / "token"
    if content is not None:
        token.write_text(content)
    with pytest.raises(UnreachableError, match=str(token)):
        await ask(lambda: Access(servers=(Server("http://127.0.0.1:1"),), token_file=str(token)))


@in_loop
async def test_key_of_another_certificate(certificates: Certificates) -> None:
    """A key that does not match its certificate is an error before a request is sent, without a prompt on a terminal."""
    access = Access(
        servers=(Server("https://127.0.0.1:1"),),
        certificate=Pem(str(certificates.client)),
        key=Pem(str(certificates.stranger.with_suffix(".key"))),
    )
    with pytest.raises(UnreachableError, match="client certificate"):
        await ask(lambda: access)


@in_loop
async def test_proxy() -> None:
    """A request goes to the proxy, in the name of the server."""
    async with ApiServer() as proxy:
        proxy.say(SERVICES, hello)
        body = await ask(lambda: Access(servers=(Server("http://api.invalid", proxy=proxy.url),)))

        assert ([b"hello"], "api.invalid") == (body, (await proxy.asked(SERVICES)).host)


@in_loop
async def test_refusal() -> None:
    """A refusal has the status, the message of the server, and its Retry-After."""
    async with ApiServer() as server:
        server.say(SERVICES, refused(429, "too many requests", Retry_After="7"))
        with pytest.raises(HttpStatusError, match="429 too many requests") as raised:
            await ask(lambda: Access(servers=(Server(server.url),)))

    assert (429, 7.0) == (raised.value.status, raised.value.retry_after_seconds)


@in_loop
async def test_refusal_by_something_else() -> None:
    """An HTML page of a proxy is cut short, and its redirect is not followed."""

    async def redirect(_: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": "/login"}, text="<html>\n" + "x" * 10000)

    async with ApiServer() as server:
        server.say(SERVICES, redirect)
        with pytest.raises(HttpStatusError, match=r"302 <html> x{193}$"):
            await ask(lambda: Access(servers=(Server(server.url),)))


@pytest.mark.parametrize("body", [b'{"message": "\xff"}', b'{"details": ' + b"[" * 2000 + b"]" * 2000 + b"}", b"[1]"])
@in_loop
async def test_refusal_that_is_garbage(body: bytes) -> None:
    """A refusal whose body is not UTF-8, too deep or not a Status has the status of HTTP."""

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=403, body=body)

    async with ApiServer() as server:
        server.say(SERVICES, answer)
        with pytest.raises(HttpStatusError, match="403"):
            await ask(lambda: Access(servers=(Server(server.url),)))


@in_loop
async def test_compressed_answer() -> None:
    """A compressed list is read like an uncompressed one."""
    async with ApiServer() as server:
        server.say(SERVICES, listed("1"))

        assert [b'{"metadata": {"resourceVersion": "1", "continue": ""}, "items": []}'] == await ask(
            lambda: Access(servers=(Server(server.url),))
        )


@in_loop
async def test_server_that_does_not_answer() -> None:
    """A server that accepts a request and does not respond causes a time-out."""
    async with ApiServer() as server:
        server.say(SERVICES, server.send_nothing)
        with pytest.raises(UnreachableError, match=server.url):
            await ask(lambda: Access(servers=(Server(server.url),)))


@in_loop
async def test_expired_credentials() -> None:
    """Credentials about to expire are replaced before the next request."""
    found: list[str] = []

    def find() -> Access:
        found.append(f"Bearer {len(found)}")
        return Access(
            servers=(Server(server.url),), authorization=found[-1], expires_at=0.0 if len(found) == 1 else None
        )

    async with ApiServer() as server:
        server.say(SERVICES, hello, hello)
        await ask(find, times=2)

        assert ["Bearer 0", "Bearer 1"] == [(await server.asked(SERVICES)).authorization for _ in range(2)]


@in_loop
async def test_endless_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line without an end is an error before it fills the memory."""
    monkeypatch.setattr(transport, "LONGEST_LINE_BYTES", 1000)

    async def find_access() -> Access:
        return Access(servers=(Server(server.url),))

    async with ApiServer() as server, Transport(find_access, TIMING) as asking:
        server.say(SERVICES, listed("1", {"padding": "x" * 1000}))
        async with asking.lines(SERVICES, {}) as lines:
            with pytest.raises(SourceError, match="longer than 1000 bytes"):
                await lines.read()


def test_secrets_are_not_shown(certificates: Certificates) -> None:
    """The text of an Access has no secrets."""
    access = Access(servers=(), authorization="Bearer hidden", key=Pem(content=b"hidden"))

    assert "hidden" not in repr(access)
    assert "BEGIN" not in repr(Access(servers=(), key=Pem(str(certificates.client))).read_certificates())
