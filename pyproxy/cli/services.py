"""The command ``services``: the Services as one node serves them, and which of them do not work. Changes nothing."""

import re
import sys
from collections.abc import Collection, Iterator
from typing import NamedTuple, Protocol, TypeVar

import click
from msgspec import to_builtins

from pyproxy.cli.control import NoAgentError, ask
from pyproxy.cli.dump_rules import RULE_ATTRIBUTES
from pyproxy.cli.flags import (
    LOG_ATTRIBUTES,
    SETTINGS,
    Flag,
    FlagCommand,
    config_flags,
    configured_settings,
    typed_values,
)
from pyproxy.cli.kernel_services import print_kernel_services, read_kernel
from pyproxy.cli.objects import OfflineCluster, read_cluster
from pyproxy.cli.output import OutputFormat, document, print_rows
from pyproxy.cli.service_list import service_table
from pyproxy.config.config import NODE_NAME, Config, ProxyMode
from pyproxy.config.grammar import SWITCH, TEXT, one_of
from pyproxy.errors import ConfigError
from pyproxy.model.address import Family
from pyproxy.model.names import NamespacedName
from pyproxy.model.suggestion import suggestion
from pyproxy.node.local_traffic import nftables_config, node_port_ips
from pyproxy.plan.planner import Planner
from pyproxy.plan.service_table import ServiceRow, service_rows, unserved_row
from pyproxy.plan.service_values import API_VERSION, KIND, ServiceList, is_problem, service_values

_EXIT_CODES = "Exit codes: 0 done, 1 failed, or with --problems if there are any, 2 wrong flags or input."


def _parse_service(_ctx: click.Context, _param: click.Parameter, text: str | None) -> NamespacedName | None:
    if text is None:
        return None
    if not re.fullmatch(r"[^/\s]+/[^/\s]+", text):
        message = f"{text!r} is not NAMESPACE/NAME"
        raise click.BadParameter(message)
    return NamespacedName(*text.split("/"))


@click.command(
    "services",
    cls=FlagCommand,
    params=[
        click.Argument(["service"], required=False, metavar="[NAMESPACE/NAME]", callback=_parse_service),
        Flag(["-n", "--namespace"], TEXT, "Show only Services of this namespace."),
        Flag(["--problems"], SWITCH, "Show only what does not work. The exit code is 1 if there is anything to show."),
        Flag(["-o", "--output"], one_of(OutputFormat), "Output format.  [default: text]"),
        Flag(["--node"], NODE_NAME, "Same as --hostname-override."),
        *config_flags((*RULE_ATTRIBUTES, "control_socket", *LOG_ATTRIBUTES)),
    ],
    context_settings=SETTINGS,
    epilog=_EXIT_CODES,
)
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    service: NamespacedName | None,
    namespace: str | None,
    problems: bool | None,
    output: OutputFormat | None,
    **flags: object,
) -> None:
    """Show each frontend of the Services: its endpoints on this node, and whether it works or why not.

    With --manifests the Services are those in files, and neither root nor a cluster is needed. Otherwise they are those
    that the agent of this node serves, with the state of their rules in the kernel.
    """
    config = configured_settings(ctx, **({"hostname_override": flags["node"]} if flags["node"] else {})).config
    selection = Selection(service, namespace, "the files have" if config.manifests else "the agent knows")
    output = output or OutputFormat.TEXT
    if config.manifests:
        found = read_services(config)
    else:
        try:
            found = ask(config.control_socket, "services", ServiceList)
        except NoAgentError as error:
            if problems:
                message = f"{error}, and the rules in the kernel do not say what works; give --manifests"
                raise NoAgentError(message) from error
            click.echo(f"{error}; this is what the kernel has", err=True)
            kernel = read_kernel(config, typed_values(ctx).get("proxy_mode"))
            kernel.items = selection._replace(owner="the kernel has rules of").of(kernel.items)
            print_kernel_services(kernel, output)
            ctx.exit()
    for line in _sync_lines(found):
        click.echo(line, err=True)
    found.items = selection.of(found.items)
    if problems:
        found.items = [*filter(is_problem, found.items)]
    if output in {OutputFormat.JSON, OutputFormat.YAML}:
        values = to_builtins(found)
        sys.stdout.write(document(values.pop("kind"), values, output))
    else:
        print_rows(*service_table(found.items, wide=output is OutputFormat.WIDE))
    ctx.exit(1 if problems and found.items else 0)


class _Named(Protocol):
    @property
    def namespace(self) -> str: ...
    @property
    def name(self) -> str: ...


ItemT = TypeVar("ItemT", bound=_Named)


class Selection(NamedTuple):
    """The Services that the user selected."""

    service: NamespacedName | None
    namespace: str | None
    owner: str
    """Subject and verb for the message that a Service is unknown."""

    def of(self, items: Collection[ItemT]) -> list[ItemT]:
        """Return the items that belong to the selected Services.

        Raises:
            ConfigError: the selected Service is not among them.
        """
        found = [
            item
            for item in items
            if self.service in {None, NamespacedName(item.namespace, item.name)}
            and self.namespace in {None, item.namespace}
        ]
        if self.service is not None and not found:
            known = {str(NamespacedName(item.namespace, item.name)) for item in items}
            hint = suggestion(str(self.service), known)
            if not hint and self.owner != "the files have":
                hint = ": it does not exist, is headless, or is left to another proxy"
            message = f"{self.owner} no Service {self.service}{hint}"
            raise ConfigError(message)
        return found


def read_services(config: Config) -> ServiceList:
    """Return the Services of the files of ``--manifests``, as a node with this configuration would serve them."""
    return list_services(read_cluster(config), config)


def list_services(cluster: OfflineCluster, config: Config) -> ServiceList:
    """Return the Services of a cluster, as its node would serve them with this configuration."""
    rows = sorted(_rows(cluster, config), key=lambda row: row.service)
    items = [service_values(row) for row in rows]
    return ServiceList(API_VERSION, KIND, cluster.node.name, config.proxy_mode.value, "files", [], items)


def _rows(cluster: OfflineCluster, config: Config) -> Iterator[ServiceRow]:
    if config.proxy_mode is ProxyMode.NFTABLES:
        config = nftables_config(config)
    tracker, node = cluster.tracker, cluster.node
    planner = Planner(Family)
    for _ in planner.plan(tracker.services, tracker, node):
        pass
    orphans = tracker.orphans()
    ips = {family: node_port_ips(config, node, family, node.ips) for family in Family}
    for name, service in tracker.services.items():
        yield from service_rows(service, tracker.slices(name), node, planner, ips, orphans=orphans)
    yield from map(unserved_row, cluster.unserved)


def _sync_lines(found: ServiceList) -> Iterator[str]:
    """Yield a line for each address family of an agent: when it last synced, and why the last sync failed."""
    for family in found.families:
        age = family.last_sync_seconds
        when = "no sync yet" if age is None else f"last sync {age:.0f} s ago"
        error = f"; failing: {' '.join(family.error.split())}" if family.error else ""
        yield f"{found.node}, {found.mode} mode, {family.family}: {when}{error}"
