"""Kubeconfig and service account to an `Access`, as far as files are sufficient.

It runs no program and contacts no server; the result says whether `credentials` is needed for the rest. The contents of
files are read only if the `Access` must have them.
"""

import binascii
import contextlib
import logging
import os
from base64 import b64encode, standard_b64decode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from pyproxy.errors import ConfigError
from pyproxy.kubeapi.access import Access, AccessSettings, Pem, Server

logger = logging.getLogger(__name__)

CONFIG_ERROR_STATUS = 2
"""Exit status of `credentials` for a ConfigError; its standard output is the message."""
SOURCE_ERROR_STATUS = 3
_PROXY_VARIABLES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")


@dataclass(frozen=True, slots=True)
class KubeconfigResult:
    """The result of reading files."""

    access: Access
    plugin: str = ""
    """Command of the exec plugin; empty if there is none."""
    asks_provider: bool = False
    """Whether the token comes from an identity provider."""
    needs_package: bool = False
    """Whether the `kubernetes` package is needed: for an exec plugin, an identity provider, or the rules of NO_PROXY."""


def read_settings(settings: AccessSettings) -> KubeconfigResult:
    """Find the API server and credentials in files.

    Raises:
        ConfigError: the configuration cannot work; the message names file and field.
    """
    if settings.kubeconfig:
        with naming(f"kubeconfig {settings.kubeconfig}"):
            return _read_kubeconfig(settings)
    if settings.api_servers and Path(settings.service_account, "token").exists():
        with naming(f"service account {settings.service_account}"):
            return _found(_service_account(settings.service_account, _servers(*_chosen(settings), "https")))
    if settings.api_servers or settings.master:
        return _found(Access(servers=_servers(*_chosen(settings), "http")))
    with naming("neither --kubeconfig nor --master is given, and this is not a pod that may use the API"):
        return _found(_read_service_account(settings.service_account))


def _chosen(settings: AccessSettings) -> tuple[str, str]:
    return (",".join(settings.api_servers), "--api-servers") if settings.api_servers else (settings.master, "--master")


def _found(access: Access, plugin: str = "", *, asks_provider: bool = False) -> KubeconfigResult:
    may_need_proxy = not all(server.proxy for server in access.servers) and any(map(os.environ.get, _PROXY_VARIABLES))
    return KubeconfigResult(access, plugin, asks_provider, bool(plugin) or asks_provider or may_need_proxy)


@contextlib.contextmanager
def naming(subject: str) -> Iterator[None]:
    """Convert errors of reading a configuration to a ConfigError that begins with its name."""
    try:
        yield
    except (ConfigError, msgspec.MsgspecError, OSError, UnicodeError) as error:
        message = f"{subject}: {error}"
        raise ConfigError(message) from error


def _read_service_account(folder: str) -> Access:
    host, port = (os.environ.get(f"KUBERNETES_SERVICE_{name}", "") for name in ("HOST", "PORT"))
    if not host or not port:
        message = "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not both set"
        raise ConfigError(message)
    servers = _servers(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", "KUBERNETES_SERVICE_HOST", "https")
    return _service_account(folder, servers)


def _service_account(folder: str, servers: tuple[Server, ...]) -> Access:
    files = _Files(Path(folder))
    return Access(servers=servers, ca=Pem(files.path("ca.crt", "CA")), token_file=files.path("token", "token"))


class _Cluster(msgspec.Struct, rename="kebab"):
    server: str | None = None
    certificate_authority: str | None = None
    certificate_authority_data: str | None = None
    insecure_skip_tls_verify: bool | None = None
    tls_server_name: str | None = None
    proxy_url: str | None = None
    disable_compression: bool | None = None


class _User(msgspec.Struct, rename="kebab"):
    client_certificate: str | None = None
    client_certificate_data: str | None = None
    client_key: str | None = None
    client_key_data: str | None = None
    token: str | None = None
    token_file: str | None = msgspec.field(name="tokenFile", default=None)
    username: str | None = None
    password: str | None = None
    exec: dict[str, Any] | None = None
    auth_provider: dict[str, Any] | None = None

    def plugin(self) -> str:
        if self.exec is None:
            return ""
        command = self.exec.get("command")
        if not isinstance(command, str) or not command:
            message = "users[].user.exec.command is missing"
            raise ConfigError(message)
        return command

    def authorization(self) -> str:
        # client-go's precedence: a token before a password. A token file overrides both, at each request.
        if self.token:
            return f"Bearer {self.token.strip()}"
        if self.username and self.password:
            return f"Basic {b64encode(f'{self.username}:{self.password}'.encode()).decode()}"
        return ""


class _Context(msgspec.Struct):
    cluster: str | None = None
    user: str | None = None


class _NamedCluster(msgspec.Struct):
    name: str | None = None
    cluster: _Cluster | None = None


class _NamedUser(msgspec.Struct):
    name: str | None = None
    user: _User | None = None


class _NamedContext(msgspec.Struct):
    name: str | None = None
    context: _Context | None = None


class _Kubeconfig(msgspec.Struct, rename="kebab"):
    # With the whole structure as types, an error of msgspec names the field. Each field and each entry of a list may be
    # absent or null: Go's JSON decoder, and so client-go, reads null as the zero value, and kubectl writes null for a list
    # without entries.

    current_context: str | None = None
    clusters: list[_NamedCluster | None] | None = None
    contexts: list[_NamedContext | None] | None = None
    users: list[_NamedUser | None] | None = None


_Entry = TypeVar("_Entry", _NamedCluster, _NamedUser, _NamedContext)


def _named(entries: Iterable[_Entry | None] | None, name: str | None) -> _Entry | None:
    for entry in entries or ():
        if entry is not None and (entry.name or "") == (name or ""):
            return entry
    return None


def _read_kubeconfig(settings: AccessSettings) -> KubeconfigResult:
    # As client-go (0.37) does: `tools/clientcmd/client_config.go` and `merged_client_builder.go`.
    path = settings.kubeconfig
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(error.strerror) from error
    kubeconfig = None
    if data.lstrip().startswith(b"{"):
        # JSON does not need the YAML library, which costs time at each start. It reports the errors, with a line number.
        with contextlib.suppress(msgspec.DecodeError):
            kubeconfig = msgspec.json.decode(data, type=_Kubeconfig)
    if kubeconfig is None:
        kubeconfig = msgspec.yaml.decode(data, type=_Kubeconfig | None) or _Kubeconfig()
    named_context = _named(kubeconfig.contexts, kubeconfig.current_context)
    if named_context is None and kubeconfig.current_context:
        message = f"contexts: no entry has the name {kubeconfig.current_context!r}"
        raise ConfigError(message)
    context = (named_context and named_context.context) or _Context()
    named_cluster = _named(kubeconfig.clusters, context.cluster)
    if named_cluster is None and not (settings.api_servers or settings.master):
        # A kubeconfig that names no cluster leaves the server to the environment of a pod.
        try:
            return _found(_read_service_account(settings.service_account))
        except ConfigError as error:
            message = "it names no cluster, and neither is --master given nor is this a pod that may use the API"
            if context.cluster:
                message = f"clusters: no entry has the name {context.cluster!r}"
            raise ConfigError(message) from error
    cluster = (named_cluster and named_cluster.cluster) or _Cluster()
    named_user = _named(kubeconfig.users, context.user)
    if named_user is None and context.user:
        # client-go sends requests without credentials in this case, without a warning.
        logger.warning(
            'kubeconfig %s: users: no entry has the name "%s"; requests have no credentials', path, context.user
        )
    user = (named_user and named_user.user) or _User()
    files = _Files(Path(path).parent.absolute())
    access = Access(
        servers=_kubeconfig_servers(settings, cluster),
        ca=files.pem(cluster.certificate_authority, cluster.certificate_authority_data, "certificate-authority"),
        certificate=files.pem(user.client_certificate, user.client_certificate_data, "client-certificate"),
        key=files.pem(user.client_key, user.client_key_data, "client-key"),
        verify=not cluster.insecure_skip_tls_verify,
        compress=not cluster.disable_compression,
        tls_server_name=cluster.tls_server_name or "",
        token_file=files.path(user.token_file, "tokenFile") if user.token_file else "",
        authorization=user.authorization(),
    )
    return _found(access, user.plugin(), asks_provider=user.auth_provider is not None)


def _kubeconfig_servers(settings: AccessSettings, cluster: _Cluster) -> tuple[Server, ...]:
    # A URL without a scheme means TLS if the kubeconfig names an authority, which a server without TLS does not need.
    scheme = "https" if cluster.certificate_authority or cluster.certificate_authority_data else "http"
    if settings.api_servers or settings.master:
        return _servers(*_chosen(settings), scheme, cluster.proxy_url or "")
    if not cluster.server:
        message = "clusters[].cluster.server is missing, and --master is not given"
        raise ConfigError(message)
    return _servers(cluster.server, "clusters[].cluster.server", scheme, cluster.proxy_url or "")


@dataclass(frozen=True, slots=True)
class _Files:
    # Names of files in a kubeconfig are relative to its own directory (`tools/clientcmd/loader.go`,
    # `ResolveLocalPaths`).
    folder: Path

    def path(self, name: str, where: str) -> str:
        path = self.folder / name
        # Opened, but not read: the transport reads the file at each request. A wrong name must fail at startup.
        try:
            path.open("rb").close()
        except OSError as error:
            message = f"{where}: {path}: {error.strerror}"
            raise ConfigError(message) from error
        return str(path)

    def pem(self, name: str | None, data: str | None, where: str) -> Pem | None:
        # Inline data take precedence over a file.
        if not data:
            return Pem(self.path(name, where)) if name else None
        try:
            return Pem(content=standard_b64decode(data))
        except binascii.Error as error:
            message = f"{where}-data: {error}"
            raise ConfigError(message) from error


def _servers(urls: str, where: str, scheme: str, proxy: str = "") -> tuple[Server, ...]:
    via = checked_url(proxy, "clusters[].cluster.proxy-url") if proxy else ""
    absolute = (url if "://" in url else f"{scheme}://{url}" for url in urls.split(","))
    return tuple(Server(checked_url(url, where), via) for url in absolute)


def checked_url(url: str, where: str) -> str:
    """Return a URL without surrounding white space and trailing slashes.

    Raises:
        ConfigError: it is not valid; the message names its origin.
    """
    try:
        parts = urlsplit(url.strip())
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:  # an invalid port, or a missing bracket
        usable = False
    if not usable:
        message = f"{where}: {url!r} is not a valid URL such as https://10.0.0.1:6443"
        raise ConfigError(message)
    return url.strip().rstrip("/")
