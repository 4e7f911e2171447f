"""Health endpoints of the real kube-proxy and pyproxy: status, headers and body are the same."""

import json
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests.cluster.process import ClusterError
from tests.lab.waiting import wait_until

from .controlplane import ControlPlane
from .http_get import Answer, get_inside
from .peer.handmade import BALANCED, LOCAL
from .peer.modes import MODES, NFTABLES
from .peer.objects import Entry, JsonObject, On, State, entry, ingress, port, service
from .peer.pair import Pair
from .peer.sides import Side
from .peer.world import CLUSTER_CIDR_FLAG, VERSIONS

PATIENCE_SECONDS = 20.0
HEALTH_PORT = 10256
CHECK_PORT = 32021
HEADERS = ("Content-Type", "X-Content-Type-Options", "X-Load-Balancing-Endpoint-Weight", "Content-Length")
TERMINATING = {"ready": False, "serving": True, "terminating": True}
AUTOSCALER = {"key": "ToBeDeletedByClusterAutoscaler", "value": "1763740000", "effect": "NoSchedule"}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")


@pytest.fixture(scope="module", params=(MODES[0], NFTABLES), ids=str)
def pair(control_plane: ControlPlane, request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Provide two labs with proxies in one mode."""
    with Pair(control_plane, request.param, [CLUSTER_CIDR_FLAG]) as started:
        yield started


def balanced(*endpoints: str | On) -> Entry:
    """Return a Service with a load balancer and a health check node port."""
    spec = service("balanced", port(80), ingress=ingress(111), healthCheckNodePort=CHECK_PORT, **LOCAL, **BALANCED)
    return entry(spec, *endpoints)


def ask(side: Side, node: str, number: int, path: str, version: int = 4) -> Answer | None:
    """Send a request to a port of a node from outside the cluster; None if nothing listens."""
    answer = get_inside(side.lab["outside1"].namespace.name, str(side.lab[node].address(version)), number, path)
    if answer is None:
        return None
    return answer._replace(headers={name: answer.headers[name] for name in HEADERS if name in answer.headers})


def both(pair: Pair, node: str, number: int, path: str = "/", version: int = 4) -> list[Answer | None]:
    """Send a request to a node of each side, kube-proxy's first."""
    return [ask(side, node, number, path, version) for side in pair.sides]


def wait_for_both(pair: Pair, node: str, number: int, status: int | None, path: str = "/") -> None:
    """Wait until a node of each side answers with a status."""

    def answer() -> bool:
        return [status] * 2 == [each and each.status for each in both(pair, node, number, path)]

    wait_until(answer, f"{status} on port {number} of both sides", timeout_seconds=PATIENCE_SECONDS)


def has_ended(side: Side) -> bool:
    """Return whether the proxy of a node has exited."""
    try:
        side.require_alive(side.lab["node2"])
    except ClusterError:
        return True
    return False


def has_logged(side: Side, words: str) -> bool:
    """Return whether the proxy of a node has logged a text."""
    return words in side.log(side.lab["node2"])


def shape(answer: Answer | None) -> Answer:
    """Return an answer without times, whose text length varies."""
    assert answer is not None
    headers = {name: text for name, text in answer.headers.items() if name != "Content-Length"}
    return Answer(answer.status, headers, _TIME.sub("TIME", answer.body))


@pytest.mark.parametrize("version", VERSIONS)
def test_health_check_node_ports(pair: Pair, version: int) -> None:
    """Answers to load balancers are equal byte for byte, in both families, on nodes with and without endpoints."""
    pair.replace_objects(State((balanced("pod1-1", "pod1-2", On("pod1-3", TERMINATING), On("pod2-1", TERMINATING)),)))
    wait_for_both(pair, "node1", CHECK_PORT, 200)
    wait_for_both(pair, "node2", CHECK_PORT, 503)

    for node, count in (("node1", 2), ("node2", 0)):
        kube_proxy, pyproxy = both(pair, node, CHECK_PORT, "/any/path", version)
        assert kube_proxy == pyproxy
        assert kube_proxy is not None
        assert count == json.loads(kube_proxy.body)["localEndpoints"]


def test_health_check_node_ports_follow_their_services(pair: Pair) -> None:
    """Health checks follow changes of endpoints and Services on both sides."""
    pair.replace_objects(State((balanced("pod2-1"),)))
    wait_for_both(pair, "node1", CHECK_PORT, 503)
    wait_for_both(pair, "node2", CHECK_PORT, 200)
    pair.replace_objects(State((balanced("pod1-1"),)))
    wait_for_both(pair, "node1", CHECK_PORT, 200)
    wait_for_both(pair, "node2", CHECK_PORT, 503)
    pair.replace_objects(State(()))
    wait_for_both(pair, "node1", CHECK_PORT, None)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", ["/healthz", "/livez", "/", "/healthz/x"])
def test_health(pair: Pair, path: str, version: int) -> None:
    """Both sides have the same paths and headers, and the bodies differ only in times."""
    wait_for_both(pair, "node1", HEALTH_PORT, 200, "/healthz")
    kube_proxy, pyproxy = both(pair, "node1", HEALTH_PORT, path, version)

    assert shape(kube_proxy) == shape(pyproxy)


def test_node_that_the_autoscaler_drains(pair: Pair, control_plane: ControlPlane) -> None:
    """/healthz of both sides fails with the taint, with the same body; /livez does not change."""

    def taint(*taints: JsonObject) -> None:
        control_plane.request("PATCH", "/api/v1/nodes/node2", {"spec": {"taints": list(taints) or None}})

    taint(AUTOSCALER)
    wait_for_both(pair, "node2", HEALTH_PORT, 503, "/healthz")
    answers = {path: [*map(shape, both(pair, "node2", HEALTH_PORT, path))] for path in ("/healthz", "/livez")}
    taint()
    wait_for_both(pair, "node2", HEALTH_PORT, 200, "/healthz")

    for kube_proxy, pyproxy in answers.values():
        assert kube_proxy == pyproxy
    assert (503, 200) == (answers["/healthz"][0][0], answers["/livez"][0][0])


def test_node_that_is_deleted(pair: Pair, control_plane: ControlPlane) -> None:
    """After its Node is deleted, kube-proxy exits; pyproxy continues with the last known Node."""
    path = "/api/v1/nodes/node2"
    node: dict[str, Any] = control_plane.request("GET", path)
    pair.replace_objects(State((balanced("pod2-1"),)))
    wait_for_both(pair, "node2", CHECK_PORT, 200)
    control_plane.request("DELETE", path)
    try:
        kube_proxy, pyproxy = pair.sides
        wait_until(partial(has_ended, kube_proxy), "kube-proxy ends", timeout_seconds=PATIENCE_SECONDS)
        words = "there is no such Node object"
        wait_until(partial(has_logged, pyproxy, words), words, timeout_seconds=PATIENCE_SECONDS)
        answers = [ask(pyproxy, "node2", HEALTH_PORT, "/healthz"), ask(pyproxy, "node2", CHECK_PORT, "/")]
    finally:
        metadata = {key: node["metadata"][key] for key in ("name", "labels")}
        control_plane.request("POST", "/api/v1/nodes", node | {"metadata": metadata})

    assert [200] * 2 == [answer and answer.status for answer in answers]
