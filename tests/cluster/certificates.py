"""The certificates of a control plane: a certificate authority, and certificates that it signs."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc")


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its key, as PEM files."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority with all its files in one directory."""

    def __init__(self, directory: Path) -> None:
        """Create the authority."""
        self._directory = directory
        self._own = self._request("ca", "/CN=pyproxy-tests")

    @property
    def certificate(self) -> Path:
        """The CA certificate, for verification."""
        return self._own.certificate

    def server(self, names: Sequence[str]) -> Certificate:
        """Issue a server's certificate for names such as ``DNS:localhost`` and ``IP:127.0.0.1``."""
        return self._issue("server", "/CN=server", f"subjectAltName={','.join(names)}")

    def client(self, user: str, groups: Sequence[str] = ()) -> Certificate:
        """Issue a client certificate for a user and groups; each call creates new files."""
        number = len(list(self._directory.glob("client-*.key")))
        subject = "".join([*(f"/O={group}" for group in groups), f"/CN={user}"])
        return self._issue(f"client-{number}", subject, "extendedKeyUsage=clientAuth")

    def key(self, name: str) -> Path:
        """Create a separate key, for example to sign service account tokens."""
        path = self._directory / f"{name}.key"
        _openssl("ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", str(path))
        return path

    def _issue(self, name: str, subject: str, extension: str) -> Certificate:
        own = ("-CA", str(self._own.certificate), "-CAkey", str(self._own.key))
        return self._request(name, subject, *own, "-addext", extension, "-addext", "basicConstraints=CA:FALSE")

    def _request(self, name: str, subject: str, *options: str) -> Certificate:
        made = Certificate(self._directory / f"{name}.crt", self._directory / f"{name}.key")
        files = ("-keyout", str(made.key), "-out", str(made.certificate))
        _openssl("req", "-x509", *_NEW_KEY, "-days", "7", "-subj", subject, *files, *options)
        return made


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
