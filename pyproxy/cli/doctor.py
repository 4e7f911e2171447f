"""The command ``doctor``: checks this node, and the objects in files, and says what to do. Changes nothing."""

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Literal

import click
from msgspec import Meta, Struct
from rich.text import Text

from pyproxy.cli.control import ControlError, NoAgentError, ask
from pyproxy.cli.flags import SETTINGS, Flag, FlagCommand, config_flags, configured_settings
from pyproxy.cli.objects import OfflineCluster, read_cluster
from pyproxy.cli.output import API_VERSION, OutputFormat, console, print_document
from pyproxy.cli.services import list_services
from pyproxy.config.config import NODE_NAME, Config
from pyproxy.config.grammar import SWITCH, one_of
from pyproxy.doctor.agent import ask_agent
from pyproxy.doctor.checks import CHECKS, examine
from pyproxy.doctor.finding import Finding, Severity
from pyproxy.doctor.inputs import Inputs, Objects
from pyproxy.doctor.installed_rules import find_installed_rules
from pyproxy.linux.addresses import kernel_families
from pyproxy.model.address import parse_ip, parse_network
from pyproxy.model.node import Node
from pyproxy.node.node_name import own_node, own_node_name
from pyproxy.plan.service_values import ServiceList

_ATTRIBUTES = (
    *("config", "pyproxy_config", "manifests", "hostname_override", "service_proxy_name", "proxy_mode", "bind_address"),
    *(
        "cluster_cidr",
        "detect_local_mode",
        "iptables_localhost_nodeports",
        "iptables_masquerade_bit",
        "nodeport_addresses",
        "metrics_bind_address",
        "healthz_bind_address",
        "control_socket",
        "logging_format",
    ),
)
_EXIT_CODES = "Exit codes: 0 fine, 1 warnings, 2 failures, or wrong flags or input."
# An information is nothing to act on, so monitoring must not see a failure.
_STATUS = {Severity.OK: 0, Severity.INFO: 0, Severity.WARN: 1, Severity.FAIL: 2}
_STYLES = {Severity.OK: "green", Severity.INFO: "cyan", Severity.WARN: "yellow", Severity.FAIL: "bold red"}
# Columns are not padded beyond this width, so that one long line does not make all lines long.
_WIDEST = 100


class FindingValues(Struct, rename="camel", forbid_unknown_fields=True):
    """The result of a check; a check can have several."""

    check: Annotated[str, Meta(description="Name of the check, as in docs/operations.md.")]
    severity: Severity
    text: str
    evidence: Annotated[str, Meta(description="Where this can be seen. Empty if the severity is ok.")]
    fix: Annotated[str, Meta(description="What to do. Empty if nothing needs to be done.")]


class DoctorReport(Struct, rename="camel", forbid_unknown_fields=True):
    """The document that ``pyproxy doctor -o json`` prints."""

    api_version: Literal["pyproxy.io/v1alpha1"]
    kind: Literal["DoctorReport"]
    node: Annotated[str, Meta(description="Name of the node.")]
    findings: Annotated[list[FindingValues], Meta(description="The most serious first.")]


@click.command(
    "doctor",
    cls=FlagCommand,
    params=[
        Flag(["--offline"], SWITCH, "Check only the files of --manifests, and nothing on this machine."),
        Flag(["-o", "--output"], one_of(OutputFormat), "Output format.  [default: text]"),
        Flag(["--node"], NODE_NAME, "Same as --hostname-override."),
        Flag(["-v", "--verbose"], SWITCH, "Also list the checks that found nothing."),
        *config_flags(_ATTRIBUTES),
    ],
    context_settings=SETTINGS,
    epilog=_EXIT_CODES,
)
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    offline: bool | None,
    output: OutputFormat | None,
    verbose: bool | None,
    **_: object,
) -> None:
    """Check this node: kernel settings, rules, the agent, and the Services of the agent or of files. Changes nothing.

    Needs root; a check that cannot run is reported.
    """
    if output is OutputFormat.WIDE:
        message = "-o: wide is not an output format of this command"
        raise click.UsageError(message, ctx)
    config = configured_settings(ctx).config
    if offline and not config.manifests:
        message = "--offline needs --manifests PATH"
        raise click.UsageError(message, ctx)
    cluster = read_cluster(config) if config.manifests else None
    node = cluster.node if cluster else own_node(config, None, own_node_name(config))
    findings = asyncio.run(_examine(config, cluster, node, offline=bool(offline)))
    if output in (OutputFormat.JSON, OutputFormat.YAML):
        items = [FindingValues(each.check, each.severity, each.text, each.evidence, each.fix) for each in findings]
        print_document(DoctorReport(API_VERSION, "DoctorReport", node.name, items), output)
    else:
        print_findings(findings, verbose=bool(verbose))
    # The exit code is that of the most serious finding, for use in scripts and in monitoring.
    ctx.exit(max((_STATUS[finding.severity] for finding in findings), default=0))


async def _examine(config: Config, cluster: OfflineCluster | None, node: Node, *, offline: bool) -> list[Finding]:
    # Files have precedence over a running agent. Without either the checks of Services report that they have no input.
    objects, error = None, ""
    if cluster is not None:
        objects = Objects(tuple(list_services(cluster, config).items), cluster.nodes)
    elif config.control_socket:
        try:
            answer = await asyncio.to_thread(ask, config.control_socket, "services", ServiceList)
            own = answer.node_object
            objects = Objects(tuple(answer.items), has_own_node=own is not None)
            ips, pods = (own.addresses, own.pod_cidrs) if own else ([], [])
            node = replace(
                node, name=answer.node, ips=tuple(map(parse_ip, ips)), pod_cidrs=tuple(map(parse_network, pods))
            )
        except NoAgentError:
            pass
        except ControlError as refused:
            error = str(refused)
    if offline:
        checks = tuple(check for check in CHECKS if not check.needs_node)
        return await examine(Inputs(config, node, objects), checks)
    # Both take time, and neither depends on the other.
    agent, rules = await asyncio.gather(ask_agent(config), find_installed_rules())
    return await examine(Inputs(config, node, objects, error, agent, rules, kernel_families()))


def print_findings(findings: Iterable[Finding], *, verbose: bool) -> None:
    """Print a line for each finding. Checks that found nothing or did not run are only counted, unless `verbose`."""
    findings = list(findings)
    shown = [each for each in findings if verbose or not (each.severity is Severity.OK or each.is_skipped)]
    target = console()
    # Not a `rich.table`: text and evidence stay on one line each, so that grep finds a finding with its fix.
    texts, places = (
        min(max(map(len, column), default=0), _WIDEST)
        for column in ([each.text for each in shown], [each.evidence for each in shown])
    )
    for each in shown:
        word = each.severity.value if each.severity is Severity.OK else each.severity.value.upper()
        fix = f"fix: {each.fix}" if each.fix else ""
        rest = f"  {each.text:{texts}}  {each.evidence:{places}}  {fix}".rstrip()
        target.print(Text.assemble((f"{word:4}", _STYLES[each.severity]), rest), soft_wrap=True)
    # Most checks find nothing, and a list of them would hide what was found.
    if not verbose:
        fine = sum(each.severity is Severity.OK for each in findings)
        skipped = sum(each.is_skipped for each in findings)
        noun = "check" if fine == 1 else "checks"
        words = f"{fine}{' more' if shown else ''} {noun}{f', {skipped} not run' if skipped else ''} (-v)"
        target.print(Text.assemble(("ok  ", _STYLES[Severity.OK]), f"  {words}"), soft_wrap=True)
