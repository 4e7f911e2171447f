"""The HTTP server for metrics: a thread of its own, without TLS and authentication, as kube-proxy's.

It must never harm the agent. A port that cannot be had is an error in the log and another try; a client that
hangs holds one thread, and not for long.
"""

import logging
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import WSGIApplication

from pyproxy.flags import ListenAddress
from pyproxy.model.address import Family, family_of, ip_text

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 5.0
_IDLE_SECONDS = 10.0
"""How long a client may keep a thread waiting."""


class Exporter(threading.Thread):
    """Answers HTTP on an address from its start to `close`, and goes on trying where the address cannot be had.

    Args:
        address: where.
        app: what answers.
        retry_seconds: time between two tries.
        failed: told, in this thread, of the first time that the address cannot be had.
    """

    def __init__(
        self,
        address: ListenAddress,
        app: WSGIApplication,
        retry_seconds: float = _RETRY_SECONDS,
        failed: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__(name="metrics", daemon=True)
        self._address = address
        self._app = app
        self._retry_seconds = retry_seconds
        self._failed = failed
        self._server: _Server | None = None
        self._closed = threading.Event()

    def run(self) -> None:
        """Serve until closed."""
        failures = 0
        while not self._closed.is_set():
            try:
                server = _Server(self._address, self._app)
            except OSError as error:
                failures += 1
                message = f"metrics cannot be served on {self._address}: {error.strerror}"
                logger.log(logging.ERROR if failures == 1 else logging.DEBUG, "%s; trying on", message)
                if failures == 1:
                    self._failed(message)
                self._closed.wait(self._retry_seconds)
                continue
            logger.info("metrics are served on http://%s/metrics", self._address)
            with server:
                self._server = server
                while not self._closed.is_set():
                    server.handle_request()

    def close(self) -> None:
        """Stop serving, and wait until the address is free again."""
        self._closed.set()
        if self._server is not None:
            self._server.wake()
        self.join()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, address: ListenAddress, app: WSGIApplication) -> None:
        self._address = address
        self.address_family = socket.AF_INET if family_of(address.ip) is Family.IPV4 else socket.AF_INET6
        super().__init__((ip_text(address.ip), address.port), _RequestHandler)
        self.set_app(app)

    def server_bind(self) -> None:
        """Bind without WSGIServer's question to the DNS for our own name, which may take minutes where DNS is a Service."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = ip_text(self._address.ip), self._address.port
        self.setup_environ()

    def wake(self) -> None:
        """End the wait for a client; nobody is answered any more."""
        # Closed by its own thread: it may already be.
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002  # socketserver's
        """Tell of a client that went away in the middle; the default is a traceback on standard error."""
        logger.debug("metrics: %s: %s", client_address, sys.exception())


class _RequestHandler(WSGIRequestHandler):
    timeout = _IDLE_SECONDS

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401  # http.server's
        """Tell of requests to those who want to know every step."""
        logger.debug("metrics: %s: %s", self.client_address[0], format % args)
