"""The command ``check-config``: what a configuration results in, without an agent.

It checks flags and configuration files, then the objects in files, or the way to the API server. It reads files only: no
exec plugin runs, and no server is contacted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click
from msgspec import Struct

from pyproxy.cli.flags import EXIT_CODES, SETTINGS, Flag, GroupedFlagCommand, config_flags, typed_values
from pyproxy.cli.output import API_VERSION, OutputFormat, print_document
from pyproxy.config.config import OPTIONS, Config
from pyproxy.config.grammar import SWITCH, one_of
from pyproxy.config.settings import resolve_settings
from pyproxy.errors import ConfigError, SourceError
from pyproxy.kubeapi.access import AccessSettings
from pyproxy.kubeapi.kubeconfig import read_settings
from pyproxy.manifests.files import FileObjects, read_objects
from pyproxy.manifests.manifest import API_VERSIONS
from pyproxy.model.names import NamespacedName, Protocol
from pyproxy.model.suggestion import suggestion

# The schedulers of Linux (`net/netfilter/ipvs/Kconfig`).
_SCHEDULERS = ("rr", "wrr", "lc", "wlc", "fo", "ovf", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq", "twos")


@click.command(
    "check-config",
    cls=GroupedFlagCommand,
    params=[
        Flag(["--strict"], SWITCH, "Exit with 2 if there are warnings."),
        Flag(["-o", "--output"], one_of(OutputFormat), "Output format.  [default: text]"),
        *config_flags(OPTIONS),
    ],
    context_settings=SETTINGS,
    epilog=EXIT_CODES,
)
@click.pass_context
def command(ctx: click.Context, /, *, strict: bool | None, output: OutputFormat | None, **_: object) -> None:
    """Check flags, configuration files, and the objects or the kubeconfig that they name. Changes nothing.

    Takes all flags of run. Prints each problem to standard error, with its file, object and field, and the resulting
    configuration to standard output.
    """
    # Not `configured_settings`: warnings are part of the result here, and not lines of a log.
    settings = resolve_settings(typed_values(ctx))
    result = check(settings.config)
    warnings = (*settings.warnings, *result.warnings)
    if output in {OutputFormat.JSON, OutputFormat.YAML}:
        lists = [*result.problems], [*warnings], [*result.notes]
        print_document(CheckDocument(API_VERSION, "ConfigurationCheck", settings.in_words(), *lists), output)
    else:
        for warning in warnings:
            click.echo(f"Warning: {warning}", err=True)
        for problem in result.problems:
            click.echo(f"Error: {problem}", err=True)
        for line in (f"configuration: {settings.in_words()}", *result.notes):
            click.echo(line)
        click.echo(f"errors: {len(result.problems)}, warnings: {len(warnings)}")
    ctx.exit(2 if result.problems or (strict and warnings) else 0)


class CheckDocument(Struct, rename="camel", forbid_unknown_fields=True):
    """The document that ``pyproxy check-config -o json`` prints."""

    api_version: Literal["pyproxy.io/v1alpha1"]
    kind: Literal["ConfigurationCheck"]
    configuration: str
    errors: list[str]
    warnings: list[str]
    notes: list[str]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of a check, in lines of text."""

    problems: tuple[str, ...] = ()
    """Each with file, object and field."""
    warnings: tuple[str, ...] = ()
    """What is probably a mistake, although an agent would start."""
    notes: tuple[str, ...] = ()
    """What was found, and what could not be checked on this machine."""


def check(config: Config) -> CheckResult:
    """Check the files that a configuration names: the objects, or else the kubeconfig."""
    # With --manifests an agent contacts no API server, so a kubeconfig beside it does not matter.
    if config.manifests:
        try:
            objects = read_objects(config.manifests, config.service_proxy_name, config.own_ports)
        except SourceError as error:
            return CheckResult(problems=(f"--manifests: {error}",))
        counts = {"Services": objects.services, "EndpointSlices": objects.slices, "Nodes": objects.nodes}
        found = ", ".join(f"{len(items)} {kind}" for kind, items in counts.items())
        return CheckResult(
            tuple(map(str, objects.problems)),
            (*_scheduler_warnings("--ipvs-scheduler", config.ipvs.scheduler), *_object_warnings(objects, config)),
            (f"{config.manifests}: {found}",),
        )
    warnings = tuple(_scheduler_warnings("--ipvs-scheduler", config.ipvs.scheduler))
    # A configuration is often checked where it is written, not on the node: a file of the node may be absent here.
    if config.kubeconfig and not Path(config.kubeconfig).exists():
        missing = f"--kubeconfig: {config.kubeconfig} is not on this machine and was not checked"
        return CheckResult(warnings=(*warnings, missing))
    settings = AccessSettings(kubeconfig=config.kubeconfig, master=config.master, api_servers=config.api_servers)
    if settings == AccessSettings():
        return CheckResult(warnings=warnings, notes=("API server: that of the pod's service account",))
    try:
        result = read_settings(settings)
    except ConfigError as error:
        return CheckResult(problems=(str(error),), warnings=warnings)
    servers = ", ".join(server.name for server in result.access.servers)
    return CheckResult(warnings=warnings, notes=(f"API servers: {servers}",))


def _object_warnings(objects: FileObjects, config: Config) -> Iterator[str]:
    # Most skipped kinds are intended (Deployments beside their Services); one that resembles a known kind is a typing error.
    for kind in sorted(objects.skipped):
        if hint := suggestion(kind, API_VERSIONS):
            yield f"{config.manifests}: objects of the unknown kind {kind} are skipped{hint}"
    names = [node.name for node in objects.nodes]
    if config.hostname_override and names and config.hostname_override not in names:
        hint = suggestion(config.hostname_override, names)
        yield f"--hostname-override: no Node has the name {config.hostname_override}{hint}"
    ports: dict[NamespacedName, set[tuple[str, Protocol]]] = {}
    for service in objects.services:
        yield from _scheduler_warnings(f"Service {service.name}", service.scheduler)
        ports[service.name] = {(port.name, port.protocol) for port in service.ports}
    # A slice port belongs to the Service port of the same name and protocol; numbers do not matter.
    for one in objects.slices:
        wanted = ports.get(one.service)
        for port in one.ports:
            if wanted is not None and (port.name, port.protocol) not in wanted:
                known = ", ".join(sorted(f"{name!r}/{protocol.value}" for name, protocol in wanted))
                yield (
                    f"EndpointSlice {one.name}: port {port.name!r}/{port.protocol.value} matches no port of Service"
                    f" {one.service}, which has {known}"
                )


def _scheduler_warnings(owner: str, scheduler: str) -> Iterator[str]:
    # A warning: schedulers are modules, and the kernel of the node may have one that Linux itself does not.
    if scheduler and scheduler not in _SCHEDULERS:
        yield f"{owner}: the IPVS scheduler {scheduler} is not known{suggestion(scheduler, _SCHEDULERS)}"
