"""The certificates of one control plane: a certificate authority, and what it signs."""

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
    """A certificate authority that keeps all its files in one folder."""

    def __init__(self, directory: Path) -> None:
        """Make the authority."""
        self._directory = directory
        self._own = self._request("ca", "/CN=pyproxy-tests")

    @property
    def certificate(self) -> Path:
        """The certificate that others verify with."""
        return self._own.certificate

    def server(self, names: Sequence[str]) -> Certificate:
        """Issue a server's certificate for names such as ``DNS:localhost`` and ``IP:127.0.0.1``."""
        return self._issue("server", "/CN=server", f"subjectAltName={','.join(names)}")

    def client(self, user: str, groups: Sequence[str] = ()) -> Certificate:
        """Issue a certificate that the API server takes for a user and groups; each call makes new files."""
        number = len(list(self._directory.glob("client-*.key")))
        subject = "".join([*(f"/O={group}" for group in groups), f"/CN={user}"])
        return self._issue(f"client-{number}", subject, "extendedKeyUsage=clientAuth")

    def key(self, name: str) -> Path:
        """Make a key of its own, such as the one that signs service account tokens."""
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
