"""The nftables mode without the agent: it programs plans in the kernel of this network namespace.

Tests run the agent's code from the plan to the kernel, with the agent's reconciler. Only the clock, the sources and the
second family are missing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from pyproxy.agent.reconcile import Reconciler
from pyproxy.backends.nftables.change_monitor import ChangeMonitor
from pyproxy.backends.nftables.elements import ElementKey, Layout, Value
from pyproxy.backends.nftables.kernel import NftablesKernel
from pyproxy.backends.nftables.layout import TABLE, NftablesSettings, layout_of, layout_text
from pyproxy.backends.nftables.program import NftablesProgram
from pyproxy.backends.nftables.text import family_name
from pyproxy.linux.ruleset_counter import NftGeneration
from pyproxy.model.address import Family, parse_ip, parse_network
from pyproxy.model.endpoint import Endpoint
from pyproxy.model.names import NamespacedName, Protocol, ServicePortName
from pyproxy.model.node import LocalTraffic
from pyproxy.plan.service_plan import ServicePlan
from tests.properties.planning import succeeded

from .own_namespace import own_namespace, run

R = TypeVar("R")

RANGES = {
    Family.IPV4: ("192.0.2.0/25", "192.0.2.128/25", "192.0.2.7/32", "198.51.100.9/32"),
    Family.IPV6: ("2001:db8::/33", "2001:db8:8000::/33", "2001:db8::7/128", "2001:db9::9/128"),
}
"""Source ranges: the first two are adjacent, and the third is inside the first."""
SHORT_GRACE: Mapping[str, float] = {"grace_seconds": 0.05}
"""Without packets in flight, removed elements need not be kept."""
LONG = ServicePortName(NamespacedName("n" * 63, "s" * 63), "p" * 15, Protocol.UDP)
"""The longest name that the API allows: longer than a comment can be."""
SERVICE_CIDRS = {Family.IPV4: "10.96.0.0/16", Family.IPV6: "fd00:10:96::/112"}
_CLUSTER_IPS = {Family.IPV4: parse_ip("10.96.0.0"), Family.IPV6: parse_ip("fd00:10:96::")}
_PODS = {Family.IPV4: parse_ip("10.244.0.0"), Family.IPV6: parse_ip("fd00:10:244::")}


def address(base: bytes, number: int) -> bytes:
    """Return the address at an offset from another."""
    return (int.from_bytes(base) + number).to_bytes(len(base))


def cluster_ip(family: Family, number: int) -> bytes:
    """Return the cluster IP of a number."""
    return address(_CLUSTER_IPS[family], number)


def endpoints(family: Family, *numbers: int, port: int = 8080) -> tuple[Endpoint, ...]:
    """Return endpoints on pods of these numbers."""
    return tuple(Endpoint(address(_PODS[family], number), port) for number in numbers)


def plan(family: Family, number: int, *pods: int, protocol: Protocol = Protocol.TCP, **fields: Any) -> ServicePlan:  # noqa: ANN401  # any field of a plan
    """Return the plan of a Service with a number whose endpoints are these pods."""
    found = endpoints(family, *pods)
    usual: dict[str, Any] = {
        "name": ServicePortName(NamespacedName("default", f"service-{number}"), "", protocol),
        "family": family,
        "port": 80,
        "cluster_ip": cluster_ip(family, number),
        "external_ips": (),
        "load_balancer_ips": (),
        "node_port": 0,
        "source_ranges": (),
        "allow_load_balancer_ips_as_source": False,
        "affinity_seconds": None,
        "internal_local": False,
        "external_local": False,
        "health_check_node_port": 0,
        "cluster_endpoints": found,
        "local_endpoints": (),
        "any_usable": bool(found),
    }
    return ServicePlan(**usual | fields)


class NftAgent:
    """The program, reconciler and kernel of one family."""

    def __init__(self, settings: NftablesSettings, loop: asyncio.Runner, **grace: float) -> None:
        self.family = settings.family
        self.table = f"{family_name(settings.family)} pyproxy"
        self.generation = NftGeneration()
        self._monitor = ChangeMonitor(TABLE)
        self._loop = loop
        self._layouts: dict[Layout, str] = {}
        self.program = self._program(settings)
        self.kernel = NftablesKernel(settings.family, self.generation.counter(), self._layouts, self._monitor, **grace)
        self.reconciler: Reconciler[ElementKey, Value] = Reconciler(self.family, self.program, self.kernel)

    def __repr__(self) -> str:
        return f"NftAgent({self.reconciler})"

    def close(self) -> None:
        """Close the kernel handles, as the end of a process does."""
        self.kernel.close()
        self.generation.close()
        self._monitor.close()

    def do(self, coroutine: Coroutine[Any, Any, R]) -> R:
        """Run a coroutine of the agent to completion."""
        return self._loop.run(coroutine)

    def put(self, *plans: ServicePlan) -> int:
        """Write plans; return how many entries changed."""
        for each in plans:
            self.reconciler.stage({each.name: each})
        return self.sync()

    def remove(self, *plans: ServicePlan) -> int:
        """Remove plans."""
        for each in plans:
            self.reconciler.stage({each.name: None})
        return self.sync()

    def sync(self) -> int:
        """Write the staged changes, wait until removed elements are deleted, and return how many entries changed."""
        return self.do(self._sync())

    def look(self) -> int:
        """Do what the agent does every second: after an external change, read the table and repair it."""
        if self.kernel.changed_externally():
            self.reconciler.mark_stale()
        return self.sync()

    def configure(self, settings: NftablesSettings) -> int:
        """Switch to new settings."""
        self.program = self._program(settings)
        self.reconciler.replace_program(self.program)
        return self.sync()

    async def _sync(self) -> int:
        report = succeeded(await self.reconciler.sync())
        await self.swept()
        return report.entries_changed

    async def swept(self) -> None:
        """Wait until elements that are no longer used are deleted."""
        while (task := self.kernel._sweeper.task) is not None:
            await task

    def read(self) -> dict[ElementKey, Value]:
        """Return the entries in the kernel."""
        return self.do(self.kernel.read())

    def wanted(self) -> dict[ElementKey, Value]:
        """Return the entries that should be in the kernel."""
        values = ((key, self.program.value(key)) for key in self.program.keys())  # noqa: SIM118  # not a mapping
        return {key: value for key, value in values if value is not None}

    def commits_during(self, action: Callable[[], object]) -> int:
        """Return how many commits the ruleset of this namespace gets during an action, from any program."""
        before = self.generation.read()
        action()
        return self.generation.read() - before

    def nft(self, script: str) -> None:
        """Change the table with `nft`, as another program may do; ``TABLE`` is replaced by its name."""
        run("nft", "-f", "-", stdin=script.replace("TABLE", self.table))

    def _program(self, settings: NftablesSettings) -> NftablesProgram:
        self._layouts[layout_of(settings)] = layout_text(settings)
        return NftablesProgram(settings)


Start = Callable[[], NftAgent]
"""Starts an agent, as after a restart."""


@contextmanager
def node_namespace(settings: NftablesSettings, grace: Mapping[str, float] = SHORT_GRACE) -> Iterator[Start]:
    """Enter a new network namespace; yield a function that starts an agent there."""
    started: list[NftAgent] = []

    with own_namespace(), asyncio.Runner() as loop:

        def start() -> NftAgent:
            started.append(NftAgent(settings, loop, **grace))
            return started[-1]

        try:
            yield start
        finally:
            for agent in started:
                agent.close()


def node_settings(family: Family, **fields: Any) -> NftablesSettings:  # noqa: ANN401  # any field of settings
    """Return settings in which no field is empty."""
    usual: dict[str, Any] = {
        "family": family,
        "local_traffic": LocalTraffic(interface="cni0"),
        "node_port_ips": (cluster_ip(family, 60_000),),
        "service_cidrs": (parse_network(SERVICE_CIDRS[family]),),
    }
    return NftablesSettings(**usual | fields)


def everything(family: Family) -> list[ServicePlan]:
    """Return plans that together have an element in every set and map."""
    pod = endpoints(family, 1)

    def external(number: int, **fields: Any) -> dict[str, Any]:  # noqa: ANN401  # any field of a plan
        return {
            "node_port": 30000 + number,
            "external_ips": (cluster_ip(family, 2000 + number),),
            "load_balancer_ips": (cluster_ip(family, 3000 + number),),
            "source_ranges": tuple(map(parse_network, RANGES[family])),
            "allow_load_balancer_ips_as_source": True,
            "node_endpoints": pod,
            **fields,
        }

    return [
        plan(family, 1, 1, 2, 3),
        plan(family, 2, 1, 2, affinity_seconds=10800),
        plan(family, 3, 1, 2, 3, 4, **external(3)),
        plan(family, 4, 1, 2, **external(4, external_local=True, local_endpoints=pod)),
        plan(family, 5, 1, 2, 3, affinity_seconds=86400, **external(5, external_local=True, local_endpoints=pod)),
        plan(family, 6),
        plan(family, 7, 1, internal_local=True, protocol=Protocol.SCTP),
        plan(family, 8, **external(8)),
        plan(family, 9, 1, **external(9, external_local=True)),
        plan(family, 10, 1, name=LONG, protocol=Protocol.UDP),
        plan(family, 11, 1, 2, affinity_seconds=10800, **external(11)),
    ]


def objects_of(table: str) -> dict[str, int]:
    """Count the chains, rules, sets and maps of a table."""
    listing = run("nft", "-a", "list", "table", *table.split())
    found = {kind: listing.count(f"\n\t{kind} ") for kind in ("chain", "set", "map")}
    # The table itself also has a handle.
    return {**found, "rule": listing.count("# handle ") - sum(found.values()) - 1}
