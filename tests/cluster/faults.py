"""Puts the same faults to kube-proxy and to pyproxy, for docs/reliability.md: ``python -m tests.cluster.faults [NAME...]``.

Both run with a real API server on the first node of a lab, while connections are held and new ones are opened. Each line has
what was counted, and for how long a change, or the repair, took. It checks nothing: `tests/packets` does, for pyproxy.
"""

from __future__ import annotations

import fcntl
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.lab import CLUSTER_CIDRS, Host, Lab, probe_all, tcp
from tests.lab.waiting import wait_until
from tests.packets.objects import PLAN, PORT, JsonObject, port, service, slices
from tests.packets.traffic import MOVING, OBJECTS, STEADY, TCP_NODE_PORT, Traffic, traffic

from .agent import Agent
from .controlplane import ControlPlane
from .kubeproxy import Backend, KubeProxy
from .process import ClusterError

PATHS = {
    "Service": "/api/v1/namespaces/default/services",
    "EndpointSlice": "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
}
FLAGS = (f"--cluster-cidr={','.join(map(str, CLUSTER_CIDRS))}",)
KILLS = 20
BULK = 20
LONGEST_WAIT_SECONDS = 120.0
MOVED_TO = ("pod1-2", "pod2-2")
BACKENDS: tuple[Backend, ...] = ("iptables-legacy", "iptables-nft", "nftables")
FLUSH = {
    "iptables-legacy": "for p in iptables-legacy ip6tables-legacy; do $p -w -t nat -F; $p -w -F; done",
    "iptables-nft": "for p in iptables-nft ip6tables-nft; do $p -t nat -F; $p -F; done",
    "nftables": "nft flush ruleset",
}


@dataclass
class World:
    """A lab with a control plane, and one kind of proxy."""

    control_plane: ControlPlane
    lab: Lab
    backend: Backend
    kind: str
    random: random.Random = field(default_factory=lambda: random.Random(1))  # noqa: S311 - not for secrets
    at: int = 0
    """Where the endpoint of the Service that moves is."""

    @property
    def node(self) -> Host:
        """The node of the proxy."""
        return self.lab["node1"]

    @contextmanager
    def proxy(self) -> Iterator[KubeProxy | Agent]:
        """Run the proxy; entered when it has programmed all objects."""
        made = (KubeProxy if self.kind == "kube-proxy" else Agent)(
            self.control_plane, self.node.namespace.name, node=self.node.name, backend=self.backend, flags=FLAGS
        )
        with made:
            self.reached()
            yield made

    def move(self) -> None:
        """Move the endpoint of the Service that moves."""
        self.at = 1 - self.at
        for item in slices(MOVING, MOVED_TO[self.at]):
            self.control_plane.request("PUT", f"{PATHS['EndpointSlice']}/{item['metadata']['name']}", item)

    def reached(self) -> float:
        """Wait until packets of both families reach the endpoint, and return for how long; infinity if they do not."""
        started = time.monotonic()
        probes = [tcp(ip, 80, timeout_seconds=0.5) for ip in MOVING["spec"]["clusterIPs"]]
        with suppress(TimeoutError):
            wait_until(
                lambda: {MOVED_TO[self.at]} == {outcome.server for outcome in self.lab.client_pod.probe(*probes)},
                timeout_seconds=LONGEST_WAIT_SECONDS,
                poll_seconds=0.02,
            )
            return time.monotonic() - started
        return float("inf")

    def repaired(self) -> float:
        """Wait until every path of the Service that stays is served, and return for how long; infinity if it is not."""
        started = time.monotonic()
        inside = [tcp(ip, 80, timeout_seconds=0.5) for ip in STEADY["spec"]["clusterIPs"]]
        outside = [tcp(self.node.address(version), TCP_NODE_PORT, timeout_seconds=0.5) for version in (4, 6)]
        flows = [(self.lab.client_pod, probe) for probe in inside] + [(self.lab.outside[0], probe) for probe in outside]
        with suppress(TimeoutError):
            wait_until(
                lambda: all(outcome.server for outcome in probe_all(flows)),
                timeout_seconds=LONGEST_WAIT_SECONDS,
                poll_seconds=0.02,
            )
            return time.monotonic() - started
        return float("inf")


Fault = Callable[[World, Traffic], str]


def killed(world: World, _: Traffic) -> str:
    """Kill the proxy at a random moment within 0.5 s after a change of many Services, and start it again."""
    for number in range(KILLS):
        with world.proxy() as proxy:
            changed = bulk(number % 2)
            for item in changed:
                world.control_plane.request("PUT", f"{PATHS['EndpointSlice']}/{item['metadata']['name']}", item)
            world.move()
            time.sleep(world.random.random() / 2)
            proxy.process.kill()
    with world.proxy():
        pass
    return f"{KILLS} kills"


def flushed(world: World, _: Traffic) -> str:
    """Flush all rules once, when the proxy has done all its syncs after the start."""
    with world.proxy():
        time.sleep(15)
        world.node.run("sh", "-c", FLUSH[world.backend])
        return f"repaired after {world.repaired():.1f} s"


def flushed_often(world: World, _: Traffic) -> str:
    """Flush all rules every half a second for ten seconds, and move the endpoint meanwhile."""
    with world.proxy():
        for number in range(20):
            world.node.run("sh", "-c", FLUSH[world.backend])
            if number == 10:
                world.move()
            time.sleep(0.5)
        return f"repaired after {world.repaired():.1f} s, the change after {world.reached():.1f} s more"


def lock_held(world: World, _: Traffic) -> str:
    """Hold the xtables lock for a minute, during which the endpoint moves."""
    with world.proxy() as proxy:
        environment = Path(f"/proc/{proxy.process.pid}/environ").read_text().split("\0")
        [path] = [word.partition("=")[2] for word in environment if word.startswith("XTABLES_LOCKFILE=")]
        with Path(path).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            world.move()
            time.sleep(60)
        return f"the change {world.reached():.1f} s after its release"


def api_server_killed(world: World, _: Traffic) -> str:
    """Kill the API server, and start it again after ten seconds; then the endpoint moves."""
    with world.proxy():
        world.control_plane.stop_apiserver()
        time.sleep(10)
        world.control_plane.start_apiserver()
        world.move()
        return f"the change after {world.reached():.1f} s"


def compacted(world: World, _: Traffic) -> str:
    """Compact etcd while the proxy is not connected, and move the endpoint."""
    with world.proxy():
        world.control_plane.clients.refuse()
        world.move()
        world.control_plane.compact()
        world.control_plane.clients.resume()
        return f"the change after {world.reached():.1f} s"


def half_open(world: World, _: Traffic) -> str:
    """Drop all packets between proxy and API server without closing the connections for a minute; the endpoint moves."""
    with world.proxy():
        world.control_plane.clients.hold()
        world.move()
        time.sleep(60)
        world.control_plane.clients.resume()
        return f"the change {world.reached():.1f} s after the end"


FAULTS: dict[str, tuple[Fault, Sequence[Backend]]] = {
    "killed": (killed, BACKENDS),
    "flushed": (flushed, BACKENDS),
    "flushed-often": (flushed_often, BACKENDS),
    "lock-held": (lock_held, ("iptables-legacy",)),
    "api-server-killed": (api_server_killed, ("nftables",)),
    "compacted": (compacted, ("nftables",)),
    "half-open": (half_open, ("nftables",)),
}


def bulk(which: int) -> list[JsonObject]:
    """Return the slices of many Services, with one of two endpoints."""
    return [item for each in BULK_SERVICES for item in slices(each, ("pod1-1", "pod2-1")[which])]


BULK_SERVICES = [service(f"bulk-{number}", 170 + number, port(80, name="web")) for number in range(BULK)]


def keep_translation(world: World) -> None:
    """Add NAT rules of another program, in the tables that are not flushed: without any, the kernel stops translating."""
    variant = "nft" if world.backend == "iptables-legacy" else "legacy"
    for program, unused in (("iptables", "192.0.2.7"), ("ip6tables", "2001:db8::7")):
        world.node.run(f"{program}-{variant}", "-t", "nat", "-A", "POSTROUTING", "-s", unused, "-j", "MASQUERADE")


def run(fault: Fault, kind: str, backend: Backend) -> str:
    """Put a fault to a proxy on a new node with a new control plane, and return the line of the table."""
    with ExitStack() as stack:
        control_plane = stack.enter_context(ControlPlane())
        lab = stack.enter_context(Lab(PLAN.shape, timeout_seconds=4.0))
        world = World(control_plane, lab, backend, kind)
        for pod in lab.pods:
            pod.serve(tcp=[PORT], udp=[PORT])
        for planned in lab.plan.nodes:
            addresses, cidrs = [*map(str, planned.addresses)], [*map(str, planned.pod_cidrs)]
            control_plane.create_node(planned.name, addresses, pod_cidrs=cidrs)
        for item in [*OBJECTS, *slices(MOVING, MOVED_TO[0]), *BULK_SERVICES, *bulk(0)]:
            control_plane.request("POST", PATHS[item["kind"]], item)
        keep_translation(world)
        with world.proxy():
            pass
        with traffic(lab) as sent:
            result = fault(world, sent)
        return f"{kind:10} {backend:15} {result}: {sent}"


def main(names: Sequence[str]) -> None:
    """Put the named faults, or all, to both proxies."""
    for name in names or FAULTS:
        fault, backends = FAULTS[name]
        for backend in backends:
            for kind in ("kube-proxy", "pyproxy"):
                try:
                    line = run(partial(fault), kind, backend)
                except (ClusterError, TimeoutError) as error:
                    line = f"{kind:10} {backend:15} failed: {error}"
                print(f"{name:18} {line}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
