"""Traffic through Services while a test causes a fault: held connections, and new ones, in both families.

UDP requests are not sent again, so a single packet that is dropped or rejected is a failure. A dropped SYN is sent again
after a second, and then only takes longer; but each path of TCP has one of UDP beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from time import monotonic

from tests.lab import Lab, Load, tcp, udp
from tests.lab.waiting import wait_until

from .modes import IS_GUEST
from .objects import JsonObject, port, service, slices

NEW_PER_SECOND = 5 if IS_GUEST else 25
HELD_PER_SECOND = 10
TCP_NODE_PORT, UDP_NODE_PORT = 30150, 30151
PORTS = (port(80, name="web"), port(53, "UDP", name="dns"))
STEADY = service(
    "steady",
    150,
    port(80, name="web", node_port=TCP_NODE_PORT),
    port(53, "UDP", name="dns", node_port=UDP_NODE_PORT),
    type="NodePort",
)
"""Its endpoints never change."""
MOVING = service("moving", 151, *PORTS)
"""Its endpoint, which a test adds, may change: there are only new connections to it."""
OBJECTS: list[JsonObject] = [MOVING, STEADY, *slices(STEADY, "pod1-1", "pod2-1")]


@dataclass(frozen=True, slots=True)
class Traffic:
    """The streams of requests that run."""

    held: Sequence[Load]
    """Each on one connection; any answer that is not from its server is a failure, and ends it."""
    new: Sequence[Load]
    """Each request from a new socket."""
    starts: Sequence[float]
    """When each stream of new connections was started, as `monotonic` counts."""

    def failures(self, *, since: float | None = None) -> list[str]:
        """Return what failed so far, on held connections and on new ones, of which only those count that began later."""
        found = [failure for load in self.held for failure in load.report().failures]
        found += [
            failure
            for load, start in zip(self.new, self.starts, strict=True)
            for failure in load.report().failures
            if since is None or failure.at_seconds > since - start
        ]
        return [f"after {failure.at_seconds:.2f} s: {failure.outcome}" for failure in found]

    def servers(self) -> set[str]:
        """Return the servers that have answered."""
        return {server for load in (*self.held, *self.new) for server in load.report().replies}

    def wait_for_more(self, count: int = 30) -> None:
        """Wait until each stream of new connections has had some more answers."""
        before = [(load, sum(load.report().replies.values())) for load in self.new]
        wait_until(
            lambda: all(sum(load.report().replies.values()) >= seen + count for load, seen in before),
            "more answers",
        )

    def __str__(self) -> str:
        """Return the numbers."""
        kinds = {"held connections": self.held, "new connections": self.new}
        reports = {kind: [load.report() for load in loads] for kind, loads in kinds.items()}
        requests = {kind: sum(report.requests for report in found) for kind, found in reports.items()}
        failed = {kind: sum(len(report.failures) for report in found) for kind, found in reports.items()}
        held, new = kinds
        return (
            f"{len(self.held)} {held} with {requests[held]} requests, {failed[held]} lost; "
            f"{requests[new]} {new}, {failed[new]} failed"
        )


@contextmanager
def traffic(lab: Lab) -> Iterator[Traffic]:
    """Send requests from a pod of the first node to cluster IPs, and from outside to node ports of that node."""
    pod, outside = lab.client_pod, lab.outside[0]
    held: list[Load] = []
    new: list[Load] = []
    starts: list[float] = []
    with ExitStack() as stack:
        for version in (4, 6):
            steady, moving = (item["spec"]["clusterIPs"][version == 6] for item in (STEADY, MOVING))
            node = lab["node1"].address(version)
            paths = [(pod, tcp(steady, 80)), (pod, udp(steady, 53))]
            paths += [(outside, tcp(node, TCP_NODE_PORT)), (outside, udp(node, UDP_NODE_PORT))]
            held += [stack.enter_context(host.hold(probe, per_second=HELD_PER_SECOND)) for host, probe in paths * 2]
            paths += [(pod, tcp(moving, 80)), (pod, udp(moving, 53))]
            for host, probe in paths:
                starts.append(monotonic())
                new.append(stack.enter_context(host.load(probe, per_second=NEW_PER_SECOND)))
        wait_until(lambda: all(load.report().requests for load in held), "answers on all held connections")
        yield Traffic(held, new, starts)
