"""The command ``services``: the Services as one node serves them, and which of them do not work. Changes nothing."""

from collections.abc import Collection, Iterator
from typing import NamedTuple, Protocol, TypeVar

import click

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
from pyproxy.cli.objects import OfflineCluster, read_cluster, service_name
from pyproxy.cli.output import OutputFormat, print_document, print_rows
from pyproxy.cli.service_list import service_table
from pyproxy.config.config import NODE_NAME, Config, ProxyMode
from pyproxy.config.grammar import SWITCH, TEXT, one_of
from pyproxy.errors import ConfigError
from pyproxy.model.address import Family
from pyproxy.model.names import NamespacedName
from pyproxy.model.suggestion import suggestion
from pyproxy.node.local_traffic import nftables_config, node_port_ips
from pyproxy.plan.planner import Planner
from pyproxy.plan.service_table import service_rows, unserved_row
from pyproxy.plan.service_values import API_VERSION, KIND, ServiceList, is_problem, service_values

_EXIT_CODES = "Exit codes: 0 done, 1 failed, or with --problems if there are any, 2 wrong flags or input."


@click.command(
    "services",
    cls=FlagCommand,
    params=[
        click.Argument(["service"], required=False, metavar="[NAMESPACE/NAME]", type=service_name),
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
    **_: object,
) -> None:
    """Show each frontend of the Services: its endpoints on this node, and whether it works or why not.

    With --manifests the Services are those in files, and neither root nor a cluster is needed. Otherwise they are those
    that the agent of this node serves, with the state of their rules in the kernel.
    """
    config = configured_settings(ctx).config
    selection = Selection(service, namespace, "the files have" if config.manifests else "the agent knows")
    output = output or OutputFormat.TEXT
    if config.manifests:
        found = read_services(config)
    else:
        # The agent knows which rules the kernel refused. Without an agent the kernel has the rules, but not their reasons.
        try:
            found = ask(config.control_socket, "services", ServiceList)
        except NoAgentError as error:
            # The exit code of --problems would say that all is well.
            if problems:
                message = f"{error}, and the rules in the kernel do not say what works; give --manifests"
                raise NoAgentError(message) from error
            click.echo(f"{error}; this is what the kernel has", err=True)
            kernel = read_kernel(config, typed_values(ctx).get("proxy_mode"))
            kernel.items = selection._replace(owner="the kernel has rules of").of(kernel.items)
            print_kernel_services(kernel, output)
            ctx.exit()
    # To standard error, so that standard output has the table alone and can be piped, as with kubectl.
    for line in _sync_lines(found):
        click.echo(line, err=True)
    found.items = selection.of(found.items)
    if problems:
        found.items = [*filter(is_problem, found.items)]
    if output in {OutputFormat.JSON, OutputFormat.YAML}:
        print_document(found, output)
    else:
        print_rows(*service_table(found.items, wide=output is OutputFormat.WIDE))
    # With --problems the command is a check for scripts. Without it, the command succeeds if it can print the table.
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
        # An unknown name is an error; a namespace without Services is an empty table, as in kubectl.
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
    mode = config.proxy_mode
    if config.proxy_mode is ProxyMode.NFTABLES:
        config = nftables_config(config)
    tracker, node = cluster.tracker, cluster.node
    # The plans themselves are not needed, but with them the planner decides which Service gets a contested frontend.
    planner = Planner(Family)
    for _ in planner.plan(tracker.services, tracker, node):
        pass
    orphans = tracker.orphans()
    ips = {family: node_port_ips(config, node, family, node.ips) for family in Family}
    rows = [*map(unserved_row, cluster.unserved)]
    for name, service in tracker.services.items():
        rows += service_rows(service, tracker.slices(name), node, planner, ips, orphans=orphans)
    rows.sort(key=lambda row: row.service)
    return ServiceList(API_VERSION, KIND, node.name, mode.value, "files", [], [*map(service_values, rows)])


def _sync_lines(found: ServiceList) -> Iterator[str]:
    for family in found.families:
        age = family.last_sync_seconds
        when = "no sync yet" if age is None else f"last sync {age:.0f} s ago"
        error = f"; failing: {' '.join(family.error.split())}" if family.error else ""
        yield f"{found.node}, {found.mode} mode, {family.family}: {when}{error}"
