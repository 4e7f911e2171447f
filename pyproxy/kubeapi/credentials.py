"""Credentials that are not in files: tokens of exec plugins and identity providers, and proxies of the environment.

This is the only module that imports `kubernetes`. It runs as a separate program (see `load_access`), and all of it may
block.

The package reads the files named by a kubeconfig only once (37.0.2), so the `Access` has their paths.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import yaml
from kubernetes.client import Configuration
from kubernetes.client.rest import should_bypass_proxies
from kubernetes.config import ConfigException, kube_config

from pyproxy.errors import ConfigError, SourceError
from pyproxy.kubeapi.access import Access, AccessSettings, Pem, Server
from pyproxy.kubeapi.kubeconfig import CONFIG_ERROR_STATUS, SOURCE_ERROR_STATUS, checked_url, naming, read_settings

# The package declares that it is typed, but this module of it is not.
_kube_config: Any = kube_config


def main() -> int:
    """Read settings from standard input; write an `Access`, or a message with an exit status for the type of error."""
    try:
        access = read_access(msgspec.json.decode(sys.stdin.buffer.read(), type=AccessSettings))
    except (ConfigError, SourceError) as error:
        sys.stdout.write(str(error))
        return CONFIG_ERROR_STATUS if isinstance(error, ConfigError) else SOURCE_ERROR_STATUS
    sys.stdout.buffer.write(msgspec.json.encode(access))
    return 0


def read_access(settings: AccessSettings) -> Access:
    """Find the API server and credentials.

    Raises:
        ConfigError: the configuration cannot work; the message names file and field.
        SourceError: an exec plugin failed.
    """
    found = read_settings(settings)
    # Without a plugin the package is here only for the rules of NO_PROXY: suffixes, CIDR blocks, ports.
    access = replace(found.access, servers=tuple(map(_through_proxy, found.access.servers)))
    if not found.plugin and not found.asks_provider:
        return access
    path = settings.kubeconfig
    configuration = Configuration()
    # The package writes inline certificates to temporary files; the folder bounds their life to this block.
    with naming(f"kubeconfig {path}"), tempfile.TemporaryDirectory(prefix="pyproxy-") as folder:
        try:
            # The package finds the token, runs the exec plugin, or requests a token from the identity provider.
            loader = _loader(path, folder)
            loader.load_and_set(configuration)
        except ConfigException as error:
            raise ConfigError(str(error)) from error
        expiry = getattr(loader, "expiry", None)
        authorization = configuration.api_key.get("BearerToken", "").strip()
        access = replace(access, authorization=authorization, expires_at=expiry.timestamp() if expiry else None)
        if not found.plugin or authorization or access.token_file:
            return access
        if access.certificate or not configuration.cert_file or not configuration.key_file:
            # The package has logged the reason to standard error and continues without credentials.
            message = f"kubeconfig {path}: exec plugin {found.plugin} gave no credentials"
            raise SourceError(message)
        certificate, key = Path(configuration.cert_file), Path(configuration.key_file)
        return replace(access, certificate=Pem(content=certificate.read_bytes()), key=Pem(content=key.read_bytes()))


def _loader(path: str, folder: str) -> Any:  # noqa: ANN401  # see `_kube_config`
    # The package's reader accepts neither nulls nor a context without a cluster, unlike client-go (with `--master`). It gets
    # a corrected copy of a kubeconfig that has either; only without a copy can it write a renewed token into the kubeconfig.
    tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    copy = _without_nulls(tree)
    copy.setdefault("clusters", [])
    context = next(each["context"] for each in copy["contexts"] if each.get("name", "") == copy["current-context"])
    cluster = context.setdefault("cluster", "")
    if not any(each.get("name", "") == cluster for each in copy["clusters"]):
        copy["clusters"].append({"name": cluster, "cluster": {}})
    if copy != tree:
        return _kube_config.KubeConfigLoader(copy, None, None, str(Path(path).parent.absolute()), None, folder)
    merger = _kube_config.KubeConfigMerger(path)
    return _kube_config.KubeConfigLoader(merger.config, None, None, None, merger.save_changes, folder)


def _without_nulls(tree: Any) -> Any:  # noqa: ANN401  # YAML
    match tree:
        case dict():
            return {key: _without_nulls(value) for key, value in tree.items() if value is not None}
        case list():
            return [_without_nulls(value) for value in tree if value is not None]
        case _:
            return tree


def _through_proxy(server: Server) -> Server:
    # proxy-url in the kubeconfig has precedence over HTTPS_PROXY and NO_PROXY, as in client-go.
    configuration = Configuration(host=server.url)
    proxy = configuration.proxy
    if server.proxy or not proxy or should_bypass_proxies(server.url, configuration.no_proxy or ""):
        return server
    return Server(server.url, checked_url(proxy if "://" in proxy else f"http://{proxy}", "proxy of the environment"))
