"""A node on which kube-proxy and pyproxy run in turn, or side-by-side, under continuous traffic."""

import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.lab import CLUSTER_CIDRS, Connection, Lab, Load, LoadFailure, LoadReport, Shape, tcp
from tests.lab.waiting import wait_until

from .agent import PYPROXY, Agent
from .controlplane import KUBE_PROXY_USER, ControlPlane
from .kubeproxy import Backend, KubeProxy
from .peer.objects import Entry, JsonObject, entry, port, service

FLAGS = (f"--cluster-cidr={','.join(map(str, CLUSTER_CIDRS))}",)
PORT = 8080
PATIENCE_SECONDS = 60.0
ANSWER_SECONDS = 4.0
# Rules of an administrator and of another agent.
FOREIGN_RULES = """\
*filter
:ADMIN - [0:0]
-A FORWARD -m comment --comment "custom kubernetes rule" -j ADMIN
-A ADMIN -s 192.0.2.1/32 -j DROP
COMMIT
*nat
:ADMIN - [0:0]
-A POSTROUTING -s 192.0.2.1/32 -j ADMIN
COMMIT
"""
FOREIGN_TABLE = "table ip admin { chain forward { type filter hook forward priority 10; counter; }; }"
LEGACY_TOOLS = ("iptables-legacy", "ip6tables-legacy")
_IPTABLES = (*LEGACY_TOOLS, "iptables-nft", "ip6tables-nft")
_COUNTERS = re.compile(r"(?m)^#.*\n|counter packets \d+ bytes \d+|\[\d+:\d+\]")


@dataclass(frozen=True, slots=True)
class Traffic:
    """Open connections, and streams of new ones."""

    held: tuple[Connection, ...]
    loads: tuple[Load, ...]
    began_at: float
    """The start, in seconds of the monotonic clock."""

    notes: list[str] = field(default_factory=list)
    """Events with their times, for failure messages."""

    def note(self, what: str) -> float:
        """Record an event; return the current time."""
        at_seconds = time.monotonic() - self.began_at
        self.notes.append(f"{at_seconds:.2f}: {what}")
        return at_seconds

    def reports(self) -> list[LoadReport]:
        """Return the reports of the streams so far."""
        return [load.report() for load in self.loads]

    def broken(self) -> list[str]:
        """Return the failures of open connections whose server no longer answers."""
        answers = [(connection.greeting, connection.ask()) for connection in self.held]
        return [f"{greeting} then {answer}" for greeting, answer in answers if greeting.server != answer.server]

    def failures(self, *, outside: tuple[float, float]) -> list[LoadFailure]:
        """Return the failed new connections, except those made between two times."""
        failed = [failure for report in self.reports() for failure in report.failures]
        return [failure for failure in failed if not outside[0] <= failure.at_seconds <= outside[1]]


class OneNode:
    """A lab with a proxy on its first node, and a Service with an endpoint on each node."""

    def __init__(self, control_plane: ControlPlane, *, tools: Sequence[str] = _IPTABLES, per_second: int = 100) -> None:
        """Configure the iptables programs that the kernel supports, and the number of connections of a pod per second."""
        self._control_plane = control_plane
        self._tools = tools
        self._per_second = per_second
        self._at_exit = ExitStack()

    def __enter__(self) -> Self:
        """Build the lab, and create the objects."""
        with ExitStack() as stack:
            self.lab = stack.enter_context(Lab(Shape(nodes=2, pods_per_node=1), timeout_seconds=ANSWER_SECONDS))
            for pod in self.lab.pods:
                pod.serve(tcp=[PORT])
            for planned in self.lab.plan.nodes:
                addresses, cidrs = [*map(str, planned.addresses)], [*map(str, planned.pod_cidrs)]
                self._control_plane.create_node(planned.name, addresses, pod_cidrs=cidrs)
                stack.callback(self._control_plane.request, "DELETE", f"/api/v1/nodes/{planned.name}")
            self.host = self.lab["node1"]
            directory = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix=f"pyproxy-takeover-{os.getpid()}-"))
            )
            self._lock = {"XTABLES_LOCKFILE": str(directory / "xtables.lock")}
            self.web = self.create(entry(service("web", port(80), type="NodePort"), "pod1-1", "pod2-1"), stack)
            self._at_exit = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Remove everything."""
        self._at_exit.close()

    # -- objects

    def create(self, wanted: Entry, at_exit: ExitStack) -> JsonObject:
        """Create a Service with its slices, until a stack is closed, and return the completed Service."""
        made = self._post("/api/v1/namespaces/default/services", wanted.service, at_exit)
        for endpoint_slice in wanted.slices:
            self._post("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", endpoint_slice, at_exit)
        return made

    def _post(self, collection: str, item: JsonObject, at_exit: ExitStack) -> JsonObject:
        made = self._control_plane.request("POST", collection, item)
        at_exit.callback(self._control_plane.request, "DELETE", f"{collection}/{item['metadata']['name']}")
        return made

    # -- proxies

    def kube_proxy(self, backend: Backend, *flags: str) -> KubeProxy:
        """Return a kube-proxy for the node."""
        return KubeProxy(
            self._control_plane, self.host.namespace.name, node=self.host.name, backend=backend, flags=(*FLAGS, *flags)
        )

    def pyproxy(self, backend: Backend, *flags: str, environment: dict[str, str] | None = None) -> Agent:
        """Return a pyproxy for the node."""
        return Agent(
            self._control_plane,
            self.host.namespace.name,
            node=self.host.name,
            backend=backend,
            flags=(*FLAGS, *flags),
            environment=environment,
        )

    def command(self, *arguments: str) -> str:
        """Run a command of pyproxy on the node."""
        return self.host.run(PYPROXY, *arguments, env=self._lock)

    def dry_run(self, backend: Backend) -> str:
        """Return the output of `pyproxy takeover --dry-run`."""
        mode, _, variant = backend.partition("-")
        with self._control_plane.exposed_in(self.host.namespace.name) as server:
            user = {"token": self._control_plane.static_token(KUBE_PROXY_USER)}
            where = f"--kubeconfig={self._control_plane.kubeconfig_for(user, server)}"
            flags = (f"--hostname-override={self.host.name}", f"--proxy-mode={mode}", *FLAGS)
            return self.command(
                "takeover", "--dry-run", where, *flags, *([f"--iptables-variant={variant}"] if variant else [])
            )

    # -- the kernel

    @property
    def _has_nft(self) -> bool:
        return any("nft" in tool for tool in self._tools)

    def rules_of(self, *command: str) -> str:
        """Return the rules that a command prints, without counters."""
        return _COUNTERS.sub("", self.host.run(*command))

    def rules(self) -> str:
        """Return all rules of the node without counters: those of both iptables variants, and of nftables."""
        tables = {"iptables": "/proc/net/ip_tables_names", "ip6tables": "/proc/net/ip6_tables_names"}
        parts = [self.rules_of("nft", "list", "ruleset")] if self._has_nft else []
        for tool in self._tools:
            names = tables[tool.partition("-")[0]]
            # The legacy programs create tables that they list.
            if "nft" in tool or self.host.run("sh", "-c", f"cat {names} 2>/dev/null || true"):
                parts.append(self.rules_of(f"{tool}-save"))
        return "".join(parts)

    def wait_for_rules(self, *, without: str) -> None:
        """Wait until no rule contains a text."""
        wait_until(lambda: without not in self.rules(), f"rules without {without}", timeout_seconds=PATIENCE_SECONDS)

    def load_foreign_rules(self) -> None:
        """Load foreign rules on the node."""
        for tool in {"iptables-legacy", "iptables-nft"}.intersection(self._tools):
            self.host.run(f"{tool}-restore", "--noflush", stdin=FOREIGN_RULES, env=self._lock)
        if self._has_nft:
            self.host.run("nft", "-f", "-", stdin=FOREIGN_TABLE)

    def foreign_rules(self) -> list[str]:
        """Return the lines of the foreign rules."""
        return [line for line in self.rules().splitlines() if "ADMIN" in line or "table ip admin" in line]

    @contextmanager
    def cleaned_up(self) -> Iterator[None]:
        """Start without flows, remove the rules of both proxies at the end, and check that foreign rules did not change."""
        foreign = self.foreign_rules()
        self.forget_flows()
        yield
        said = self.command("cleanup", "--kube-proxy")
        assert foreign == self.foreign_rules(), said

    # -- packets

    def forget_flows(self) -> None:
        """Delete the flows from the time without a proxy: packets with the same ports would follow them."""
        for node in self.lab.nodes:
            node.run("conntrack", "--flush")

    @contextmanager
    def traffic(self) -> Iterator[Traffic]:
        """Keep connections open, and make new ones continuously, from a pod to the cluster IP and from outside."""
        inside = tcp(self.web["spec"]["clusterIP"], 80)
        outside = tcp(self.host.ipv4, self.web["spec"]["ports"][0]["nodePort"])
        client, external = self.lab.client_pod, self.lab.outside[0]
        began_at = time.monotonic()
        with ExitStack() as stack:
            held = [client.connect(inside) for _ in range(4)] + [external.connect(outside) for _ in range(4)]
            for connection in held:
                stack.enter_context(connection)
            loads = (
                stack.enter_context(client.load(inside, per_second=self._per_second)),
                stack.enter_context(external.load(outside, per_second=self._per_second / 5)),
            )
            yield Traffic(tuple(held), loads, began_at)
