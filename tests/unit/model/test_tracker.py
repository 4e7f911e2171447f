"""The present state of the cluster from changes, and what has to be planned again for each."""

import pytest
from msgspec import structs

from pyproxy.model.address import Family, parse_ip, parse_network
from pyproxy.model.change import Kind, ObjectChange, Put, Removed, Replaced, Unserved
from pyproxy.model.endpoint import EndpointSlice, SliceEndpoint, SlicePort
from pyproxy.model.names import NamespacedName, Protocol
from pyproxy.model.node import Node
from pyproxy.model.service import NoPacketPath, Service, ServicePort
from pyproxy.model.service_cidr import ServiceCidr
from pyproxy.model.tracker import MOST_TRIGGERS, Tracker
from pyproxy.model.unserved import UnservedService

WEB, DNS = NamespacedName("default", "web"), NamespacedName("default", "dns")
X, Y = NamespacedName("default", "x"), NamespacedName("default", "y")
NODE = Node(name="node1")
KUBERNETES, MORE = NamespacedName("", "kubernetes"), NamespacedName("", "more")


def service(name: NamespacedName, number: int = 80) -> Service:
    """Return a Service."""
    return Service(
        name=name, families=(Family.IPV4,), cluster_ips=(), ports=(ServicePort("", Protocol.TCP, number, 0),)
    )


def endpoint_slice(name: NamespacedName, owner: NamespacedName = WEB, ip: str = "10.244.1.11") -> EndpointSlice:
    """Return a slice with one endpoint."""
    port = SlicePort("", Protocol.TCP, 80)
    return EndpointSlice(name, owner, Family.IPV4, (port,), (SliceEndpoint(parse_ip(ip)),))


def service_cidr(name: NamespacedName, *cidrs: str) -> ServiceCidr:
    """Return a ServiceCIDR."""
    return ServiceCidr(name, tuple(map(parse_network, cidrs)))


def tracker_after(*changes: ObjectChange) -> Tracker:
    """Return a tracker to which changes were applied and from which they were taken."""
    tracker = Tracker()
    for change in changes:
        tracker.apply(change)
    tracker.take_dirty()
    tracker.take_node_changed()
    tracker.take_service_cidrs()
    return tracker


STATE: tuple[ObjectChange, ...] = (
    Replaced(Kind.SERVICE, (service(WEB), service(DNS))),
    Replaced(Kind.ENDPOINT_SLICE, (endpoint_slice(X), endpoint_slice(Y, DNS))),
    Put(NODE),
    Replaced(Kind.SERVICE_CIDR, (service_cidr(KUBERNETES, "fd00:10:96::/112", "10.96.0.0/16"),)),
)


@pytest.mark.parametrize(
    ("change", "dirty"),
    [
        pytest.param(Put(service(WEB, 81)), {WEB}, id="Service changed"),
        pytest.param(Put(service(WEB)), set(), id="equal Service"),
        pytest.param(Put(endpoint_slice(X, ip="10.244.1.12")), {WEB}, id="slice changed"),
        pytest.param(Put(endpoint_slice(X)), set(), id="equal slice"),
        pytest.param(Put(endpoint_slice(X, DNS)), {WEB, DNS}, id="slice changes hands"),
        pytest.param(Removed(Kind.SERVICE, WEB), {WEB}, id="Service gone"),
        pytest.param(Removed(Kind.SERVICE, X), set(), id="unknown Service gone"),
        pytest.param(Removed(Kind.ENDPOINT_SLICE, Y), {DNS}, id="slice gone"),
        pytest.param(Removed(Kind.ENDPOINT_SLICE, WEB), set(), id="unknown slice gone"),
        pytest.param(Replaced(Kind.SERVICE, (service(WEB),)), {DNS}, id="list without a Service"),
        pytest.param(Replaced(Kind.SERVICE, (service(WEB), service(DNS))), set(), id="equal list"),
        pytest.param(Replaced(Kind.ENDPOINT_SLICE, ()), {WEB, DNS}, id="empty list of slices"),
        pytest.param(Put(Node(name="node1", zone="a")), set(), id="Node changed"),
        pytest.param(Removed(Kind.SERVICE_CIDR, KUBERNETES), set(), id="ServiceCIDR gone"),
    ],
)
def test_dirty(change: ObjectChange, dirty: set[NamespacedName]) -> None:
    """A change names the Services that have to be planned again; one that changes nothing names none."""
    tracker = tracker_after(*STATE)
    tracker.apply(change)

    assert dirty == tracker.take_dirty()
    assert set() == tracker.take_dirty()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (Put(Node(name="node1", zone="a")), True),
        (Removed(Kind.NODE, NamespacedName("", "node1")), True),
        (Replaced(Kind.NODE, ()), True),
        (Put(NODE), False),
        (Removed(Kind.SERVICE_CIDR, KUBERNETES), False),
    ],
    ids=["changed", "gone", "not in the list", "equal", "another kind"],
)
def test_node_changed(change: ObjectChange, expected: object) -> None:
    """Every plan depends on the Node, so its change is returned once."""
    tracker = tracker_after(*STATE)
    tracker.apply(change)

    assert [expected, False] == [tracker.take_node_changed(), tracker.take_node_changed()]


def test_what_no_plan_depends_on() -> None:
    """A Node that is on its way out is known to be, and no plan changes."""
    tracker = tracker_after(*STATE)
    tracker.apply(Put(Node(name="node1", is_eligible=False)))

    assert tracker.node is not None
    assert (False, False) == (tracker.node.is_eligible, tracker.take_node_changed())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (Put(service_cidr(MORE, "10.112.0.0/16", "10.96.0.0/16")), "10.96.0.0/16 10.112.0.0/16 fd00:10:96::/112"),
        (Put(service_cidr(KUBERNETES, "10.112.0.0/16")), "10.112.0.0/16"),
        (Removed(Kind.SERVICE_CIDR, KUBERNETES), ""),
        (Replaced(Kind.SERVICE_CIDR, (service_cidr(MORE, "10.112.0.0/16"),)), "10.112.0.0/16"),
    ],
    ids=["one more", "changed", "gone", "another list"],
)
def test_service_cidrs(change: ObjectChange, expected: str) -> None:
    """The ranges of all ServiceCIDRs are returned, each once; they count as changed until they are taken."""
    tracker = tracker_after(*STATE)
    tracker.apply(change)
    pending = [tracker.pending]
    ranges = tracker.take_service_cidrs()
    pending.append(tracker.pending)

    assert (expected, [True, False]) == (" ".join(map(str, ranges or ())), pending)


def test_no_service_cidrs() -> None:
    """An empty list of ServiceCIDRs differs from a list that has not arrived."""
    tracker = tracker_after()
    unknown = tracker.take_service_cidrs()
    tracker.apply(Replaced(Kind.SERVICE_CIDR, ()))

    assert (None, True, ()) == (unknown, tracker.pending, tracker.take_service_cidrs())


@pytest.mark.parametrize(
    "change",
    [STATE[-1], Put(service_cidr(KUBERNETES, "fd00:10:96::/112", "10.96.0.0/16")), Removed(Kind.SERVICE_CIDR, MORE)],
    ids=["equal list", "equal object", "unknown object gone"],
)
def test_service_cidrs_as_before(change: ObjectChange) -> None:
    """An event without a difference does not cause a sync."""
    tracker = tracker_after(*STATE)
    tracker.apply(change)

    assert not tracker.pending


def test_pending() -> None:
    """There is something to do from a change until it was taken, be it of Services or of the Node."""
    tracker = tracker_after(*STATE)
    pending = [tracker.pending]
    tracker.apply(Put(service(WEB, 81)))
    pending.append(tracker.pending)
    tracker.take_dirty()
    tracker.apply(Removed(Kind.NODE, NamespacedName("", "node1")))
    pending.append(tracker.pending)

    assert [False, True, True] == pending


def test_known_kinds() -> None:
    """A kind is known from its first complete list on, not from a single object."""
    tracker = tracker_after(Put(service(WEB)), Replaced(Kind.ENDPOINT_SLICE, ()))

    assert [False, True] == [tracker.knows(kind) for kind in (Kind.SERVICE, Kind.ENDPOINT_SLICE)]
    assert not tracker.knows(Kind.SERVICE, Kind.ENDPOINT_SLICE)


def test_slices_in_order() -> None:
    """A Service's slices are sorted by name, whatever the order in which they arrived."""
    tracker = tracker_after(Put(endpoint_slice(Y)), Put(endpoint_slice(X)))

    assert [X, Y] == [one.name for one in tracker.slices(WEB)]


def test_slice_before_its_service() -> None:
    """A slice waits for a Service that is not known yet, and outlives one that is gone."""
    tracker = tracker_after(Put(endpoint_slice(X)), Put(service(WEB)), Removed(Kind.SERVICE, WEB))

    assert [endpoint_slice(X)] == list(tracker.slices(WEB))


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        (Kind.SERVICE, WEB, service(WEB)),
        (Kind.SERVICE, X, None),
        (Kind.ENDPOINT_SLICE, Y, endpoint_slice(Y, DNS)),
        (Kind.ENDPOINT_SLICE, WEB, None),
        (Kind.NODE, NamespacedName("", "node1"), NODE),
        (Kind.SERVICE_CIDR, KUBERNETES, service_cidr(KUBERNETES, "fd00:10:96::/112", "10.96.0.0/16")),
        (Kind.SERVICE_CIDR, MORE, None),
    ],
)
def test_last_known_version(kind: Kind, name: NamespacedName, expected: object) -> None:
    """The last good version of an object is found by kind and name."""
    assert expected == tracker_after(*STATE).known(kind, name)


def triggered(name: NamespacedName, at: float, ip: str, owner: NamespacedName = WEB) -> Put:
    """Return a slice that came with the time of its change."""
    return Put(structs.replace(endpoint_slice(name, owner, ip), triggered_at=at))


@pytest.mark.parametrize(
    ("changes", "triggers"),
    [
        pytest.param(
            [triggered(X, 5.0, "10.244.1.12"), triggered(X, 7.0, "10.244.1.13")], {WEB: [5.0, 7.0]}, id="two changes"
        ),
        pytest.param([triggered(X, 5.0, "10.244.1.11")], {}, id="an equal slice with a new time"),
        pytest.param([Put(endpoint_slice(X, ip="10.244.1.12"))], {}, id="no time"),
        pytest.param([triggered(X, 5.0, "10.244.1.12"), Removed(Kind.ENDPOINT_SLICE, X)], {}, id="gone again"),
        pytest.param([triggered(Y, 5.0, "10.244.1.12", WEB)], {WEB: [5.0]}, id="another Service's now"),
        pytest.param(
            [triggered(X, float(at), f"10.244.1.{12 + at % 2}") for at in range(1, 3 * MOST_TRIGGERS)],
            {WEB: [float(at) for at in range(1, MOST_TRIGGERS + 1)]},
            id="very many changes",
        ),
    ],
)
def test_triggers(changes: list[ObjectChange], triggers: dict[NamespacedName, list[float]]) -> None:
    """The times behind changes of slices are kept by Service until they are taken, as kube-proxy keeps them."""
    tracker = tracker_after(*STATE)
    for change in changes:
        tracker.apply(change)

    assert {(Family.IPV4, name): times for name, times in triggers.items()} == tracker.take_triggers()
    assert {} == tracker.take_triggers()


HEADLESS, INVALID = UnservedService(WEB, NoPacketPath.HEADLESS), UnservedService(WEB, problem="spec: wrong")


@pytest.mark.parametrize(
    ("changes", "unserved", "has_service"),
    [
        pytest.param([Unserved(HEADLESS)], HEADLESS, False, id="headless now"),
        pytest.param([Unserved(INVALID)], INVALID, True, id="invalid now"),
        pytest.param([Unserved(INVALID), Put(service(WEB))], None, True, id="valid again"),
        pytest.param([Unserved(INVALID), Removed(Kind.SERVICE, WEB)], None, False, id="removed"),
        pytest.param([Unserved(HEADLESS), Replaced(Kind.SERVICE, ())], None, False, id="not listed"),
        pytest.param([Replaced(Kind.SERVICE, (), (HEADLESS,))], HEADLESS, False, id="listed"),
    ],
)
def test_services_without_rules(
    changes: list[ObjectChange], unserved: UnservedService | None, *, has_service: bool
) -> None:
    """The names of Services without rules are kept; an invalid one keeps its last good version as well."""
    tracker = tracker_after(Replaced(Kind.SERVICE, (service(WEB),)), *changes)

    assert (unserved, has_service) == (tracker.unserved.get(WEB), WEB in tracker.services)
