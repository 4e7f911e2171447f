"""Gets a page from an HTTP server on this node, of this program or another one."""

import asyncio

from pyproxy.model.address import LOOPBACK_IPS, ListenAddress, family_of, ip_text


def reachable(address: ListenAddress) -> ListenAddress:
    """Return where a server is reachable on this node: one on all addresses (0.0.0.0 or ::) on loopback."""
    return address if any(address.ip) else ListenAddress(LOOPBACK_IPS[family_of(address.ip)], address.port)


async def get_page(address: ListenAddress, path: str, most_bytes: int, seconds: float | None) -> str:
    """Return the body of an answer with any status: the health server sends 503 with a body that says what is wrong.

    Args:
        address: of the server, see `reachable`.
        path: of the page.
        most_bytes: the answer is cut after about this many, because any program may listen on the port.
        seconds: time limit for the whole answer; None means that the caller has one.

    Raises:
        OSError: nothing listens there, or the answer is not complete in time.
    """
    # HTTP/1.0, so that the server ends the body by closing the connection instead of in chunks. A client library would not
    # add safety here: http.client has no limit for the time of a whole answer.
    answer = bytearray()
    async with asyncio.timeout(seconds):
        reader, writer = await asyncio.open_connection(ip_text(address.ip), address.port)
        try:
            writer.write(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
            while len(answer) < most_bytes and (part := await reader.read(1 << 16)):
                answer += part
        finally:
            writer.close()
    return answer.partition(b"\r\n\r\n")[2].decode(errors="replace")
