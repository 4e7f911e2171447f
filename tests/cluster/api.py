"""A small API client for tests, and kubeconfig files for the tested clients."""

import http.client
import json
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from .process import ClusterError
from .relay import LOOPBACK

JsonObject: TypeAlias = dict[str, Any]

_TIMEOUT_SECONDS = 30.0
_MADE_BY_THE_SERVER = (
    "/api/v1/namespaces/default/services/kubernetes",
    "/apis/networking.k8s.io/v1/servicecidrs/kubernetes",
)
"""Objects that a new API server creates, some of them only after it has reported readiness."""


class ApiError(ClusterError):
    """An error response of the API server or etcd."""

    def __init__(self, status: int, request: str, answer: str) -> None:
        """Keep the HTTP status; the message has the request and the response."""
        super().__init__(f"{request}: status {status}: {answer}")
        self.status = status


class ApiClient:
    """Sends requests to an API server on the loopback, each on a new connection."""

    def __init__(self, port: int, token: str, authority: Path) -> None:
        """Use this port, bearer token and CA certificate."""
        self._port = port
        self._token = token
        self._tls = ssl.create_default_context(cafile=str(authority))

    def request(self, method: str, path: str, body: JsonObject | None = None) -> JsonObject:
        """Send a request and return the object in the response; a PATCH is a JSON merge patch."""
        return _decode(self.fetch(method, path, body))

    def fetch(self, method: str, path: str, body: JsonObject | None = None) -> str:
        """Send a request and return the text of the response."""
        connection = http.client.HTTPSConnection(LOOPBACK, self._port, context=self._tls, timeout=_TIMEOUT_SECONDS)
        content = "application/merge-patch+json" if method == "PATCH" else "application/json"
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": content}
        return exchange(connection, method, path, body, headers)

    def is_ready(self) -> bool:
        """Return whether the server is ready and has created its initial objects."""
        try:
            for path in ("/readyz", *_MADE_BY_THE_SERVER):
                self.fetch("GET", path)
        except (OSError, ApiError, http.client.HTTPException):
            return False
        return True


class UnixConnection(http.client.HTTPConnection):
    """An HTTP connection over a Unix socket."""

    def __init__(self, path: Path) -> None:
        """Use the socket at this path."""
        super().__init__("localhost", timeout=_TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_TIMEOUT_SECONDS)
        self.sock.connect(str(self._path))


def exchange(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: JsonObject | None = None,
    headers: Mapping[str, str] | None = None,
) -> str:
    """Send one request over a connection, close it, and return the text of the response."""
    try:
        connection.request(method, path, None if body is None else json.dumps(body), dict(headers or {}))
        response = connection.getresponse()
        answer = response.read().decode()
    finally:
        connection.close()
    if response.status >= http.client.BAD_REQUEST:
        raise ApiError(response.status, f"{method} {path}", answer)
    return answer


def kubeconfig(server: str, authority: Path, user: Mapping[str, str]) -> str:
    """Return a kubeconfig with one context; `user` has fields such as token, tokenFile or client-certificate."""
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "tests", "cluster": {"server": server, "certificate-authority": str(authority)}}],
        "users": [{"name": "tests", "user": dict(user)}],
        "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}],
        "current-context": "tests",
    }
    return json.dumps(content, indent=2)  # JSON is YAML


def _decode(text: str) -> JsonObject:
    decoded: JsonObject = json.loads(text)
    return decoded
