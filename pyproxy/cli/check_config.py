"""The command ``check-config``: what a configuration results in, without an agent.

It checks flags and configuration files, then the objects in files, or the way to the API server. It reads files only: no
exec plugin runs, and no server is contacted.
"""

from dataclasses import dataclass
from pathlib import Path

import click

from pyproxy.cli.flags import EXIT_CODES, SETTINGS, GroupedFlagCommand, config_flags, typed_values
from pyproxy.config.config import OPTIONS, Config
from pyproxy.config.settings import resolve_settings
from pyproxy.errors import ConfigError, SourceError
from pyproxy.kubeapi.access import AccessSettings
from pyproxy.kubeapi.kubeconfig import read_settings


@click.command(
    "check-config",
    cls=GroupedFlagCommand,
    params=config_flags(OPTIONS),
    context_settings=SETTINGS,
    epilog=EXIT_CODES,
)
@click.pass_context
def command(ctx: click.Context, /, **_: object) -> None:
    """Check flags, configuration files, and the objects or the kubeconfig that they name. Changes nothing.

    Takes all flags of run. Prints each problem to standard error, with its file, object and field, and the resulting
    configuration to standard output.
    """
    settings = resolve_settings(typed_values(ctx))
    result = check(settings.config)
    for warning in settings.warnings:
        click.echo(f"Warning: {warning}", err=True)
    for problem in result.problems:
        click.echo(f"Error: {problem}", err=True)
    for line in (f"configuration: {settings.in_words()}", *result.notes):
        click.echo(line)
    click.echo(f"errors: {len(result.problems)}, warnings: {len(settings.warnings)}")
    ctx.exit(2 if result.problems else 0)


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of a check, in lines of text."""

    problems: tuple[str, ...] = ()
    """Each with file, object and field."""
    notes: tuple[str, ...] = ()
    """What was found, and what could not be checked on this machine."""


def check(config: Config) -> CheckResult:
    """Check the files that a configuration names: the objects, or else the kubeconfig."""
    if config.manifests:
        from pyproxy.manifests.files import read_objects  # noqa: PLC0415  # YAML, which a kubeconfig may not need

        try:
            objects = read_objects(config.manifests, config.service_proxy_name, config.own_ports)
        except SourceError as error:
            return CheckResult(problems=(f"--manifests: {error}",))
        counts = {"Services": objects.services, "EndpointSlices": objects.slices, "Nodes": objects.nodes}
        found = ", ".join(f"{len(items)} {kind}" for kind, items in counts.items())
        return CheckResult(tuple(map(str, objects.problems)), (f"{config.manifests}: {found}",))
    if config.kubeconfig and not Path(config.kubeconfig).exists():
        return CheckResult(notes=(f"kubeconfig {config.kubeconfig} is not on this machine and was not checked",))
    settings = AccessSettings(kubeconfig=config.kubeconfig, master=config.master, api_servers=config.api_servers)
    if settings == AccessSettings():
        return CheckResult(notes=("API server: that of the pod's service account",))
    try:
        result = read_settings(settings)
    except ConfigError as error:
        return CheckResult(problems=(str(error),))
    servers = ", ".join(server.name for server in result.access.servers)
    return CheckResult(notes=(f"API servers: {servers}",))
