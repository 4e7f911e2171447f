"""What a configuration leads to, looked at without an agent: objects in files, and the way to the API server.

Law of this file: files are read, nothing is run and nobody is asked. What is wrong with flags and configuration files
themselves has been told before there is a `Config`.
"""

from dataclasses import dataclass
from pathlib import Path

from pyproxy.config.config import Config
from pyproxy.errors import ConfigError, SourceError
from pyproxy.kubeapi.access import AccessSettings
from pyproxy.kubeapi.kubeconfig import read_settings


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What there is to say, in lines."""

    problems: tuple[str, ...] = ()
    """What is wrong, with file, object and field."""
    notes: tuple[str, ...] = ()
    """What was found, and what could not be looked at here."""


def check(config: Config) -> CheckResult:
    """Look at what a configuration names."""
    return _check_objects(config) if config.manifests else _check_access(config)


def _check_objects(config: Config) -> CheckResult:
    from pyproxy.manifests.files import read_objects  # noqa: PLC0415  # YAML, which an API server's client has no use for

    try:
        objects = read_objects(config.manifests, config.service_proxy_name, config.own_ports)
    except SourceError as error:
        return CheckResult(problems=(f"--manifests: {error}",))
    counts = {"Services": objects.services, "EndpointSlices": objects.slices, "Nodes": objects.nodes}
    found = ", ".join(f"{len(items)} {kind}" for kind, items in counts.items())
    return CheckResult(tuple(map(str, objects.problems)), (f"{config.manifests}: {found}",))


def _check_access(config: Config) -> CheckResult:
    if config.kubeconfig and not Path(config.kubeconfig).exists():
        return CheckResult(notes=(f"kubeconfig {config.kubeconfig} is not on this machine, and was not looked at",))
    settings = AccessSettings(kubeconfig=config.kubeconfig, master=config.master, api_servers=config.api_servers)
    if settings == AccessSettings():
        return CheckResult(notes=("API server: that of the pod's service account",))
    try:
        found = read_settings(settings)
    except ConfigError as error:
        return CheckResult(problems=(str(error),))
    servers = ", ".join(server.name for server in found.access.servers)
    return CheckResult(notes=(f"API servers: {servers}",))
