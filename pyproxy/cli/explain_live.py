"""What ``explain`` reads on a node: all rules in the kernel, affinity entries, and what the running agent knows."""

import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import click

from pyproxy.backends.explanation import Host
from pyproxy.backends.iptables.explain import Ruleset, read_save
from pyproxy.backends.nftables.ruleset_text import read_ruleset
from pyproxy.cli.control import ControlError, ask, is_agent_here
from pyproxy.cli.explain_rules import NodeRules, without_iptables_nft
from pyproxy.config.config import OPTIONS, Config, ProxyMode
from pyproxy.config.settings import resolve_settings
from pyproxy.errors import ApplyError
from pyproxy.linux.addresses import local_addresses
from pyproxy.linux.command import run
from pyproxy.linux.iptables_programs import Variant, is_available, program
from pyproxy.linux.routes import routes
from pyproxy.model.address import Family, family_of, parse_ip
from pyproxy.model.change import Kind, Replaced
from pyproxy.model.tracker import Tracker
from pyproxy.model.unserved import UnservedService
from pyproxy.plan.agent_objects import AgentObjects
from pyproxy.plan.service_values import ServiceList, SyncState

RECENT = Path("/proc/net/xt_recent")
TIMERS = Path("/proc/timer_list")
# The file exists once the module ip_vs is loaded.
HAS_IPVS = Path("/proc/net/ip_vs").exists()
# The names of the legacy tables; to read them creates none.
_LEGACY_TABLES = {Family.IPV4: Path("/proc/net/ip_tables_names"), Family.IPV6: Path("/proc/net/ip6_tables_names")}
_RECENT_ENTRY = re.compile(r"src=(?P<ip>\S+) .*last_seen: (?P<seen>\d+)")
_TICKS = (100, 250, 300, 1000)
"""Possible values of CONFIG_HZ."""
_TICKS_BITS = 64
_BOOT_SECONDS = 300
"""The kernel starts to count ticks 5 minutes before 2^32 (`linux/jiffies.h`, INITIAL_JIFFIES)."""


@dataclass(frozen=True, slots=True)
class Live:
    """The kernel of this node at one moment."""

    rules: NodeRules
    host: Host
    read_at: str
    """Time of day."""


@dataclass(frozen=True, slots=True)
class KnownByAgent:
    """What the agent of this node knows."""

    config: Config
    """The settings of the agent, with its mode."""
    tracker: Tracker
    objects: AgentObjects
    sync_problems: Mapping[str, str]
    """By Service, why the kernel does not have its rules."""

    @property
    def unserved(self) -> list[UnservedService]:
        """Return the Services without rules."""
        return self.objects.unserved


def known_by_agent(config: Config) -> KnownByAgent | None:
    """Return what the agent knows; None if no agent runs in this network namespace, or if it cannot be asked."""
    path = config.control_socket
    if not path or not is_agent_here(path):
        return None
    try:
        found = ask(path, "objects", AgentObjects)
        services = ask(path, "services", ServiceList)
    except ControlError as error:
        # An agent that hangs is a reason to look at the kernel, not to give up.
        click.echo(f"{error}; this is what the kernel has", err=True)
        return None
    try:
        values = {name: OPTIONS[name].grammar.parse(text) for name, text in found.settings.items()}
        # The settings are already resolved: no file may be read again, and the mode is the chosen one instead of auto.
        values |= {"proxy_mode": ProxyMode(found.mode), "config": "", "pyproxy_config": "", "manifests": ""}
    except (KeyError, ValueError) as error:
        # After an upgrade of the package, until the agent is restarted.
        click.echo(f"agent and command have different versions ({error}); this is what the kernel has", err=True)
        return None
    tracker = Tracker()
    tracker.apply(Replaced(Kind.SERVICE, tuple(found.services)))
    tracker.apply(Replaced(Kind.ENDPOINT_SLICE, tuple(found.slices)))
    if found.service_cidrs is not None:
        tracker.apply(Replaced(Kind.SERVICE_CIDR, tuple(found.service_cidrs)))
    problems = {
        f"{item.namespace}/{item.name}": ": ".join(filter(None, (item.sync.value, " ".join(item.sync_error.split()))))
        for item in services.items
        if item.sync is not None and item.sync is not SyncState.PROGRAMMED
    }
    return KnownByAgent(resolve_settings(values).config, tracker, found, problems)


async def read_live() -> Live:
    """Return all rules in the kernel, of every program, and the addresses of the node.

    Raises:
        ApplyError: they cannot be read.
    """
    rulesets: dict[Family, tuple[Ruleset, ...]] = {}
    for family in Family:
        texts: list[str] = []
        for variant in Variant:
            has_tables = variant is Variant.NFT
            # Listing legacy tables that do not exist creates them, so the kernel's list of their names decides.
            with suppress(OSError):
                has_tables = has_tables or bool(_LEGACY_TABLES[family].read_text().strip())
            if has_tables and is_available(family, variant):
                texts.append(await _output(program(family, variant, "save")))
        rulesets[family] = tuple(ruleset for text in texts if (ruleset := read_save(text)).chains)
    tables = read_ruleset(await _output("nft", "list", "ruleset")) if shutil.which("nft") else []
    rules = without_iptables_nft(NodeRules(rulesets, tuple(tables), pins=recent_lists()))
    host = Host(local_addresses())
    if HAS_IPVS:
        from pyproxy.cli.explain_ipvs import with_ipvs  # noqa: PLC0415  # few nodes have this mode

        rules, host = with_ipvs(rules, host)
    now = datetime.now().astimezone()
    return Live(rules, host, now.strftime("%H:%M:%S"))


async def _output(*argv: str) -> str:
    result = await run(argv)
    if result.status:
        message = f"{' '.join(argv)}: exit status {result.status}: {result.stderr.strip()}"
        raise ApplyError(message, retryable=True)
    return result.stdout


def recent_lists() -> dict[str, dict[bytes, float]]:
    """Return the lists of xt_recent: for each client the seconds since it was last seen."""
    try:
        files = {file.name: file.read_text() for file in RECENT.iterdir()}
    except OSError:
        return {}
    # The entries have the kernel's time in ticks. Only root can read its present value; without it all ages are 0.
    # No file has the number of ticks per second: it is the one that fits the uptime best.
    found, now, per_second = None, 0, _TICKS[0]
    with suppress(OSError):
        found = re.search(r"^jiffies: (\d+)", TIMERS.read_text(), re.MULTILINE)
    if found is not None:
        now, seconds = int(found[1]), uptime()
        per_second = min(_TICKS, key=lambda each: abs(now - ticks_of(seconds=seconds, per_second=each)))
    lists: dict[str, dict[bytes, float]] = {}
    for name, text in files.items():
        ages = lists.setdefault(name, {})
        for entry in _RECENT_ENTRY.finditer(text):
            ticks = (now - int(entry["seen"])) % (1 << _TICKS_BITS) if now else 0
            ages[parse_ip(entry["ip"])] = ticks / per_second
    return lists


def uptime() -> float:
    """Return the seconds since the kernel was started."""
    return float(Path("/proc/uptime").read_text().split()[0])


def ticks_of(*, seconds: float, per_second: int) -> int:
    """Return the kernel's time in ticks, so many seconds after its start."""
    return (1 << 32) + int((seconds - _BOOT_SECONDS) * per_second)


def interface_towards(ip: bytes) -> str:
    """Return the interface by which packets from an address arrive, from the main routing table; empty if unknown."""
    fitting = [route for route in routes(family_of(ip)) if ip in route.network and route.device != "lo"]
    return max(fitting, key=lambda route: route.network.prefix).device if fitting else ""
