"""Generated objects as the API has them, for agents that read files."""

from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any

from pyproxy.model.endpoint import EndpointSlice, SliceEndpoint
from pyproxy.model.service import Service
from tests.properties.strategies import Cluster

JsonObject = dict[str, Any]


def objects(cluster: Cluster) -> list[JsonObject]:
    """Return the Services and slices of a cluster; its Node is left out."""
    return [*map(_service, cluster.services), *map(_slice, cluster.slices)]


def _texts(ips: Iterable[bytes]) -> list[str]:
    return [str(ip_address(ip)) for ip in ips]


def _service(item: Service) -> JsonObject:
    has_node_ports = any(port.node_port for port in item.ports)
    is_balanced = bool(item.load_balancer_ips or item.load_balancer_source_ranges or item.health_check_node_port)
    kind = "LoadBalancer" if is_balanced else "NodePort" if has_node_ports else "ClusterIP"
    affinity = {
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": item.affinity_seconds}},
    }
    spec: JsonObject = {
        "type": kind,
        "clusterIP": _texts(item.cluster_ips)[0],
        "clusterIPs": _texts(item.cluster_ips),
        "ipFamilies": [str(family) for family in item.families],
        "ports": [
            {"name": port.name, "protocol": port.protocol.value.upper(), "port": port.port, "nodePort": port.node_port}
            for port in item.ports
        ],
        "externalIPs": _texts(item.external_ips),
        "internalTrafficPolicy": "Local" if item.internal_policy_local else "Cluster",
        "loadBalancerSourceRanges": list(map(str, item.load_balancer_source_ranges)),
        **({"externalTrafficPolicy": "Local"} if item.external_policy_local else {}),
        **({"healthCheckNodePort": item.health_check_node_port} if item.health_check_node_port else {}),
        **(affinity if item.affinity_seconds else {}),
    }
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": item.name.name, "namespace": item.name.namespace, "creationTimestamp": item.created},
        "spec": spec,
        "status": {"loadBalancer": {"ingress": [{"ip": ip} for ip in _texts(item.load_balancer_ips)]}},
    }


def _slice(item: EndpointSlice) -> JsonObject:
    labels = {"kubernetes.io/service-name": item.service.name}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": item.name.name, "namespace": item.name.namespace, "labels": labels},
        "addressType": str(item.family),
        "ports": [
            {"name": port.name, "protocol": port.protocol.value.upper(), "port": port.port} for port in item.ports
        ],
        "endpoints": list(map(_endpoint, item.endpoints)),
    }


def _endpoint(item: SliceEndpoint) -> JsonObject:
    hints = {
        "forZones": [{"name": zone} for zone in item.zone_hints],
        "forNodes": [{"name": node} for node in item.node_hints],
    }
    return {
        "addresses": _texts([item.ip]),
        "conditions": {"ready": item.ready, "serving": item.serving, "terminating": item.terminating},
        **({"nodeName": item.node_name} if item.node_name else {}),
        **({"hints": {key: value for key, value in hints.items() if value}} if any(hints.values()) else {}),
    }
