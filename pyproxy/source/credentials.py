"""Where the API server is and how to prove who we are: kubeconfig, exec plugin or service account to an `Access`.

Law of this file: the only one that imports `kubernetes`, and a program of its own (see `access.load_access`); the agent
never imports it. Everything here may block.

The package authenticates: tokens, exec plugins, identity providers, the service account, proxies of the environment.
It reads the files that a kubeconfig names once (37.0.2), so the `Access` gets their paths and not what it read.
"""

import binascii
import contextlib
import sys
import tempfile
from base64 import standard_b64decode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec
from kubernetes.client import Configuration
from kubernetes.client.rest import should_bypass_proxies
from kubernetes.config import ConfigException, incluster_config, kube_config

from pyproxy.errors import ConfigError, SourceError
from pyproxy.source.access import CONFIG_ERROR_STATUS, SOURCE_ERROR_STATUS, Access, Pem, Server, Settings

# The package says that it is typed, and these modules are not.
_incluster_config: Any = incluster_config
_kube_config: Any = kube_config


def main() -> int:
    """Answer the settings on standard input with an `Access`, or with a message and a status that says whose fault."""
    try:
        access = read_access(msgspec.json.decode(sys.stdin.buffer.read(), type=Settings))
    except (ConfigError, SourceError) as error:
        sys.stdout.write(str(error))
        return CONFIG_ERROR_STATUS if isinstance(error, ConfigError) else SOURCE_ERROR_STATUS
    sys.stdout.buffer.write(msgspec.json.encode(access))
    return 0


def read_access(settings: Settings) -> Access:
    """Find the API server and our credentials.

    Raises:
        ConfigError: the configuration cannot work; the message names file and field.
        SourceError: an exec plugin failed.
    """
    if settings.kubeconfig:
        with _naming(f"kubeconfig {settings.kubeconfig}"):
            return _read_kubeconfig(settings)
    if settings.master:
        return Access(servers=_servers(settings.master, "--master", "http"))
    with _naming("neither --kubeconfig nor --master is given, and this is not a pod that may use the API"):
        return _read_service_account(settings.service_account)


@contextlib.contextmanager
def _naming(subject: str) -> Iterator[None]:
    """Turn what can go wrong with a configuration into a ConfigError that begins with its name."""
    try:
        yield
    except (ConfigError, ConfigException, msgspec.MsgspecError, OSError, UnicodeError) as error:
        message = f"{subject}: {error}"
        raise ConfigError(message) from error


def _read_service_account(folder: str) -> Access:
    configuration = Configuration()
    token, ca = f"{folder}/token", f"{folder}/ca.crt"
    _incluster_config.InClusterConfigLoader(token, ca).load_and_set(configuration)
    servers = _servers(configuration.host, "KUBERNETES_SERVICE_HOST", "https")
    return Access(servers=servers, ca=Pem(ca), token_file=token)


class _Cluster(msgspec.Struct, rename="kebab"):
    server: str | None = None
    certificate_authority: str | None = None
    certificate_authority_data: str | None = None
    insecure_skip_tls_verify: bool | None = None
    tls_server_name: str | None = None
    proxy_url: str | None = None


class _User(msgspec.Struct, rename="kebab"):
    client_certificate: str | None = None
    client_certificate_data: str | None = None
    client_key: str | None = None
    client_key_data: str | None = None
    token_file: str | None = msgspec.field(name="tokenFile", default=None)
    exec: dict[str, Any] | None = None


class _Context(msgspec.Struct):
    cluster: str
    user: str | None = None


class _NamedCluster(msgspec.Struct):
    name: str
    cluster: _Cluster


class _NamedUser(msgspec.Struct):
    name: str
    user: _User


class _NamedContext(msgspec.Struct):
    name: str
    context: _Context


class _Kubeconfig(msgspec.Struct, rename="kebab"):
    """The shape of a kubeconfig, so that a mistake in it is told by its field before the package stumbles over it."""

    current_context: str
    clusters: list[_NamedCluster]
    contexts: list[_NamedContext]
    users: list[_NamedUser] | None = None


_Entry = TypeVar("_Entry", _NamedCluster, _NamedUser, _NamedContext)


def _named(entries: Iterable[_Entry], name: str, where: str) -> _Entry:
    for entry in entries:
        if entry.name == name:
            return entry
    message = f"{where}: no entry has the name {name!r}"
    raise ConfigError(message)


def _read_kubeconfig(settings: Settings) -> Access:
    path = settings.kubeconfig
    kubeconfig = msgspec.yaml.decode(Path(path).read_bytes(), type=_Kubeconfig)
    context = _named(kubeconfig.contexts, kubeconfig.current_context, "contexts").context
    cluster = _named(kubeconfig.clusters, context.cluster, "clusters").cluster
    user = _named(kubeconfig.users or (), context.user, "users").user if context.user else _User()
    files = _Files(Path(path).parent.absolute())
    access = Access(
        servers=_kubeconfig_servers(settings, cluster),
        ca=files.pem(cluster.certificate_authority, cluster.certificate_authority_data, "certificate-authority"),
        certificate=files.pem(user.client_certificate, user.client_certificate_data, "client-certificate"),
        key=files.pem(user.client_key, user.client_key_data, "client-key"),
        verify=not cluster.insecure_skip_tls_verify,
        tls_server_name=cluster.tls_server_name or "",
        token_file=files.path(user.token_file, "tokenFile") if user.token_file else "",
    )
    return _authenticate(access, path, user)


def _kubeconfig_servers(settings: Settings, cluster: _Cluster) -> tuple[Server, ...]:
    scheme = "https" if cluster.certificate_authority or cluster.certificate_authority_data else "http"
    if settings.master:
        return _servers(settings.master, "--master", scheme, cluster.proxy_url)
    if not cluster.server:
        message = "clusters[].cluster.server is missing, and --master is not given"
        raise ConfigError(message)
    return _servers(cluster.server, "clusters[].cluster.server", scheme, cluster.proxy_url)


@dataclass(frozen=True, slots=True)
class _Files:
    """The files that a kubeconfig names, relative to its own folder."""

    folder: Path

    def path(self, name: str, where: str) -> str:
        path = self.folder / name
        try:
            path.open("rb").close()
        except OSError as error:
            message = f"{where}: {error}"
            raise ConfigError(message) from error
        return str(path)

    def pem(self, name: str | None, data: str | None, where: str) -> Pem | None:
        if not data:
            return Pem(self.path(name, where)) if name else None
        try:
            return Pem(content=standard_b64decode(data))
        except binascii.Error as error:
            message = f"{where}-data: {error}"
            raise ConfigError(message) from error


def _authenticate(access: Access, path: str, user: _User) -> Access:
    """Let the package find the token, run the exec plugin or ask the identity provider."""
    configuration = Configuration()
    with tempfile.TemporaryDirectory(prefix="pyproxy-") as folder:
        merger = _kube_config.KubeConfigMerger(path)
        loader = _kube_config.KubeConfigLoader(merger.config, None, None, None, merger.save_changes, folder)
        loader.load_and_set(configuration)
        expiry = getattr(loader, "expiry", None)
        authorization = configuration.api_key.get("BearerToken", "").strip()
        access = replace(access, authorization=authorization, expires_at=expiry.timestamp() if expiry else None)
        if user.exec is None or authorization or access.token_file:
            return access
        if access.certificate or not configuration.cert_file or not configuration.key_file:
            # The package has logged why, which went to standard error, and goes on without credentials.
            message = f"kubeconfig {path}: exec plugin {user.exec.get('command')} gave no credentials"
            raise SourceError(message)
        certificate, key = Path(configuration.cert_file), Path(configuration.key_file)
        return replace(access, certificate=Pem(content=certificate.read_bytes()), key=Pem(content=key.read_bytes()))


def _servers(urls: str, where: str, scheme: str, proxy: str | None = None) -> tuple[Server, ...]:
    absolute = (url if "://" in url else f"{scheme}://{url}" for url in urls.split(","))
    return tuple(Server(_checked_url(url, where), _proxy(url, proxy)) for url in absolute)


def _checked_url(url: str, where: str) -> str:
    try:
        parts = urlsplit(url.strip())
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number, a bracket without its pair
        usable = False
    if not usable:
        message = f"{where}: {url!r} is no URL such as https://10.0.0.1:6443"
        raise ConfigError(message)
    return url.strip().rstrip("/")


def _proxy(url: str, proxy: str | None) -> str:
    """Return the proxy for a server: the kubeconfig's, or what HTTPS_PROXY and NO_PROXY say."""
    where = "clusters[].cluster.proxy-url"
    if not proxy:
        where = "proxy of the environment"
        configuration = Configuration(host=url)
        if not configuration.proxy or should_bypass_proxies(url, configuration.no_proxy or ""):
            return ""
        proxy = configuration.proxy if "://" in configuration.proxy else f"http://{configuration.proxy}"
    return _checked_url(proxy, where)
