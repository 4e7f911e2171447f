"""Addresses and credentials of the API server as a value, and the TLS settings made from it for each connection.

An `Access` has the paths of files, not their contents. The transport reads the files for each request, so that a rotated
token, CA or client certificate is used from the next connection on. `load_access` finds the `Access`.
"""

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from pyproxy.errors import SourceError
from pyproxy.model.urls import without_credentials

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessSettings:
    """The user's settings for the API server."""

    kubeconfig: str = ""
    master: str = ""
    """Comma-separated URLs of servers, used in turn. Overrides the server in the kubeconfig."""
    api_servers: tuple[str, ...] = ()
    """Like `master`, and overrides it; credentials come from the kubeconfig, or from the service account if it exists."""
    service_account: str = SERVICE_ACCOUNT
    """Directory of token and CA, used without kubeconfig and master."""


@dataclass(frozen=True, slots=True)
class Pem:
    """A certificate or key, in a file that may change or inline in the kubeconfig."""

    path: str = ""
    content: bytes = field(default=b"", repr=False)

    def read(self) -> bytes:
        """Return the current PEM text.

        Raises:
            SourceError: the file cannot be read.
        """
        return _read(self.path) if self.path else self.content


@dataclass(frozen=True, slots=True)
class Server:
    """One API server."""

    url: str
    """Without a trailing slash; may have a path."""
    proxy: str = ""
    """URL of the HTTP proxy; empty for a direct connection."""

    @property
    def name(self) -> str:
        """Return the URL without credentials."""
        return without_credentials(self.url)


@dataclass(frozen=True, slots=True)
class Certificates:
    """The current contents of the PEM files of an Access; equal contents give equal TLS settings."""

    ca: bytes = field(repr=False)
    certificate: bytes = field(repr=False)
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Everything that is needed to connect to the API server."""

    servers: tuple[Server, ...]
    ca: Pem | None = None
    """None for the system's authorities."""
    certificate: Pem | None = None
    """The client certificate; None if there is none."""
    key: Pem | None = None
    verify: bool = True
    """False to accept any server certificate (``insecure-skip-tls-verify``)."""
    compress: bool = True
    """False to request responses without compression (``disable-compression``)."""
    tls_server_name: str = ""
    """Name that the server's certificate must have; empty for the host name in the URL."""
    token_file: str = ""
    authorization: str = field(default="", repr=False)
    """Value of the HTTP header without a token file; empty for none."""
    expires_at: float | None = None
    """Expiry of an exec plugin's credentials, in seconds since the epoch; None if not known."""

    def read_authorization(self) -> str:
        """Return the current value of the HTTP header; empty for none.

        Raises:
            SourceError: the token file cannot be read, or has no token.
        """
        if not self.token_file:
            return self.authorization
        # The file may end with a newline, which is not allowed in a header.
        token = _read(self.token_file).decode("ascii", "replace").strip()
        if not token or not token.isprintable():
            message = f"token file {self.token_file} has no token"
            raise SourceError(message)
        return f"Bearer {token}"

    def read_certificates(self) -> Certificates:
        """Read all PEM files.

        Raises:
            SourceError: a file cannot be read.
        """
        return Certificates(*(pem.read() if pem else b"" for pem in (self.ca, self.certificate, self.key)))

    def tls_context(self, certificates: Certificates) -> ssl.SSLContext:
        """Make the TLS settings of a connection.

        Raises:
            SourceError: a certificate or key is not valid PEM, or they do not match.
        """
        # Not ssl.create_default_context: from Python 3.13 on it is stricter than Go's crypto/tls and refuses cluster
        # authorities without key usage, which all other clients accept.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # Like Go, accept an intermediate authority in the CA file as a root of trust.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        try:
            if certificates.ca:
                context.load_verify_locations(cadata=certificates.ca.decode())
            else:
                context.load_default_certs()
            if certificates.certificate:
                # OpenSSL reads files only; a file in memory keeps an inline key off the disk.
                with os.fdopen(os.memfd_create("client-certificate"), "wb") as file:
                    file.write(certificates.certificate + b"\n" + certificates.key)
                    file.flush()
                    # Without a password OpenSSL would prompt for one on the terminal.
                    context.load_cert_chain(f"/proc/self/fd/{file.fileno()}", password="")
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            message = f"CA {self.ca}, client certificate {self.certificate}, key {self.key}: {error}"
            raise SourceError(message) from error
        return context


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}"
        raise SourceError(message) from error
