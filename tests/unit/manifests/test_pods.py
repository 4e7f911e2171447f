"""Names and addresses of pods in files: from Pods and from targetRefs, of every format, and never a problem."""

import json
from pathlib import Path

import pytest
import yaml

from pyproxy.manifests.files import read_objects
from pyproxy.manifests.pods import Pod, pods_of
from pyproxy.model.address import parse_ip
from pyproxy.model.names import NamespacedName

OBJECTS: list[dict[str, object]] = [
    {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "a"},
        "spec": {"nodeName": "node1"},
        "status": {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
    },
    {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pending"}, "status": {}},
    {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": ["wrong"]}, "status": {"podIP": 3}},
    {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "x", "namespace": "shop", "labels": {"kubernetes.io/service-name": "b"}},
        "addressType": "IPv4",
        "ports": [{"port": 80}],
        "endpoints": [
            {"addresses": ["10.0.0.2"], "nodeName": "node2", "targetRef": {"kind": "Pod", "name": "b"}},
            {"addresses": ["10.0.0.3"], "targetRef": {"kind": "Node", "name": "node3"}},
            {"addresses": ["10.0.0.4"], "targetRef": "wrong"},
            {"addresses": ["10.0.0.5"]},
        ],
    },
]
EXPECTED = (
    Pod(NamespacedName("default", "a"), (parse_ip("10.0.0.1"), parse_ip("fd00::1")), "node1"),
    Pod(NamespacedName("shop", "b"), (parse_ip("10.0.0.2"),), "node2"),
)


@pytest.mark.parametrize("name", ["list.json", "list.yaml", "documents.yaml"])
def test_pods(name: str, tmp_path: Path) -> None:
    """Pods with an address and targetRefs to pods are found in every format; other content is left out."""
    everything = {"apiVersion": "v1", "kind": "List", "items": OBJECTS}
    texts = {
        "list.json": json.dumps(everything),
        "list.yaml": yaml.safe_dump(everything),
        "documents.yaml": yaml.safe_dump_all(OBJECTS),
    }
    (tmp_path / name).write_text(texts[name])
    found = read_objects(tmp_path / name, with_pods=True)

    assert EXPECTED == found.pods
    assert [4] == [len(each.endpoints) for each in found.slices]
    assert not found.skipped


def test_pods_are_not_read_unless_requested(tmp_path: Path) -> None:
    """An agent reads no pods, and counts Pods as skipped."""
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": OBJECTS}))
    found = read_objects(path)

    assert () == found.pods
    assert {"Pod": 3} == dict(found.skipped)


@pytest.mark.parametrize("field", ["name", "namespace"])
def test_target_that_is_not_a_name(field: str) -> None:
    """The target of an endpoint with terminal codes in its name is left out: an API server does not validate it."""
    target = {"kind": "Pod", "name": "web-1", "namespace": "default"} | {field: "a\x1b[31m"}
    endpoint = {"addresses": ["10.244.1.11"], "targetRef": target}

    assert [] == list(pods_of("EndpointSlice", {"endpoints": [endpoint]}))
