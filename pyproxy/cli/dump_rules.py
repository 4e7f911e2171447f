"""``dump-rules``: what would be programmed for objects in files, or what is in the kernel now. Changes nothing."""

import asyncio
import sys
from collections.abc import Iterable
from typing import TextIO

import msgspec

from pyproxy.backends.interface import Dumper
from pyproxy.backends.listing import RuleListing
from pyproxy.backends.registry import open_dumper
from pyproxy.cli.listing import listing_text, listing_values
from pyproxy.config.config import Config, ProxyMode
from pyproxy.errors import ConfigError
from pyproxy.manifests.files import FileObjects, read_objects
from pyproxy.model.address import Family
from pyproxy.model.change import Kind, Replaced
from pyproxy.model.node import Node
from pyproxy.model.tracker import Tracker
from pyproxy.node.context import NodeContext
from pyproxy.node.node_name import own_node, own_node_name
from pyproxy.plan.claims import Claims
from pyproxy.plan.service_plan import ServicePlan, plan_service

_WRONG_INPUT = 2


def dump_rules(config: Config, *, service: str | None, output: str, live: bool) -> int:
    """Print rules; return 2 if some object could not be used as it stands, else 0.

    Raises:
        ConfigError: the input cannot be read, or the Service is not in it.
    """
    if (output, config.proxy_mode) == ("nft", ProxyMode.IPTABLES):
        message = "-o nft: the rules of --proxy-mode=iptables are input for iptables-restore; use -o restore"
        raise ConfigError(message)
    dumper = open_dumper(config)
    if live:
        listings, problems = asyncio.run(dumper.live()), 0
    else:
        objects = read_objects(config.manifests, config.service_proxy_name, config.own_ports)
        problems = report(objects, sys.stderr)
        listings = planned_listings(config, objects, dumper)
    if service is not None:
        listings = [only_service(listing, service) for listing in listings]
        if not any(listing.services for listing in listings):
            message = f"--service: no rules of {service} are there"
            raise ConfigError(message)
    shown = [listing for listing in listings if _is_worth_showing(listing)]
    sys.stdout.write(_written(shown, output, dumper))
    return _WRONG_INPUT if problems else 0


def report(objects: FileObjects, stream: TextIO) -> int:
    """Print what is wrong with the input, and what was passed over; return the number of problems."""
    for problem in objects.problems:
        print(problem, file=stream)
    if objects.skipped:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(objects.skipped.items()))
        print(f"passed over: {kinds}", file=stream)
    return len(objects.problems)


def planned_listings(config: Config, objects: FileObjects, dumper: Dumper) -> list[RuleListing]:
    """Return the rules that belong into the kernel for objects."""
    name = own_node_name(config)
    node = own_node(config, next((node for node in objects.nodes if node.name == name), None), name)
    return tracked_listings(tracked(objects), node, dumper)


def tracked(objects: FileObjects) -> Tracker:
    """Return a tracker that knows the objects of files, but for Nodes."""
    tracker = Tracker()
    tracker.apply(Replaced(Kind.SERVICE, objects.services))
    tracker.apply(Replaced(Kind.ENDPOINT_SLICE, objects.slices))
    tracker.apply(Replaced(Kind.SERVICE_CIDR, objects.service_cidrs))
    return tracker


def tracked_listings(tracker: Tracker, node: Node, dumper: Dumper) -> list[RuleListing]:
    """Return the rules that belong into the kernel of a Node for what a tracker knows."""
    context = NodeContext(node=node, local_ips=frozenset(node.ips), service_cidrs=tracker.take_service_cidrs())
    return [dumper.planned(family, context, _effective_plans(tracker, node, family)) for family in Family]


def _effective_plans(tracker: Tracker, node: Node, family: Family) -> list[ServicePlan]:
    claims = Claims()
    plans = [
        plan
        for service in tracker.services.values()
        for plan in plan_service(service, tracker.slices(service.name), node, family).values()
    ]
    for plan in plans:
        claims.update(plan.name, plan)
    return [effective for plan in plans if (effective := claims.effective(plan.name)) is not None]


def only_service(listing: RuleListing, service: str) -> RuleListing:
    """Return the part of a listing that belongs to the Service ``namespace/name``."""
    services = {name: rules for name, rules in listing.services.items() if str(name.service) == service}
    chains = {(rule.table, rule.chain) for rules in services.values() for rule in rules}
    return RuleListing(listing.family, tuple(key for key in listing.chains if key in chains), services=services)


def _is_worth_showing(listing: RuleListing) -> bool:
    """Say whether a family has Services; IPv4 is shown in any case, so that there is something to see."""
    return bool(listing.services) or (listing.family is Family.IPV4 and bool(listing.chains or listing.common))


def _written(listings: Iterable[RuleListing], output: str, dumper: Dumper) -> str:
    match output:
        case "json":
            values = msgspec.json.encode({"families": [listing_values(listing) for listing in listings]})
            return msgspec.json.format(values, indent=2).decode() + "\n"
        case "restore" | "nft":
            return "".join(map(dumper.script, listings))
        case _:
            return "\n".join(map(listing_text, listings))
