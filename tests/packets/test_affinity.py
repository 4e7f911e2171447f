"""Session affinity: connections of one client go to one endpoint until the time-out, or until the endpoint is gone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, repeat

import pytest

from tests.lab import Outcome, Probe, probe_all, tcp, udp

from .cluster import Cluster
from .modes import needs
from .objects import PLAN, VERSIONS, JsonObject, ingress, port, service, slices
from .table import address_of

PROTOCOLS = [tcp, udp]
ENDPOINTS = ("pod1-1", "pod1-2", "pod2-1", "pod2-2")
CLIENTS = [
    *(pod.name for node in PLAN.nodes for pod in node.pods),
    *("node1", "node2", "outside1", "outside2"),
]
REPEATS = 12
SHORT_SECONDS = 2
"""Time-out of the Service whose affinity expires: longer than its connections take, because each one restarts it."""


def pinned(name: str, number: int, *, seconds: int, **spec: str) -> JsonObject:
    """Return a Service with affinity, for TCP and UDP."""
    item = service(
        name,
        number,
        port(80, name="t", node_port=30000 + number),
        port(80, "UDP", name="u", node_port=30000 + number),
        type="LoadBalancer",
        sessionAffinity="ClientIP",
        sessionAffinityConfig={"clientIP": {"timeoutSeconds": seconds}},
        ingress=ingress(number),
    )
    item["spec"] |= spec
    return item


LONG = pinned("pinned", 80, seconds=10800)
SHORT = pinned("pinned-shortly", 81, seconds=SHORT_SECONDS)
SHRINKING = pinned("pinned-to-few", 82, seconds=10800)
LOCAL = pinned("pinned-locally", 83, seconds=10800, externalTrafficPolicy="Local", internalTrafficPolicy="Local")


@pytest.fixture(scope="module", autouse=True)
def objects(cluster: Cluster) -> Iterator[None]:
    """Add the objects of this suite."""
    services = (LONG, SHORT, SHRINKING, LOCAL)
    with cluster.having(*services, *chain.from_iterable(slices(each, *ENDPOINTS) for each in services)):
        yield


def servers(outcomes: list[Outcome]) -> set[str | None]:
    """Return the names of the servers that answered; None for no answer."""
    return {outcome.server for outcome in outcomes}


def choices(cluster: Cluster, probe: Probe, times: int = REPEATS) -> Mapping[str, set[str | None]]:
    """Send the probe from every client many times, and return the servers that each reached."""
    # Sequentially for each client: simultaneous connections do not see each other's affinity entries.
    outcomes: dict[str, list[Outcome]] = {client: [] for client in CLIENTS}
    for _ in range(times):
        for client, outcome in zip(CLIENTS, probe_all([(cluster.lab[name], probe) for name in CLIENTS]), strict=True):
            outcomes[client].append(outcome)
    return {client: servers(met) for client, met in outcomes.items()}


def cluster_ip(service: JsonObject, version: int) -> str:
    """Return the Service's cluster IP."""
    return str(service["spec"]["clusterIPs"][VERSIONS.index(version)])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_client_stays_with_its_endpoint(cluster: Cluster, protocol: Callable[..., Probe], version: int) -> None:
    """All connections of a client reach one endpoint, and clients are spread over several endpoints."""
    met = choices(cluster, protocol(cluster_ip(LONG, version), 80))

    assert {1} == {len(servers) for servers in met.values()}
    assert len(set.union(*met.values())) > 1
    assert None not in set.union(*met.values())


@needs("shares_pins")
@pytest.mark.parametrize("version", VERSIONS)
def test_client_stays_with_its_endpoint_whichever_address_it_uses(cluster: Cluster, version: int) -> None:
    """Cluster IP, load balancer address and node port of one Service port share the affinity of a client."""
    client = cluster.lab["outside1"]
    destinations = [(cluster_ip(LONG, version), 80), (address_of("public80", version), 80)]
    destinations.append((address_of("node1", version), 30080))

    outcomes = [client.probe(tcp(*destination))[0] for destination in destinations * REPEATS]

    assert 1 == len(servers(outcomes))
    assert None not in servers(outcomes)


@needs("ends_pins_in_time")
@pytest.mark.parametrize("version", VERSIONS)
def test_pin_expires(cluster: Cluster, version: int) -> None:
    """After the time-out without a connection a client may get another endpoint; each connection restarts the time."""
    probe = tcp(cluster_ip(SHORT, version), 80)
    before = choices(cluster, probe, times=2)
    still = choices(cluster, probe, times=2)
    # The test has to sleep: any connection would restart the time-out.
    time.sleep(SHORT_SECONDS + 0.5)
    after = choices(cluster, probe, times=1)

    assert before == still
    # The probability that all these clients get the same endpoint again is 4 to the power of -11.
    assert before != after


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pins_of_a_removed_endpoint_move(cluster: Cluster, protocol: Callable[..., Probe], version: int) -> None:
    """Clients of a removed endpoint get another and stay with it; all other clients keep their endpoint."""
    cluster.put(*slices(SHRINKING, *ENDPOINTS))
    probe = protocol(cluster_ip(SHRINKING, version), 80)
    before = choices(cluster, probe, times=1)
    removed = min(name for names in before.values() for name in names if name)

    cluster.put(*slices(SHRINKING, *(name for name in ENDPOINTS if name != removed)))
    after = choices(cluster, probe)

    assert {client: names for client, names in before.items() if names != {removed}} == {
        client: names for client, names in after.items() if before[client] != {removed}
    }
    assert {1} == {len(names) for names in after.values()}
    assert removed not in set.union(*after.values())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("client", "destination", "allowed"),
    [
        ("client-pod", "cluster IP", {"pod1-1", "pod1-2"}),
        ("outside2", "public83", {"pod2-1", "pod2-2"}),
        ("client-pod", "public83", set(ENDPOINTS)),
    ],
)
def test_pin_respects_the_traffic_policy(
    cluster: Cluster, client: str, destination: str, allowed: set[str], version: int
) -> None:
    """Affinity from an address with one traffic policy never leads to an endpoint that another policy excludes."""
    ips = [cluster_ip(LOCAL, version), str(address_of("public83", version))]
    asked = ips[0] if destination == "cluster IP" else ips[1]

    outcomes = [cluster.lab[client].probe(tcp(ip, 80))[0] for ip in chain(ips, repeat(asked, REPEATS))]

    assert servers(outcomes[2:]) <= allowed
    assert None not in servers(outcomes)
