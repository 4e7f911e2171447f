"""``python -m tests.e2e.load_balancers KUBECONFIG``: the part of a cloud that gives Services of type LoadBalancer an address.

It runs in the namespace of the control plane, which is the router between the client and the nodes. The address of a Service is
routed to all nodes; with ``externalTrafficPolicy: Local`` to the nodes with a ready endpoint; and to one node only if the Service
has session affinity. It adds and removes the finalizer as the service controller of a cloud does.
"""

import json
import ssl
import subprocess
import sys
import time
from collections.abc import Mapping
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from tests.cluster.api import exchange
from tests.cluster.process import ClusterError

from .network import NODES, OUTSIDE_ADDRESS

JsonObject: TypeAlias = dict[str, Any]

_FINALIZER = "service.kubernetes.io/load-balancer-cleanup"
_POOL = tuple(f"172.18.0.{number}" for number in range(200, 250))
_PERIOD_SECONDS = 0.5
_TIMEOUT_SECONDS = 20.0
_GATEWAYS = {node.name: node.addresses[0] for node in NODES}


class Api:
    """Requests to the API server with the token of a kubeconfig."""

    def __init__(self, kubeconfig: Path) -> None:
        """Read a kubeconfig, which must be JSON."""
        content = json.loads(kubeconfig.read_text())
        [cluster], [user] = content["clusters"], content["users"]
        self._server = urlsplit(cluster["cluster"]["server"]).netloc
        self._tls = ssl.create_default_context(cafile=cluster["cluster"]["certificate-authority"])
        self._token = user["user"]["token"]

    def request(self, method: str, path: str, body: JsonObject | None = None) -> JsonObject:
        """Send a request and return the object in the response; a body is a JSON merge patch."""
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/merge-patch+json"}
        connection = HTTPSConnection(self._server, context=self._tls, timeout=_TIMEOUT_SECONDS)
        found: JsonObject = json.loads(exchange(connection, method, path, body, headers))
        return found


class LoadBalancers:
    """The addresses and routes of all Services."""

    def __init__(self, api: Api) -> None:
        """Start without any."""
        self._api = api
        self._addresses: dict[str, str] = {}
        """By UID of the Service."""
        self._routes: dict[str, list[str]] = {}
        """Names of nodes by address."""

    def step(self) -> None:
        """Bring addresses, routes and Services up to date."""
        wanted = set()
        for service in self._api.request("GET", "/api/v1/services")["items"]:
            metadata, spec = service["metadata"], service["spec"]
            if (
                spec["type"] == "LoadBalancer"
                and "deletionTimestamp" not in metadata
                and "loadBalancerClass" not in spec
            ):
                wanted.add(metadata["uid"])
                self._serve(service)
            elif _FINALIZER in metadata.get("finalizers", ()):
                self._release(service)
        for uid in self._addresses.keys() - wanted:
            address = self._addresses.pop(uid)
            self._routes.pop(address, None)
            subprocess.run(["ip", "route", "delete", f"{address}/32"], check=False)

    def _serve(self, service: JsonObject) -> None:
        metadata, spec, path = service["metadata"], service["spec"], _path(service)
        finalizers = metadata.get("finalizers", [])
        if _FINALIZER not in finalizers:
            self._api.request("PATCH", path, {"metadata": {"finalizers": [*finalizers, _FINALIZER]}})
        present = [each.get("ip") for each in service["status"].get("loadBalancer", {}).get("ingress", [])]
        address = self._addresses.get(metadata["uid"])
        if address is None:
            used = set(self._addresses.values())
            address = present[0] if present else next(each for each in _POOL if each not in used)
            self._addresses[metadata["uid"]] = address
        nodes = list(_GATEWAYS)
        if spec.get("externalTrafficPolicy") == "Local":
            nodes = self._nodes_with_endpoints(metadata) or nodes
        if spec.get("sessionAffinity") == "ClientIP":
            kept = [name for name in self._routes.get(address, ()) if name in nodes]
            nodes = (kept or nodes)[:1]
        if nodes != self._routes.get(address):
            hops = [word for name in nodes for word in ("nexthop", "via", _GATEWAYS[name])]
            subprocess.run(["ip", "route", "replace", f"{address}/32", "src", OUTSIDE_ADDRESS, *hops], check=True)
            self._routes[address] = nodes
        if present != [address]:
            status = {"loadBalancer": {"ingress": [{"ip": address, "ipMode": "VIP"}]}}
            self._api.request("PATCH", f"{path}/status", {"status": status})

    def _release(self, service: JsonObject) -> None:
        path = _path(service)
        if service["status"].get("loadBalancer"):
            self._api.request("PATCH", f"{path}/status", {"status": {"loadBalancer": None}})
        kept = [each for each in service["metadata"]["finalizers"] if each != _FINALIZER]
        self._api.request("PATCH", path, {"metadata": {"finalizers": kept}})

    def _nodes_with_endpoints(self, metadata: Mapping[str, str]) -> list[str]:
        selector = f"labelSelector=kubernetes.io/service-name%3D{metadata['name']}"
        path = f"/apis/discovery.k8s.io/v1/namespaces/{metadata['namespace']}/endpointslices?{selector}"
        endpoints = (each for item in self._api.request("GET", path)["items"] for each in item.get("endpoints") or ())
        return sorted({each["nodeName"] for each in endpoints if each["conditions"].get("ready", True)})


def _path(service: JsonObject) -> str:
    return f"/api/v1/namespaces/{service['metadata']['namespace']}/services/{service['metadata']['name']}"


def main() -> None:
    """Work until killed; an error, such as a conflict or a restarting API server, ends one step only."""
    balancers = LoadBalancers(Api(Path(sys.argv[1])))
    while True:
        try:
            balancers.step()
        except (OSError, HTTPException, ClusterError) as error:
            print(error, flush=True)
        time.sleep(_PERIOD_SECONDS)


if __name__ == "__main__":
    main()
