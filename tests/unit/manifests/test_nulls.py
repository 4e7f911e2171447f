"""Nulls in files: a field that is null counts as absent, as for Go's decoder, or is an error that names its place."""

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pyproxy.manifests.file_objects import FileObjects, combine
from pyproxy.manifests.manifest import read_manifest

METADATA = {
    "name": "web",
    "namespace": "default",
    "uid": "1",
    "resourceVersion": "1",
    "creationTimestamp": "2026-01-01T00:00:00Z",
    "annotations": {
        "endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z",
        "pyproxy.io/ipvs-scheduler": "mh",
    },
}
SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": METADATA,
    "spec": {
        "type": "LoadBalancer",
        "clusterIP": "10.96.0.10",
        "clusterIPs": ["10.96.0.10", "fd00:10:96::10"],
        "ipFamilies": ["IPv4", "IPv6"],
        "ports": [{"name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080, "targetPort": 8080}],
        "externalIPs": ["192.0.2.1"],
        "selector": {"app": "web"},
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
        "internalTrafficPolicy": "Local",
        "externalTrafficPolicy": "Local",
        "healthCheckNodePort": 30081,
        "allocateLoadBalancerNodePorts": True,
        "loadBalancerSourceRanges": ["198.51.100.0/24"],
        "trafficDistribution": "PreferSameZone",
    },
    "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1", "ipMode": "VIP"}]}},
}
SLICE = {
    "apiVersion": "discovery.k8s.io/v1",
    "kind": "EndpointSlice",
    "metadata": METADATA | {"labels": {"kubernetes.io/service-name": "web"}},
    "addressType": "IPv4",
    "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
    "endpoints": [
        {
            "addresses": ["10.244.0.7"],
            "conditions": {"ready": True, "serving": True, "terminating": False},
            "hints": {"forZones": [{"name": "a"}], "forNodes": [{"name": "node1"}]},
            "nodeName": "node1",
            "targetRef": {"kind": "Pod"},
        }
    ],
}
ENDPOINTS = {
    "apiVersion": "v1",
    "kind": "Endpoints",
    "metadata": METADATA,
    "subsets": [
        {
            "addresses": [{"ip": "10.244.0.8", "nodeName": "node1"}],
            "notReadyAddresses": [{"ip": "10.244.0.9"}],
            "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        }
    ],
}
NODE = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "node1", "labels": {"topology.kubernetes.io/zone": "a"}},
    "spec": {"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24"], "taints": [{"key": "a"}]},
    "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
}
SERVICE_CIDR = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "ServiceCIDR",
    "metadata": {"name": "kubernetes"},
    "spec": {"cidrs": ["10.96.0.0/16"]},
}
OBJECTS: tuple[dict[str, Any], ...] = (SERVICE, SLICE, ENDPOINTS, NODE, SERVICE_CIDR)
LIST = {"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "1"}, "items": [*OBJECTS]}
Path = tuple[str | int, ...]


def paths(tree: object) -> Iterator[Path]:
    """Yield the path of each field and each item in a tree."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for name, value in inner:
        yield (name,)
        yield from ((name, *path) for path in paths(value))


def edited(tree: object, path: Path, *, delete: bool = False) -> Any:  # noqa: ANN401 - any JSON
    """Return a copy of a tree in which the value at a path is null, or deleted."""
    copy: Any = deepcopy(tree)
    parent = copy
    for step in path[:-1]:
        parent = parent[step]
    if delete:
        del parent[path[-1]]
    else:
        parent[path[-1]] = None
    return copy


def read(tree: object) -> tuple[FileObjects, list[str]]:
    """Return objects and problems of a tree as JSON, where the place of a problem does not depend on lines."""
    objects = combine([read_manifest("file", json.dumps(tree).encode())])
    return replace(objects, problems=()), [str(problem) for problem in objects.problems]


FIELDS = [
    pytest.param(tree, path, id=f"{tree['kind']}: {'.'.join(map(str, path))}")
    for tree in (*OBJECTS, {**LIST, "items": [SERVICE]}, {**LIST, "kind": "ServiceList", "items": [SERVICE]})
    for path in paths(tree)
    # A label or annotation that is null exists, and so does an item of a list.
    if isinstance(path[-1], str) and not {"labels", "annotations", "selector"} & {*path[:-1]}
]


@pytest.mark.parametrize(("tree", "path"), FIELDS)
def test_a_null_field_is_absent(tree: dict[str, Any], path: Path) -> None:
    """A file with a null field gives the same objects and problems as one without the field."""
    expected, found = read(edited(tree, path, delete=True)), read(edited(tree, path))

    assert expected == found


@given(chosen=st.lists(st.sampled_from([*paths(LIST)]), min_size=1, max_size=5), as_yaml=st.booleans())
def test_any_nulls_are_read_or_reported(chosen: list[Path], as_yaml: bool) -> None:  # noqa: FBT001 - an example's value
    """Whatever is null in a file, reading it works, and each problem names file, object and field."""
    tree: Any = LIST
    for path in chosen:
        try:
            tree = edited(tree, path)
        except TypeError:
            continue  # A value around it is null already.
    text = yaml.safe_dump(tree) if as_yaml else json.dumps(tree)
    problems = combine([read_manifest("file", text.encode())]).problems

    for problem in problems:
        assert str(problem).startswith("file"), problem
        assert problem.error.subject, problem
        assert problem.error.field, problem
