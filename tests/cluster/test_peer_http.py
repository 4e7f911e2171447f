"""Valid and malformed requests, sent to the HTTP servers of the real kube-proxy and of pyproxy."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from tests.lab.http_shapes import SHAPES, Reply

from .controlplane import ControlPlane
from .peer.modes import MODES
from .peer.objects import State
from .peer.pair import Pair
from .peer.sides import Side
from .peer.world import CLUSTER_CIDR_FLAG
from .test_peer_health import CHECK_PORT, HEALTH_PORT, balanced, wait_for_both

METRICS_PORT = 10249
HEADERS = ("content-type", "x-content-type-options", "x-load-balancing-endpoint-weight", "location")
ASK = """
import json, sys
from tests.lab.http_shapes import SHAPES, send
replies = {}
for name, shape in SHAPES.items():
    reply = send((sys.argv[1], int(sys.argv[2])), shape, 20.0)
    replies[name] = (reply.status, reply.headers, reply.body.decode("latin-1"))
print(json.dumps(replies))
"""


@pytest.fixture(scope="module")
def pair(control_plane: ControlPlane) -> Iterator[Pair]:
    """Provide two labs with proxies that serve a Service with a health check node port."""
    flags = [CLUSTER_CIDR_FLAG, f"--metrics-bind-address=127.0.0.1:{METRICS_PORT}"]
    with Pair(control_plane, MODES[0], flags) as started:
        started.replace_objects(State((balanced("pod1-1"),)))
        wait_for_both(started, "node1", CHECK_PORT, 200)
        wait_for_both(started, "node1", HEALTH_PORT, 200, "/healthz")
        yield started


def replies(side: Side, port: int) -> dict[str, Reply]:
    """Send all requests to a port of node1, from the node itself."""
    text = side.lab["node1"].run(sys.executable, "-c", ASK, "127.0.0.1", str(port))
    return {name: Reply(*reply) for name, reply in json.loads(text).items()}


@pytest.mark.parametrize("port", [HEALTH_PORT, CHECK_PORT, METRICS_PORT])
def test_shapes(pair: Pair, port: int) -> None:
    """Each request gets the same status, headers and error text from both, as listed in the table of requests."""
    kube_proxy, pyproxy = (replies(side, port) for side in pair.sides)
    index = (HEALTH_PORT, CHECK_PORT, METRICS_PORT).index(port)

    assert {name: shape.statuses[index] for name, shape in SHAPES.items()} == {
        name: reply.status for name, reply in kube_proxy.items()
    }
    if port == METRICS_PORT:
        # docs/differences.md: pyproxy has an index of its pages there.
        assert (404, 200) == (kube_proxy.pop("root").status, pyproxy.pop("root").status)
    assert {name: essence(port, reply) for name, reply in kube_proxy.items()} == {
        name: essence(port, reply) for name, reply in pyproxy.items()
    }


def essence(port: int, reply: Reply) -> tuple[object, ...]:
    """Return the parts of an answer that do not depend on time: the body of errors, only the content type of pages."""
    headers = {name: reply.headers[name] for name in HEADERS if name in reply.headers}
    if port == METRICS_PORT:
        headers = {}  # pages of pyproxy have more headers, which prevent framing by other sites
    return reply.status, headers, reply.body if reply.status >= 300 and reply.status != 503 else ""
