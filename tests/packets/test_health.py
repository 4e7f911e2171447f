"""Health endpoints of running agents over the network, as load balancers and monitoring use them."""

from __future__ import annotations

import re

import pytest

from tests.lab import Ports
from tests.lab.waiting import wait_until

from .cluster import Cluster
from .health import CHECK_PORT, HEALTH_PORT, ask, balanced, status, wait_until_reported
from .objects import PLAN, VERSIONS, node, slices, terminating

OTHER_CHECK_PORT = 32021
AUTOSCALER = {"key": "ToBeDeletedByClusterAutoscaler", "value": "1763740000", "effect": "NoSchedule"}


@pytest.mark.parametrize("version", VERSIONS)
def test_health_of_an_agent(cluster: Cluster, version: int) -> None:
    """A working agent reports its health on every address of its node, in both families."""
    wait_until(lambda: status(cluster, "node1", "/readyz") == 200, "readiness")
    answers = [ask(cluster, "node1", HEALTH_PORT, path, version) for path in ("/healthz", "/livez")]

    assert [200, 200] == [answer and answer.status for answer in answers]
    assert answers[0] is not None
    assert {"IPv4", "IPv6"} == answers[0].body["status"].keys()
    assert answers[0].body["nodeEligible"] is True


@pytest.mark.parametrize("version", VERSIONS)
def test_endpoints_are_counted(cluster: Cluster, version: int) -> None:
    """Each node reports its number of ready local endpoints, in body and weight; terminating endpoints do not count."""
    checked = balanced()
    with cluster.having(checked, *slices(checked, "pod1-1", "pod1-2", terminating("pod1-3"), terminating("pod2-1"))):
        wait_until_reported(cluster, (200, 2), (503, 0), version=version)
        answer = ask(cluster, "node1", CHECK_PORT, "/any/path", version)

    assert answer is not None
    expected = {
        "service": {"namespace": "default", "name": "balanced"},
        "localEndpoints": 2,
        "serviceProxyHealthy": True,
    }
    assert ("2", expected) == (answer.weight, answer.body)


def test_the_check_follows_its_service(cluster: Cluster) -> None:
    """The health check follows the endpoints and the port of its Service, and is removed with the policy."""
    with cluster.having(balanced(), *slices(balanced(), "pod1-1")):
        wait_until_reported(cluster, (200, 1), (503, 0))
        cluster.put(*slices(balanced(), "pod2-1", "pod2-2"))
        wait_until_reported(cluster, (503, 0), (200, 2))

        cluster.put(balanced(OTHER_CHECK_PORT))
        wait_until_reported(cluster, (503, 0), (200, 2), number=OTHER_CHECK_PORT)
        wait_until_reported(cluster, None, None)

        cluster.put(balanced() | {"spec": balanced()["spec"] | {"externalTrafficPolicy": "Cluster"}})
        wait_until_reported(cluster, None, None, number=OTHER_CHECK_PORT)
        cluster.put(balanced())
        wait_until_reported(cluster, (503, 0), (200, 2))
    wait_until_reported(cluster, None, None)


def test_a_port_that_is_taken(cluster: Cluster) -> None:
    """A health check whose port is in use is logged once, affects nothing else, and is served once the port is free."""
    host, other = cluster.lab["node1"], balanced(OTHER_CHECK_PORT)
    other["metadata"]["name"] = "other"
    start = len(cluster.agents["node1"].stderr)

    def errors() -> list[str]:
        return re.findall(r"^E.*health check of .*", cluster.agents["node1"].stderr[start:], re.MULTILINE)

    host.serve(tcp=[CHECK_PORT])
    with cluster.having(balanced(), *slices(balanced(), "pod1-1"), other, *slices(other, "pod1-2")):
        wait_until_reported(cluster, (200, 1), (503, 0), number=OTHER_CHECK_PORT)
        wait_until(lambda: bool(errors()), "an error in the log")
        host.stop_serving(Ports(tcp=(CHECK_PORT,)))
        wait_until_reported(cluster, (200, 1), (503, 0))
        said = errors()

    places = {re.search(r"served on (\S+): ", error)[1] for error in said}  # type: ignore[index]  # it would fail
    assert len(places) == len(said)
    assert all("health check of Service default/balanced cannot be served" in error for error in said)


def test_one_port_in_two_services(cluster: Cluster) -> None:
    """The older Service gets the port on every node, in any order; the other one is logged, and gets the port later."""
    younger, older = balanced(), balanced()
    for each, name, created in ((younger, "a-younger", "2026-02-02"), (older, "b-older", "2026-01-01")):
        each["metadata"] |= {"name": name, "creationTimestamp": f"{created}T00:00:00Z"}
    start = len(cluster.agents["node1"].stderr)

    def services() -> list[str | None]:
        answers = [ask(cluster, planned.name, CHECK_PORT) for planned in PLAN.nodes]
        return [answer and answer.body["service"]["name"] for answer in answers]

    with cluster.having(younger):
        wait_until(lambda: services() == ["a-younger"] * len(PLAN.nodes), "a server for the only Service")
        with cluster.having(older):
            wait_until(lambda: services() == ["b-older"] * len(PLAN.nodes), "a server for the older Service")
        wait_until(lambda: services() == ["a-younger"] * len(PLAN.nodes), "a server for the remaining Service")
    said = cluster.agents["node1"].stderr[start:]

    message = f"a-younger is not served: port {CHECK_PORT} is used by Service default/b-older"
    assert 1 == said.count(message)
    assert "health check of Service default/a-younger cannot be served" not in said


def test_a_node_that_the_autoscaler_drains(cluster: Cluster) -> None:
    """/healthz fails on a node that the autoscaler drains; the health of agent and endpoints does not change."""
    drained = node("node1")
    drained["spec"]["taints"] = [AUTOSCALER]
    with cluster.having(balanced(), *slices(balanced(), "pod1-1")):
        cluster.put(drained)
        wait_until(lambda: status(cluster, "node1", "/healthz") == 503, "the node is not eligible")
        answer = ask(cluster, "node1", HEALTH_PORT, "/healthz")
        wait_until_reported(cluster, (200, 1), (503, 0))
        others = [status(cluster, "node1", "/livez"), status(cluster, "node2", "/healthz")]
        cluster.put(node("node1"))
        wait_until(lambda: status(cluster, "node1", "/healthz") == 200, "the node is eligible")

    assert answer is not None
    assert (False, True, [200, 200]) == (answer.body["nodeEligible"], answer.body["healthy"], others)
