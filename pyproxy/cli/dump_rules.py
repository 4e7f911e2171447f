"""The command ``dump-rules``: the rules for objects in files, or what the kernel has now. Changes nothing."""

import asyncio
import logging
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum

import click
import msgspec

from pyproxy.backends.interface import Dumper
from pyproxy.backends.listing import RuleListing
from pyproxy.backends.registry import LiveRules, find_live_rules, open_dumper
from pyproxy.cli.explain_reasons import missing_service
from pyproxy.cli.flags import (
    EXIT_CODES,
    LOG_ATTRIBUTES,
    SETTINGS,
    Flag,
    FlagCommand,
    config_flags,
    configured_settings,
    typed_values,
)
from pyproxy.cli.listing import listing_text, listing_values
from pyproxy.cli.objects import read_cluster, service_name
from pyproxy.config.config import NODE_NAME, Config, ProxyMode
from pyproxy.config.grammar import SWITCH, Grammar, one_of
from pyproxy.errors import ApplyError, ConfigError
from pyproxy.linux.capabilities import require_capabilities
from pyproxy.model.address import Family
from pyproxy.model.names import NamespacedName
from pyproxy.model.node import Node
from pyproxy.model.tracker import Tracker
from pyproxy.model.unserved import UnservedService
from pyproxy.node.context import NodeContext
from pyproxy.plan.planner import final_plans

logger = logging.getLogger(__name__)

# Exit code.
_WRONG_INPUT = 2
RULE_ATTRIBUTES = (
    "config",
    "pyproxy_config",
    "manifests",
    "proxy_mode",
    "iptables_variant",
    "cluster_cidr",
    "detect_local_mode",
    "pod_bridge_interface",
    "pod_interface_name_prefix",
    "masquerade_all",
    "iptables_masquerade_bit",
    "nodeport_addresses",
    "iptables_localhost_nodeports",
    "bind_address",
    "hostname_override",
    "service_proxy_name",
    "ipvs_scheduler",
)
"""The attributes of Config that can change a rule; the command has only these flags."""


class DumpFormat(Enum):
    """An output format; values as ``-o`` takes them."""

    RESTORE = "restore"
    NFT = "nft"
    JSON = "json"
    TEXT = "text"


class FamilyChoice(Enum):
    """A family as ``--family`` takes it."""

    IPV4 = "ipv4"
    IPV6 = "ipv6"

    @property
    def family(self) -> Family:
        """Return the address family."""
        return Family.IPV4 if self is FamilyChoice.IPV4 else Family.IPV6


@click.command(
    "dump-rules",
    cls=FlagCommand,
    params=[
        Flag(
            ["--service"],
            Grammar("NAMESPACE/NAME,...", lambda text: (*map(service_name, text.split(",")),), repeats=True),
            "Show only this Service. May be given several times.",
        ),
        Flag(["--family"], one_of(FamilyChoice), "Show only this address family.  [default: both]"),
        Flag(["-o", "--output"], one_of(DumpFormat), "Output format.  [default: text]"),
        Flag(
            ["--live"],
            SWITCH,
            "Show the rules that the kernel has now, instead of those that it should have. Rules of iptables have their"
            " packet counters.",
        ),
        Flag(["--node"], NODE_NAME, "Same as --hostname-override."),
        *config_flags((*RULE_ATTRIBUTES, *LOG_ATTRIBUTES)),
    ],
    context_settings=SETTINGS,
    epilog=EXIT_CODES,
)
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    service: tuple[NamespacedName, ...] | None,
    family: FamilyChoice | None,
    output: DumpFormat | None,
    live: bool | None,
    **_: object,
) -> None:
    """Show the rules for the objects in files, grouped by Service. Needs neither root nor a cluster, except with --live."""
    config = configured_settings(ctx).config
    if not live and not config.manifests:
        message = "give --manifests PATH (the rules for the objects there) or --live (the rules in the kernel)"
        raise click.UsageError(message, ctx)
    shown = Selection(
        service or (), family.family if family else None, live=bool(live), mode=typed_values(ctx).get("proxy_mode")
    )
    ctx.exit(dump_rules(config, shown, output or DumpFormat.TEXT))


@dataclass(frozen=True, slots=True)
class Selection:
    """The rules to show."""

    services: tuple[NamespacedName, ...]
    """The only Services; empty: all."""
    family: Family | None
    """The only family; None: both."""
    live: bool
    """Those in the kernel, instead of those that it should have."""
    mode: ProxyMode | None
    """The mode that the user gave on the command line; None: with `live`, whichever mode has rules in the kernel."""


def dump_rules(config: Config, selection: Selection, output: DumpFormat) -> int:
    """Print rules; return 2 if an object in the files has a problem, else 0.

    Raises:
        ApplyError: the kernel has no rules of ours.
        ConfigError: the input cannot be read, or the Service is not in it.
        RightsError: this process may not read the kernel's rules.
    """
    # Only the kernel's rules need privileges: the rules for files can be made on any machine.
    if selection.live:
        require_capabilities("dump-rules --live")
        rules = live_rules(config, selection.mode)
    else:
        rules = LiveRules(config.proxy_mode, open_dumper(config), [])
    dumper, listings, problems = rules.dumper, rules.listings, 0
    unserved: Collection[UnservedService] = ()
    if output is DumpFormat.NFT and output.value not in dumper.script_formats:
        message = (
            f"-o nft: the rules of --proxy-mode={rules.mode.value} are not input for nft;"
            f" use -o {' or '.join(sorted(dumper.script_formats))}"
        )
        raise ConfigError(message)
    if not selection.live:
        cluster = read_cluster(config)
        problems, unserved = cluster.problems, cluster.unserved
        listings = tracked_listings(cluster.tracker, cluster.node, dumper)
    if selection.services:
        _require_rules(selection.services, listings, unserved)
        listings = [only_services(listing, selection.services) for listing in listings]
    # A family without Services is omitted, except IPv4, so that the output is not empty.
    first = selection.family or Family.IPV4
    shown = [
        listing
        for listing in listings
        if selection.family in {None, listing.family}
        and (listing.services or (listing.family is first and (listing.chains or listing.common)))
    ]
    # A script has to be loadable as it is: iptables-restore and ip6tables-restore each take one family.
    if output.value in dumper.script_formats and dumper.scripts_hold_one_family and len(shown) > 1:
        message = (
            f"-o {output.value}: the rules of IPv4 and IPv6 are loaded by different programs;"
            " give --family=ipv4 or --family=ipv6"
        )
        raise ConfigError(message)
    sys.stdout.write(_formatted(shown, output, dumper))
    # An object with a problem does not keep the rules of other objects from being shown, but a script has to notice it.
    return _WRONG_INPUT if problems else 0


def live_rules(config: Config, mode: ProxyMode | None = None) -> LiveRules:
    """Return the rules in the kernel.

    Args:
        config: has the variant of iptables, and the name under which pyproxy runs side-by-side.
        mode: the only mode to look for; None or auto: the mode that has rules in the kernel.

    Raises:
        ApplyError: there are none.
    """
    if mode in {None, ProxyMode.AUTO}:
        found = asyncio.run(find_live_rules(config))
        if not found:
            message = "no mode of pyproxy has rules in the kernel"
            raise ApplyError(message, retryable=False)
        # Rules of two modes are in the kernel after a change of the mode, until the stale ones are removed.
        for other in found[1:]:
            logger.warning(
                "%s mode is shown; %s mode has rules in the kernel, too: --proxy-mode=%s shows them",
                found[0].mode.value,
                other.mode.value,
                other.mode.value,
            )
        return found[0]
    dumper = open_dumper(config)
    listings = asyncio.run(dumper.live())
    if not any(listing.services or listing.chains or listing.common for listing in listings):
        message = f"{config.proxy_mode.value} mode has no rules in the kernel"
        raise ApplyError(message, retryable=False)
    return LiveRules(config.proxy_mode, dumper, listings)


def tracked_listings(tracker: Tracker, node: Node, dumper: Dumper) -> list[RuleListing]:
    """Return the rules that the kernel of a Node should have for the objects of a tracker."""
    # The addresses of the Node replace those of its interfaces, which only the node itself knows.
    context = NodeContext(node=node, local_ips=frozenset(node.ips), service_cidrs=tracker.take_service_cidrs())
    return [dumper.planned(family, context, final_plans(tracker, node, family)) for family in Family]


def _require_rules(
    services: Iterable[NamespacedName], listings: Iterable[RuleListing], unserved: Collection[UnservedService]
) -> None:
    # The message has the reason, or the name of a similar Service: an empty listing would leave the user to guess.
    known = {name.service for listing in listings for name in listing.services}
    for service in services:
        if service not in known:
            reason, _ = missing_service(service, unserved, {*known, *(each.name for each in unserved)})
            message = f"--service: {service} has no rules: {reason}"
            raise ConfigError(message)


def only_services(listing: RuleListing, wanted: Collection[NamespacedName]) -> RuleListing:
    """Return the part of a listing that belongs to some Services."""
    # Without the rules that all Services share, and with the chains that have rules of the wanted ones.
    services = {name: rules for name, rules in listing.services.items() if name.service in wanted}
    chains = {(rule.table, rule.chain) for rules in services.values() for rule in rules}
    return RuleListing(listing.family, tuple(key for key in listing.chains if key in chains), services=services)


def _formatted(listings: Iterable[RuleListing], output: DumpFormat, dumper: Dumper) -> str:
    match output:
        case DumpFormat.JSON:
            values = msgspec.json.encode({"families": [listing_values(listing) for listing in listings]})
            return msgspec.json.format(values, indent=2).decode() + "\n"
        case DumpFormat.RESTORE | DumpFormat.NFT:
            return "".join(map(dumper.script, listings))
        case DumpFormat.TEXT:
            return "\n".join(map(listing_text, listings))
