"""`pyproxy explain --rules` on rules that the real kube-proxy 1.37 has just written, for the objects of the docs."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import yaml

from tests.cli.kube_proxy_rules import CASES, NODE_IPS, check, stored_dump

from .api import JsonObject
from .controlplane import ControlPlane
from .kubeproxy import Backend, KubeProxy
from .namespace import fresh_namespace

OBJECTS = Path(__file__).parents[1] / "inputs" / "explain.yaml"
COLLECTIONS = {
    "Service": "/api/v1/namespaces/default/services",
    "EndpointSlice": "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
}
BACKENDS: dict[str, Backend] = {"iptables": "iptables-nft", "nftables": "nftables"}


@pytest.fixture(scope="module")
def objects(control_plane: ControlPlane) -> Iterator[None]:
    """Write the objects to the API server."""
    with ExitStack() as stack:
        for item in yaml.safe_load_all(OBJECTS.read_text()):
            for path in _written(control_plane, item):
                stack.callback(control_plane.request, "DELETE", path)
        yield


def _written(control_plane: ControlPlane, item: JsonObject) -> Iterator[str]:
    name = item["metadata"]["name"]
    if item["kind"] == "Node":
        addresses = [each["address"] for each in item["status"]["addresses"]]
        control_plane.create_node(name, addresses, pod_cidrs=item["spec"]["podCIDRs"])
        yield f"/api/v1/nodes/{name}"
    elif item["kind"] in COLLECTIONS:
        collection = COLLECTIONS[item["kind"]]
        control_plane.request("POST", collection, item)
        yield f"{collection}/{name}"
        if "status" in item:
            control_plane.request("PATCH", f"{collection}/{name}/status", {"status": item["status"]})


@pytest.fixture(scope="module", params=["node1", "node2"])
def node(request: pytest.FixtureRequest) -> str:
    """Provide the name of each node."""
    return str(request.param)


@contextmanager
def node_namespace(node: str) -> Iterator[str]:
    """Provide a network namespace with the address of a node, without which nftables mode serves no node port."""
    with fresh_namespace() as namespace:
        subprocess.run(["ip", "-netns", namespace, "address", "add", NODE_IPS[node], "dev", "lo"], check=True)
        yield namespace


@pytest.fixture(scope="module", params=BACKENDS)
def dump(
    control_plane: ControlPlane,
    objects: None,  # noqa: ARG001 - they are written
    node: str,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Provide a file with the rules of kube-proxy on a node; `--update-golden` keeps it for tests/cli."""
    flags = ["--cluster-cidr=10.244.0.0/16"]
    backend = BACKENDS[request.param]
    with (
        node_namespace(node) as namespace,
        KubeProxy(control_plane, namespace, node=node, backend=backend, flags=flags) as proxy,
    ):
        proxy.catch_up()
        rules = proxy.rules()
    file = tmp_path_factory.mktemp("rules") / "rules"
    file.write_text(rules)
    if request.config.getoption("--update-golden"):
        stored_dump(request.param, node).write_text(rules)
    return file


def test_fresh_rules(dump: Path, node: str, request: pytest.FixtureRequest) -> None:
    """The rules of a running kube-proxy have the verdict, the endpoints and the Service of the objects."""
    mode = request.node.callspec.params["dump"]
    for case in CASES:
        if case.node == node and mode in case.modes:
            check(dump, case)
