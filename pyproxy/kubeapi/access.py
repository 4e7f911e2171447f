"""What a connection to the API server needs, as a value, and its files and TLS settings at the moment of connecting.

Law of this file: an `Access` holds the paths of files, not their contents; whoever connects reads them first, so that a
rotated token, CA or client certificate is used from the next connection on. `load_access` finds it.
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
    """What the user said about the API server."""

    kubeconfig: str = ""
    master: str = ""
    """URLs of servers, with commas between them; they are tried in turn. Overrides the server of the kubeconfig."""
    api_servers: tuple[str, ...] = ()
    """As `master`, and wins over it; credentials are those of the kubeconfig, or the service account's if there are any."""
    service_account: str = SERVICE_ACCOUNT
    """Folder of token and CA, used if there is neither kubeconfig nor master."""


@dataclass(frozen=True, slots=True)
class Pem:
    """A certificate or key: in a file that may change, or inline in the kubeconfig."""

    path: str = ""
    content: bytes = field(default=b"", repr=False)

    def read(self) -> bytes:
        """Return the PEM text as it is now.

        Raises:
            SourceError: the file cannot be read.
        """
        return _read(self.path) if self.path else self.content


@dataclass(frozen=True, slots=True)
class Server:
    """One API server."""

    url: str
    """Without a slash at its end; may have a path."""
    proxy: str = ""
    """URL of the HTTP proxy to go through; empty means none."""

    @property
    def name(self) -> str:
        """Return the URL as it can be shown to anybody."""
        return without_credentials(self.url)


@dataclass(frozen=True, slots=True)
class Certificates:
    """The contents of an access's PEM files at one moment; equal ones make equal TLS settings."""

    ca: bytes = field(repr=False)
    certificate: bytes = field(repr=False)
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Everything that a connection to the API server needs."""

    servers: tuple[Server, ...]
    ca: Pem | None = None
    """None means the system's authorities."""
    certificate: Pem | None = None
    """The client's; None means that it shows none."""
    key: Pem | None = None
    verify: bool = True
    """False takes any server certificate (``insecure-skip-tls-verify``)."""
    tls_server_name: str = ""
    """Name that the server's certificate must have; empty means the one in its URL."""
    token_file: str = ""
    authorization: str = field(default="", repr=False)
    """Value of the HTTP header where there is no token file; empty means none."""
    expires_at: float | None = None
    """When an exec plugin's credentials expire, in seconds since the epoch; None means not known."""

    def read_authorization(self) -> str:
        """Return the value of the HTTP header as it is now; empty means that there is none.

        Raises:
            SourceError: the token file cannot be read now, or holds no token.
        """
        return _bearer(self.token_file) if self.token_file else self.authorization

    def read_certificates(self) -> Certificates:
        """Read all PEM files.

        Raises:
            SourceError: one of them cannot be read now.
        """
        return Certificates(*(pem.read() if pem else b"" for pem in (self.ca, self.certificate, self.key)))

    def tls_context(self, certificates: Certificates) -> ssl.SSLContext:
        """Make the TLS settings of a connection.

        Raises:
            SourceError: a certificate or key is no PEM, or the two do not belong together.
        """
        # Not ssl.create_default_context: from Python 3.13 on it is stricter than Go's crypto/tls and turns away
        # cluster authorities without key usage, which every other client takes.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        try:
            _load_authorities(context, certificates.ca)
            _load_client_certificate(context, certificates)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            message = f"CA {self.ca}, client certificate {self.certificate}, key {self.key}: {error}"
            raise SourceError(message) from error
        return context


def _bearer(token_file: str) -> str:
    # The token may end in a newline, which no header may hold.
    token = _read(token_file).decode("ascii", "replace").strip()
    if not token or not token.isprintable():
        message = f"token file {token_file} holds no token"
        raise SourceError(message)
    return f"Bearer {token}"


def _load_authorities(context: ssl.SSLContext, ca: bytes) -> None:
    if ca:
        context.load_verify_locations(cadata=ca.decode())
    else:
        context.load_default_certs()


def _load_client_certificate(context: ssl.SSLContext, certificates: Certificates) -> None:
    if not certificates.certificate:
        return
    # OpenSSL takes files only; one in memory keeps an inline key off the disk.
    with os.fdopen(os.memfd_create("client-certificate"), "wb") as file:
        file.write(certificates.certificate + b"\n" + certificates.key)
        file.flush()
        # Without a password OpenSSL would ask for one on the terminal.
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}", password="")


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}"
        raise SourceError(message) from error
