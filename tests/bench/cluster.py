"""The cluster that both programs follow: its objects, and the way to its API server.

The API server runs in a network namespace of its own, and a veth pair connects each node to it, as on real nodes. So no
relay copies bytes in this process, and the counters of the pair show what an agent received.
"""

import http.client
import itertools
import json
import ssl
import subprocess
import time
import uuid
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple, Self, TypeAlias

from tests.cluster.api import JsonObject
from tests.cluster.controlplane import KUBE_PROXY_USER, ControlPlane
from tests.cluster.namespace import call_inside
from tests.cluster.objects import SLICES

NODE = "node-1"
PORT = 8080
_SLICE_ENDPOINTS = 100
"""Of the EndpointSlice controller: the default of ``--max-endpoints-per-slice``."""
_ENDPOINTS = int(IPv4Address("10.128.0.0"))
_GENERATION = 1 << 20
"""Addresses of all endpoints at one time; a rolling restart moves a Service to the next range."""
_GENERATIONS = 4
_REPLACEMENTS = int(IPv4Address("10.208.0.0"))
ENDPOINT_NETWORKS = ("10.128.0.0/10", "10.192.0.0/11")
"""All of these addresses."""

_REUSE_SECONDS = 60.0
"""The API server closes connections that were idle for 90 s."""
_CREATED = "2026-01-01T00:00:00Z"

Patch: TypeAlias = tuple[str, JsonObject]
"""The path and the body of a PATCH request."""


class Shape(NamedTuple):
    """The size of a cluster."""

    services: int
    endpoints: int
    """Of each Service."""

    def __str__(self) -> str:
        return f"{self.services}x{self.endpoints}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the shape of a text such as 1000 or 5000x50; the default is three endpoints."""
        services, _, endpoints = text.partition("x")
        return cls(int(services), int(endpoints or 3))


def service_ip(number: int) -> str:
    """Return the cluster IP of a Service."""
    return f"10.96.{1 + number // 250}.{number % 250 + 1}"


def service(number: int) -> JsonObject:
    """Return a Service with one port, as the API server keeps it."""
    ip, name = service_ip(number), f"web-{number}"
    port: JsonObject = {".": {}, "f:port": {}, "f:protocol": {}, "f:targetPort": {}}
    fields = {
        "f:spec": {
            "f:internalTrafficPolicy": {},
            "f:ports": {".": {}, 'k:{"port":80,"protocol":"TCP"}': port},
            "f:selector": {},
            "f:sessionAffinity": {},
            "f:type": {},
        }
    }
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(name, number, "kubectl-create", "v1", fields) | {"labels": {"app": name}},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": ip,
            "clusterIPs": [ip],
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
            "sessionAffinity": "None",
            "selector": {"app": name},
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": PORT}],
        },
        "status": {"loadBalancer": {}},
    }


def ip_address(number: int) -> JsonObject:
    """Return the object that allocates a cluster IP: without it, a controller of the API server would be busy creating it."""
    labels = {"ipaddress.kubernetes.io/ip-family": "IPv4", "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"}
    metadata = {"name": service_ip(number), "uid": _uid(number), "creationTimestamp": _CREATED, "labels": labels}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "IPAddress",
        "metadata": metadata,
        "spec": {"parentRef": {"resource": "services", "namespace": "default", "name": f"web-{number}"}},
    }


def endpoint_slice(number: int, ips: Sequence[str], part: int = 0) -> JsonObject:
    """Return one EndpointSlice of a Service, with the fields that the EndpointSlice controller writes."""
    api, service = "discovery.k8s.io/v1", f"web-{number}"
    annotations = {"endpoints.kubernetes.io/last-change-trigger-time": _CREATED}
    labels = {
        "app": service,
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
        "kubernetes.io/service-name": service,
    }
    fields: JsonObject = {
        "f:addressType": {},
        "f:endpoints": {},
        "f:metadata": {
            "f:annotations": {".": {}, **{f"f:{name}": {} for name in annotations}},
            "f:generateName": {},
            "f:labels": {".": {}, **{f"f:{name}": {} for name in labels}},
            "f:ownerReferences": {".": {}, f'k:{{"uid":"{_uid(number)}"}}': {}},
        },
        "f:ports": {},
    }
    owner = {"apiVersion": "v1", "kind": "Service", "name": service, "uid": _uid(number)}
    return {
        "apiVersion": api,
        "kind": "EndpointSlice",
        "metadata": _metadata(f"{service}-{part + 1}", number, "kube-controller-manager", api, fields)
        | {"generateName": f"{service}-", "annotations": annotations, "labels": labels}
        | {"ownerReferences": [owner | {"controller": True, "blockOwnerDeletion": True}]},
        "addressType": "IPv4",
        "ports": [{"name": "", "protocol": "TCP", "port": PORT}],
        "endpoints": [_endpoint(number, ip) for ip in ips],
    }


def _endpoint(number: int, ip: str) -> JsonObject:
    pod = f"web-{number}-{ip.replace('.', '-')}"
    return {
        "addresses": [ip],
        "conditions": {"ready": True, "serving": True, "terminating": False},
        "nodeName": f"node-{int(IPv4Address(ip)) % 5000 + 2}",
        "targetRef": {"kind": "Pod", "namespace": "default", "name": pod, "uid": _uid(int(IPv4Address(ip)))},
        "zone": "zone-a",
    }


def _metadata(name: str, number: int, manager: str, api: str, fields: JsonObject) -> JsonObject:
    managed = {"manager": manager, "operation": "Update", "apiVersion": api, "time": _CREATED}
    return {
        "name": name,
        "namespace": "default",
        "uid": _uid(number),
        "creationTimestamp": _CREATED,
        "managedFields": [{**managed, "fieldsType": "FieldsV1", "fieldsV1": fields}],
    }


def _uid(number: int) -> str:
    return str(uuid.UUID(int=number))


class Cluster:
    """A cluster of Services; it remembers the present endpoints of each."""

    def __init__(self, control_plane: ControlPlane, shape: Shape) -> None:
        self.control_plane = control_plane
        self.shape = shape
        self.probed = shape.services // 2
        """The Service whose changes are observed by connections."""
        self._ips = [self._restarted_ips(number, 0) for number in range(shape.services)]
        self._replacements = itertools.count()
        self._restarts = itertools.count(1)
        self._uplinks = itertools.count()

    def fill(self) -> None:
        """Create the Node and the objects; these directly in etcd, because the API server would take minutes."""
        self.control_plane.create_node(NODE, ["192.0.2.11"], pod_cidrs=["10.244.0.0/24"])
        items = {}
        for number, ips in enumerate(self._ips):
            items[f"services/specs/default/web-{number}"] = service(number)
            items[f"ipaddresses/{service_ip(number)}"] = ip_address(number)
            for part, some in enumerate(_parts(ips)):
                items[f"endpointslices/default/web-{number}-{part + 1}"] = endpoint_slice(number, some, part)
        self.control_plane.store_all(items)

    def endpoints(self, numbers: Iterable[int] | None = None) -> set[str]:
        """Return the addresses of the endpoints of some Services, or of all."""
        some = self._ips if numbers is None else [self._ips[number] for number in numbers]
        return {ip for ips in some for ip in ips}

    def set_endpoints(self, number: int, ips: list[str]) -> list[Patch]:
        """Return the requests that give a Service as many endpoints as before, or fewer, and no more than one slice if fewer."""
        before, self._ips[number] = list(_parts(self._ips[number])), ips
        return [
            (f"{SLICES}/web-{number}-{part + 1}", {"endpoints": endpoint_slice(number, some)["endpoints"]})
            for part, some in enumerate(_parts(ips))
            if some != before[part]
        ]

    def replace_endpoint(self, number: int) -> tuple[str, list[Patch]]:
        """Return a new address, and the requests that replace one endpoint of a Service by it."""
        ip = str(IPv4Address(_REPLACEMENTS + next(self._replacements)))
        *others, _ = self._ips[number]
        return ip, self.set_endpoints(number, [*others, ip])

    def resize(self, number: int) -> list[Patch]:
        """Return the request that removes the last endpoint of a Service, or adds it again."""
        full = self._restarted_ips(number, 0)
        return self.set_endpoints(number, full if len(self._ips[number]) < len(full) else full[:-1])

    def churn(self, count: int) -> list[Patch]:
        """Return requests that replace one endpoint each, of all Services in turn except the probed one."""
        numbers = itertools.islice(itertools.cycle(self._others()), count)
        return [patch for number in numbers for patch in self.replace_endpoint(number)[1]]

    def restart(self, count: int) -> tuple[list[int], list[Patch]]:
        """Return Services, and requests that replace all endpoints of each."""
        generation = next(self._restarts) % _GENERATIONS
        numbers = self._others()[:count]
        return numbers, [
            patch for number in numbers for patch in self.set_endpoints(number, self._restarted_ips(number, generation))
        ]

    def connect_node(self, namespace: str) -> tuple[Path, str]:
        """Connect a node to the API server; return a kubeconfig, and the node's interface."""
        number = next(self._uplinks)
        api = self.control_plane.namespace
        assert api
        there, here = IPv4Address("198.18.0.1") + 4 * number, IPv4Address("198.18.0.2") + 4 * number
        pair = f"link add node{number} netns {api} type veth peer name uplink netns {namespace}"
        subprocess.run(["ip", *pair.split()], check=True)
        for where, device, ip in ((api, f"node{number}", there), (namespace, "uplink", here)):
            subprocess.run(["ip", "-netns", where, "address", "add", f"{ip}/30", "dev", device], check=True)
            subprocess.run(["ip", "-netns", where, "link", "set", device, "up"], check=True)
        user = {"token": self.control_plane.static_token(KUBE_PROXY_USER)}
        path = self.control_plane.kubeconfig_for(user, f"https://{there}:{self.control_plane.port}")
        content = json.loads(path.read_text())
        content["clusters"][0]["cluster"]["tls-server-name"] = "localhost"
        path.write_text(json.dumps(content))
        return path, "uplink"

    def _others(self) -> list[int]:
        return [number for number in range(self.shape.services) if number != self.probed]

    def _restarted_ips(self, number: int, generation: int) -> list[str]:
        first = _ENDPOINTS + generation * _GENERATION + number * self.shape.endpoints
        return [str(IPv4Address(first + which)) for which in range(self.shape.endpoints)]


def _parts(ips: Sequence[str]) -> Iterable[Sequence[str]]:
    return (ips[start : start + _SLICE_ENDPOINTS] for start in range(0, len(ips), _SLICE_ENDPOINTS))


class ApiConnection:
    """A connection of the administrator, which stays open: a new one for each request would take longer than the request."""

    def __init__(self, control_plane: ControlPlane) -> None:
        self._control_plane = control_plane
        tls = ssl.create_default_context(cafile=str(control_plane.authority.certificate))
        self._connection = http.client.HTTPSConnection("127.0.0.1", control_plane.port, context=tls, timeout=60)
        self._headers = patch_headers(control_plane.static_token("admin"))
        self._used = float("-inf")
        self.close = self._connection.close

    def patch(self, path: str, body: JsonObject) -> None:
        """Send a JSON merge patch, and wait for the answer."""
        if time.monotonic() - self._used > _REUSE_SECONDS:
            self._connection.close()
            call_inside(self._control_plane.namespace, self._connection.connect)
        patch(self._connection, self._headers, path, body)
        self._used = time.monotonic()


def patch_headers(token: str) -> dict[str, str]:
    """Return the headers of a PATCH request."""
    return {"Authorization": f"Bearer {token}", "Content-Type": "application/merge-patch+json"}


def patch(connection: http.client.HTTPConnection, headers: dict[str, str], path: str, body: JsonObject) -> None:
    """Send a JSON merge patch over an open connection, and wait for the answer."""
    connection.request("PATCH", path, json.dumps(body), headers)
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != http.client.OK:
        message = f"PATCH {path}: status {answer.status}: {content.decode()}"
        raise OSError(message)
