"""The command ``services``: the Services as one node serves them, and which of them do not work. Changes nothing."""

import re
import sys
from collections.abc import Iterator

import click

from pyproxy.cli.dump_rules import RULE_ATTRIBUTES
from pyproxy.cli.flags import LOG_ATTRIBUTES, SETTINGS, Flag, FlagCommand, config_flags, configured_settings
from pyproxy.cli.objects import OfflineCluster, read_cluster
from pyproxy.cli.output import OutputFormat, print_rows
from pyproxy.cli.service_list import service_document, service_table
from pyproxy.config.config import NODE_NAME, Config, ProxyMode
from pyproxy.config.grammar import SWITCH, TEXT, one_of
from pyproxy.errors import ConfigError
from pyproxy.model.address import Family
from pyproxy.model.names import NamespacedName
from pyproxy.node.local_traffic import nftables_config, node_port_ips
from pyproxy.plan.planner import Planner
from pyproxy.plan.service_table import ServiceRow, service_rows, unserved_row

_EXIT_CODES = "Exit codes: 0 done, 1 with --problems if there are any, 2 wrong flags or input."


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
        *config_flags((*RULE_ATTRIBUTES, *LOG_ATTRIBUTES)),
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
    """Show each frontend of the Services in files: its endpoints on this node, and whether it works or why not."""
    config = configured_settings(ctx, **({"hostname_override": flags["node"]} if flags["node"] else {})).config
    if not config.manifests:
        message = "give --manifests PATH (the files with Services, EndpointSlices and Nodes)"
        raise click.UsageError(message, ctx)
    cluster = read_cluster(config)
    rows = [
        row
        for row in sorted(cluster_rows(cluster, config), key=lambda row: row.service)
        if service in {None, row.service} and namespace in {None, row.service.namespace}
    ]
    if service is not None and not rows:
        message = f"there is no Service {service}"
        raise ConfigError(message)
    if problems:
        rows = [row for row in rows if row.is_problem]
    match output:
        case OutputFormat.JSON | OutputFormat.YAML:
            sys.stdout.write(service_document(rows, cluster.node.name, output))
        case _:
            print_rows(*service_table(rows, wide=output is OutputFormat.WIDE))
    ctx.exit(1 if problems and rows else 0)


def cluster_rows(cluster: OfflineCluster, config: Config) -> Iterator[ServiceRow]:
    """Yield the rows of all Services in files."""
    if config.proxy_mode is ProxyMode.NFTABLES:
        config = nftables_config(config)
    tracker, node = cluster.tracker, cluster.node
    planner = Planner(Family)
    for _ in planner.plan(tracker.services, tracker, node):
        pass
    ips = {family: node_port_ips(config, node, family, node.ips) for family in Family}
    for name, service in tracker.services.items():
        yield from service_rows(service, tracker.slices(name), node, planner, ips)
    yield from map(unserved_row, cluster.unserved)
