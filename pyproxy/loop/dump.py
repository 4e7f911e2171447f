"""``dump-rules``: what would be programmed for objects in files, or what is in the kernel now. Changes nothing."""

import asyncio
import sys
from collections.abc import Iterable
from typing import TextIO

import msgspec

from pyproxy.apply.iptables import Variant, is_available, save
from pyproxy.apply.iptables_variant import detect_variant
from pyproxy.compile.attribution import list_rules
from pyproxy.compile.claims import Claims
from pyproxy.compile.iptables import IptablesProgram
from pyproxy.compile.plan import plan_service
from pyproxy.config import Config, IptablesVariant
from pyproxy.errors import ConfigError
from pyproxy.loop.iptables_mode import iptables_settings, ownership
from pyproxy.loop.node_name import own_node, own_node_name
from pyproxy.model.address import Family
from pyproxy.model.change import Kind, Replaced
from pyproxy.model.listing import ListedRule, Listing
from pyproxy.model.ruleset import TABLES, ChainKey, HookKey
from pyproxy.model.tracker import Tracker
from pyproxy.render.iptables_restore import saved_rules
from pyproxy.render.listing import listing_restore, listing_text, listing_values
from pyproxy.source.files import FileObjects, read_objects

_WRONG_INPUT = 2


def dump_rules(config: Config, *, service: str | None, output: str, live: bool) -> int:
    """Print rules; return 2 if some object could not be used as it stands, else 0.

    Raises:
        ConfigError: the input cannot be read, or the Service is not in it.
    """
    if live:
        listings, problems = asyncio.run(live_listings(config)), 0
    else:
        objects = read_objects(config.manifests)
        problems = report(objects, sys.stderr)
        listings = planned_listings(config, objects)
    if service is not None:
        listings = [only_service(listing, service) for listing in listings]
        if not any(listing.services for listing in listings):
            message = f"--service: no rules of {service} are there"
            raise ConfigError(message)
    sys.stdout.write(_written([listing for listing in listings if _is_worth_showing(listing)], output))
    return _WRONG_INPUT if problems else 0


def report(objects: FileObjects, stream: TextIO) -> int:
    """Print what is wrong with the input, and what was passed over; return the number of problems."""
    for problem in objects.problems:
        print(problem, file=stream)
    if objects.passed_over:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(objects.passed_over.items()))
        print(f"passed over: {kinds}", file=stream)
    return len(objects.problems)


def planned_listings(config: Config, objects: FileObjects) -> list[Listing]:
    """Return the rules that belong into the kernel for objects."""
    tracker = Tracker()
    tracker.apply(Replaced(Kind.SERVICE, objects.services))
    tracker.apply(Replaced(Kind.ENDPOINT_SLICE, objects.slices))
    name = own_node_name(config)
    node = own_node(config, next((node for node in objects.nodes if node.name == name), None), name)
    listings = []
    for family in Family:
        settings = iptables_settings(config, node, family, local_ips=frozenset(node.ips))
        program = IptablesProgram(settings)
        claims = Claims()
        plans = [
            plan
            for service in tracker.services.values()
            for plan in plan_service(service, tracker.slices(service.name), node, family).values()
        ]
        for plan in plans:
            claims.update(plan.name, plan)
        for plan in plans:
            program.put(plan.name, claims.granted(plan.name))
        listings.append(_program_listing(family, program))
    return listings


def _program_listing(family: Family, program: IptablesProgram) -> Listing:
    keys = tuple(program.keys())
    # Each hook is inserted at the top: in the kernel the last one of a chain stands first.
    hooks = [key for key in keys if isinstance(key, HookKey)][::-1]
    rules = [ListedRule(*hook) for hook in hooks]
    chains = sorted(key for key in keys if isinstance(key, ChainKey))
    for key in chains:
        rules += [ListedRule(*key, rule) for rule in (program.value(key) or "").splitlines()]
    return list_rules(family, chains, rules)


async def live_listings(config: Config) -> list[Listing]:
    """Return the rules that are in the kernel, with their counters."""
    variant = Variant.LEGACY
    if config.iptables_variant is IptablesVariant.AUTO:
        variant, _ = await detect_variant()
    else:
        variant = Variant(config.iptables_variant.value)
    listings = []
    for family in Family:
        if not is_available(family, variant):
            continue
        chains: list[ChainKey] = []
        rules: list[ListedRule] = []
        for table in TABLES:
            text = await save(family, variant, table, counters=True)
            found, listed = saved_rules(table, text.splitlines(), ownership(family))
            chains += found
            rules += listed
        listings.append(list_rules(family, chains, rules))
    return listings


def only_service(listing: Listing, service: str) -> Listing:
    """Return the part of a listing that belongs to the Service ``namespace/name``."""
    services = {name: rules for name, rules in listing.services.items() if str(name.service) == service}
    chains = {(rule.table, rule.chain) for rules in services.values() for rule in rules}
    return Listing(listing.family, tuple(key for key in listing.chains if key in chains), services=services)


def _is_worth_showing(listing: Listing) -> bool:
    """Say whether a family has Services; IPv4 is shown in any case, so that there is something to see."""
    return bool(listing.services) or (listing.family is Family.IPV4 and bool(listing.chains))


def _written(listings: Iterable[Listing], output: str) -> str:
    match output:
        case "json":
            values = msgspec.json.encode({"families": [listing_values(listing) for listing in listings]})
            return msgspec.json.format(values, indent=2).decode() + "\n"
        case "restore":
            return "".join(map(listing_restore, listings))
        case _:
            return "\n".join(map(listing_text, listings))
