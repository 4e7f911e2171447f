"""The command ``explain``: what happens to the first packet of a connection, and why. Sends no packet, changes nothing."""

import sys
from dataclasses import replace
from pathlib import Path

import click

from pyproxy.backends.explanation import Fate, Host
from pyproxy.backends.hooks import UNKNOWN_INTERFACE
from pyproxy.backends.registry import open_dumper
from pyproxy.cli.dump_rules import RULE_ATTRIBUTES
from pyproxy.cli.explain_ends import EndKind, KnownNames, NoSuchServiceError, Source, common_family, packet_of
from pyproxy.cli.explain_fields import service_of
from pyproxy.cli.explain_reasons import (
    missing_service,
    with_foreign_reason,
    with_objects,
)
from pyproxy.cli.explain_report import Explanation, MissingService, explanation_document, print_explanation
from pyproxy.cli.explain_rules import read_node_rules
from pyproxy.cli.flags import LOG_ATTRIBUTES, SETTINGS, Flag, FlagCommand, config_flags, configured_settings
from pyproxy.cli.objects import offline_cluster
from pyproxy.cli.output import OutputFormat
from pyproxy.config.config import NODE_NAME, Config
from pyproxy.config.grammar import TEXT, one_of
from pyproxy.errors import ConfigError
from pyproxy.manifests.files import read_objects
from pyproxy.model.address import parse_ip
from pyproxy.model.node import DetectLocalMode, Node
from pyproxy.node.context import NodeContext
from pyproxy.node.node_name import own_node_name
from pyproxy.plan.planner import final_plans

NO_SERVICE = 6
"""Exit code."""
# From 4 on: 1 is a failure, 2 wrong input, and 3 a difference found by `plan` and `drift`.
_EXIT_CODES = {Fate.FORWARDED: 0, Fate.REJECTED: 4, Fate.DROPPED: 5, Fate.UNCHANGED: NO_SERVICE}
_INTERFACE_MODES = (DetectLocalMode.BRIDGE_INTERFACE, DetectLocalMode.INTERFACE_NAME_PREFIX)
_OTHER_INTERFACE = "eth0"
"""The interface of packets from outside if pods are detected by their interface: any name that is not a pod's."""


@click.command(
    "explain",
    cls=FlagCommand,
    params=[
        click.Argument(["source"], metavar="SRC"),
        click.Argument(["destination"], metavar="DST"),
        Flag(["-o", "--output"], one_of(OutputFormat), "Output format: text, json or yaml.  [default: text]"),
        Flag(["--node"], NODE_NAME, "The node that gets the packet.  [default: that of SRC or DST]"),
        Flag(
            ["--rules"],
            TEXT,
            "Explain the rules in a file, the output of iptables-save, ip6tables-save or nft list ruleset (or several of"
            " them) on any node with pyproxy or kube-proxy. Needs no other file.",
        ),
        Flag(["--node-ip"], TEXT, "With --rules: the addresses of that node, with commas."),
        Flag(["--in-interface"], TEXT, "The interface by which the packet arrives, if a rule depends on it."),
        *config_flags((*RULE_ATTRIBUTES, "control_socket", *LOG_ATTRIBUTES)),
    ],
    context_settings=SETTINGS,
    epilog="Exit codes: 0 forwarded to an endpoint, 1 failed, 2 wrong flags or input, 4 rejected, 5 dropped, 6 no Service.",
)
@click.pass_context
def command(  # noqa: PLR0913  # one for each flag
    ctx: click.Context,
    /,
    *,
    source: str,
    destination: str,
    output: OutputFormat | None,
    rules: str | None,
    node_ip: str | None,
    in_interface: str | None,
    **_: object,
) -> None:
    """Explain what happens to a new connection from SRC to DST, rule by rule, and what to do if it fails.

    With --manifests the objects are those in files, and neither root nor a cluster is needed. Otherwise the rules are those
    in the kernel of this node, and the objects those of its agent. No packet is sent. SRC is an address, a pod
    (NAMESPACE/NAME or NAME), a node, outside, or localhost. DST is ADDRESS:PORT, NAMESPACE/NAME[:PORT] of a Service, a DNS
    name such as web.default.svc, or a node port; /UDP or /SCTP selects the protocol.
    """
    config = configured_settings(ctx).config
    if ctx.params["node"] and (rules or not config.manifests):
        message = "--node needs --manifests; without it the rules are those of this node, or of the file of --rules"
        raise click.UsageError(message, ctx)
    found: Explanation | MissingService
    if rules:
        found = explain_dump(rules, source, destination, node_ip or "", in_interface)
    elif config.manifests:
        found = explain_files(config, source, destination, in_interface)
    else:
        from pyproxy.cli.explain_node import explain_node  # noqa: PLC0415  # files need no netlink

        found = explain_node(config, source, destination, in_interface)
    if output in {OutputFormat.JSON, OutputFormat.YAML}:
        sys.stdout.write(explanation_document(found, output))
    else:
        print_explanation(found)
    ctx.exit(_EXIT_CODES[found.fate])


def explain_dump(file: str, source: str, destination: str, node_ip: str, in_interface: str | None) -> Explanation:
    """Explain the rules in a file.

    Raises:
        ConfigError: a file or an argument cannot be used.
    """
    try:
        # "-" is standard input, as for the files of kubectl: the rules often come from another node through ssh.
        rules = read_node_rules(sys.stdin.read() if file == "-" else Path(file).read_text())
        ips = [parse_ip(text.strip()) for text in node_ip.split(",") if text.strip()]
    except OSError as error:
        message = f"--rules: {file}: {error.strerror}"
        raise ConfigError(message) from error
    except ValueError as error:  # also if the file is not text
        message = f"--rules, --node-ip: {error}"
        raise ConfigError(message) from error
    node = Node(name="node", ips=tuple(ips))
    names = KnownNames({}, (node,), ())
    client, target = names.source(source), names.destination(destination, ips)
    packet = packet_of(client, target, node, in_interface or UNKNOWN_INTERFACE)
    found = rules.interpret(packet, Host(frozenset(ips)))
    explanation = Explanation(packet, client, "", f"rules of {file}", found, service_of(found))
    return with_foreign_reason(explanation)


def explain_files(
    config: Config, source: str, destination: str, in_interface: str | None
) -> Explanation | MissingService:
    """Explain the rules for the objects in files.

    Raises:
        ConfigError: the files or the arguments cannot be used.
    """
    objects = read_objects(config.manifests, config.service_proxy_name, config.own_ports, with_pods=True)
    names = KnownNames({each.name: each for each in objects.services}, objects.nodes, objects.pods)
    client = names.source(source)
    try:
        name = config.hostname_override or _node_of(names, client, destination)
        config = replace(config, hostname_override=name)
        cluster = offline_cluster(objects, config, own_node_name(config))
        names = replace(
            # The node as its flags make it: they override the values of its object.
            names,
            nodes=(cluster.node, *(node for node in objects.nodes if node.name != cluster.node.name)),
        )
        target = names.destination(destination, cluster.node.ips)
    except NoSuchServiceError as error:
        return MissingService(str(error.name), *missing_service(error.name, objects.unserved, names.services))
    family = common_family(client, target)
    # Without --in-interface: rules depend on the interface only if pods are detected by it.
    arrives = in_interface or UNKNOWN_INTERFACE
    if not in_interface and config.detect_local_mode in _INTERFACE_MODES:
        arrives = _OTHER_INTERFACE
        if client.kind is EndKind.POD and client.node_name in {"", cluster.node.name}:
            is_bridge = config.detect_local_mode is DetectLocalMode.BRIDGE_INTERFACE
            arrives = config.pod_bridge_interface if is_bridge else f"{config.pod_interface_name_prefix}0"
    packet, host = packet_of(client, target, cluster.node, arrives), Host(frozenset(cluster.node.ips))
    context = NodeContext(node=cluster.node, local_ips=host.ips, service_cidrs=cluster.tracker.take_service_cidrs())
    plans = final_plans(cluster.tracker, cluster.node, family)
    found = open_dumper(config).interpreter(family, context, plans)(packet, host)
    explanation = Explanation(packet, client, cluster.node.name, config.proxy_mode.value, found)
    return with_objects(explanation, cluster, plans.values(), objects.pods, host)


def _node_of(names: KnownNames, client: Source, destination: str) -> str:
    """Return the node that gets the packet.

    Raises:
        ConfigError: nothing says which one.
    """
    if not destination.partition("/")[0].isdigit():
        # The rules of the client's node do not change a packet to another node.
        target = names.destination(destination, ())
        if name := names.node_with(target.ips.values()):
            return name
    if client.node_name:
        return client.node_name
    if len(names.nodes) == 1:
        return names.nodes[0].name
    message = "--node: give the node that gets the packet; SRC and DST are on none, and the files have several Nodes"
    raise ConfigError(message if names.nodes else "--node: give the node that gets the packet; the files have no Node")
