"""Both sides together: they get the same objects, and the same packets are sent in both labs.

Packets are sent only after both sides have programmed everything, which a marker Service shows, whose rules come last.
"""

import itertools
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Self

from tests.cluster.controlplane import ControlPlane

from .modes import Mode
from .objects import NAMESPACE, ZONES, Entry, JsonObject, State, endpoint_slice, port, service
from .sides import KubeProxySide, PyproxySide, Side
from .world import PLAN, VERSIONS

MARK_ZONES = ("a", "b", "c")
"""All possible zones of a Node."""
ZONE_LABEL = "topology.kubernetes.io/zone"
_marks = itertools.count(10_000)
"""Ports of the marker Services: all with equally many digits, so that none is a prefix of another."""
_MARK_NETWORKS = ("198.51.100.", "2001:db8:51:100::")


class Pair:
    """Two labs: kube-proxy runs on the nodes of one, pyproxy on the nodes of the other."""

    def __init__(
        self, control_plane: ControlPlane, mode: Mode, flags: Sequence[str], *, only_pyproxy: Sequence[str] = ()
    ) -> None:
        """Configure the mode, further flags of both proxies, and flags of pyproxy only."""
        self.mode = mode
        self._control_plane = control_plane
        self._flags = flags
        self._only_pyproxy = only_pyproxy
        self._paths: list[str] = []
        self._zones: Mapping[str, str | None] = ZONES
        self._at_exit = ExitStack()

    def __enter__(self) -> Self:
        """Build the labs, and start the proxies."""
        with ExitStack() as stack:
            for node in PLAN.nodes:
                addresses, cidrs = [*map(str, node.addresses)], [*map(str, node.pod_cidrs)]
                self._control_plane.create_node(node.name, addresses, pod_cidrs=cidrs)
                stack.callback(self._control_plane.request, "DELETE", f"/api/v1/nodes/{node.name}")
            self.kube_proxy = KubeProxySide(self._control_plane, self.mode, stack)
            self.pyproxy: Side = PyproxySide(self._control_plane, self.mode, stack)
            stack.callback(self._clear)
            self.kube_proxy.start(self._flags)
            self.pyproxy.start([*self._flags, *self._only_pyproxy])
            # kube-proxy may miss a zone that its Node has from the start (docs/differences.md), but not a change.
            self.replace_objects(State((), dict.fromkeys(ZONES)))
            self._at_exit = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the proxies, remove the labs and all objects."""
        self._at_exit.close()

    @property
    def sides(self) -> tuple[Side, Side]:
        """Both sides, kube-proxy first."""
        return self.kube_proxy, self.pyproxy

    def replace_objects(self, state: State) -> list[tuple[Entry, JsonObject]]:
        """Replace all objects by a state, wait until it is programmed on all nodes, and return the completed Services."""
        with self._kube_proxy_suspended():
            self._clear()
            for name, zone in state.zones.items():
                path = f"/api/v1/nodes/{name}"
                self._control_plane.request("PATCH", path, {"metadata": {"labels": {ZONE_LABEL: zone}}})
            self._zones = state.zones
            created = [(entry, self.add(entry)) for entry in state.entries]
            mark = self._marked()
        self._wait_for(self.kube_proxy, mark)
        for side in self.sides:
            side.forget_flows()
        self.forget_clients()
        return created

    def add(self, entry: Entry) -> JsonObject:
        """Create a Service with its slices, and return it as completed by the API server."""
        made = self.add_service(entry.service)
        self.add_slices(entry)
        return made

    def add_service(self, wanted: JsonObject) -> JsonObject:
        """Create a Service, and return it as completed."""
        services = f"/api/v1/namespaces/{wanted['metadata']['namespace']}/services"
        made = self._post(services, wanted)
        status = wanted.get("status", {})
        if status.get("loadBalancer", {}).get("ingress"):
            path = f"{services}/{wanted['metadata']['name']}/status"
            made = self._control_plane.request("PATCH", path, {"status": status})
        return made

    def add_slices(self, entry: Entry) -> None:
        """Create the slices of a Service."""
        for item in entry.slices:
            self._post(_slices_of(item["metadata"]["namespace"]), item)

    def remove_slices(self, entry: Entry) -> None:
        """Delete the slices of a Service."""
        for metadata in (item["metadata"] for item in entry.slices):
            self._delete(f"{_slices_of(metadata['namespace'])}/{metadata['name']}")

    def remove_service(self, name: str) -> None:
        """Delete a Service; its slices stay."""
        self._delete(f"/api/v1/namespaces/{NAMESPACE}/services/{name}")

    def catch_up(self) -> None:
        """Wait until all earlier writes are programmed on all nodes."""
        with self._kube_proxy_suspended():
            mark = self._marked()
        self._wait_for(self.kube_proxy, mark)

    def _marked(self) -> "_Mark":
        """Write markers until pyproxy has programmed all earlier writes; return the last marker."""
        # Rules that it writes after those of a marker are complete before those of the next marker.
        for _ in range(1 if self.mode.syncs is None else 2):
            mark = _Mark(next(_marks))
            self.add(mark.entry())
            self._wait_for(self.pyproxy, mark)
        return mark

    def _wait_for(self, side: Side, mark: "_Mark") -> None:
        for node in side.lab.nodes:
            side.wait_for(node, partial(mark.is_seen, self._zones[node.name]), f"rules of {mark}")

    def forget_clients(self) -> None:
        """Delete the session affinity of all clients on all nodes."""
        for side in self.sides:
            side.forget_clients()

    @contextmanager
    def _kube_proxy_suspended(self) -> Iterator[None]:
        """Prevent kube-proxy from syncing after each object, if syncs are slow."""
        if self.mode.syncs is None:
            yield
            return
        self.kube_proxy.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.kube_proxy.signal(signal.SIGCONT)

    def _post(self, collection: str, item: JsonObject) -> JsonObject:
        made = self._control_plane.request("POST", collection, item)
        self._paths.append(f"{collection}/{item['metadata']['name']}")
        return made

    def _delete(self, path: str) -> None:
        self._control_plane.request("DELETE", path)
        self._paths.remove(path)

    def _clear(self) -> None:
        while self._paths:
            self._delete(self._paths[-1])


def _slices_of(namespace: str) -> str:
    return f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"


@dataclass(frozen=True, slots=True)
class _Mark:
    """A marker Service, whose rules come with, or after, those of all objects that were written before.

    It has an endpoint for each zone, so that its rules also show in which zone a proxy locates its node.
    """

    number: int

    def __str__(self) -> str:
        return f"mark-{self.number}"

    def entry(self) -> Entry:
        """Return the Service and its slices."""
        owner = service(str(self), port(9))
        return Entry(owner, tuple(self._slice(owner, index) for index in range(len(VERSIONS))))

    def is_seen(self, zone: str | None, rules: str) -> bool:
        """Return whether the rules of a node include those of the marker, for its zone or for no zone."""
        expected = {each for each in MARK_ZONES if zone in {each, None}}
        return all(expected == self._zones_in(rules, network) for network in _MARK_NETWORKS)

    def _zones_in(self, rules: str, network: str) -> set[str]:
        # iptables and ipvsadm write address:port, with brackets for IPv6; nft writes address . port.
        found = re.findall(rf"{re.escape(network)}(\d)(?:\]?:| \. ){self.number}\b", rules)
        return {MARK_ZONES[int(digit) - 1] for digit in found}

    def _slice(self, owner: JsonObject, index: int) -> JsonObject:
        family = owner["spec"]["ipFamilies"][index]
        endpoints: list[JsonObject] = [
            {"addresses": [f"{_MARK_NETWORKS[index]}{place}"], "hints": {"forZones": [{"name": zone}]}}
            for place, zone in enumerate(MARK_ZONES, start=1)
        ]
        ports: list[JsonObject] = [{"name": "", "protocol": "TCP", "port": self.number}]
        return endpoint_slice(str(self), family, endpoints, ports, suffix=family.lower())
