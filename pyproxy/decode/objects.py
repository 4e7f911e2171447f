"""API objects from the wire to the model, by kube-proxy's rules.

This module, `decode.service` and `decode.slices` have pure functions from a wire struct to `Decoded`: no I/O, no log, no
state between objects. An error costs the smallest unit that it concerns (an address, a port, in the end the object) and
gives one `DecodeError` that names the field; the valid rest is used. The message about a field that an API server would
have refused or completed says which value to set. A rule without another source comes from kube-proxy.
"""

from pyproxy.decode import wire
from pyproxy.decode.decoded import (
    CLUSTER_WIDE,
    DEFAULT_NAMESPACE,
    Decoded,
    cluster_wide_name,
    errors,
    object_name,
    subject,
    wrong_type,
)
from pyproxy.decode.fields import Problems, read_ip, read_label_value, read_networks, read_subdomain
from pyproxy.decode.service import decode_service
from pyproxy.decode.slices import decode_endpoint_slice, decode_endpoints
from pyproxy.model.node import Node
from pyproxy.model.service_cidr import ServiceCidr

__all__ = [
    "CLUSTER_WIDE",
    "DEFAULT_NAMESPACE",
    "Decoded",
    "cluster_wide_name",
    "decode_endpoint_slice",
    "decode_endpoints",
    "decode_node",
    "decode_service",
    "decode_service_cidr",
    "object_name",
    "subject",
    "wrong_type",
]

NODE_IP_TYPES = ("InternalIP", "ExternalIP")
"""The types of address that are used, in order of preference (k8s.io/kubernetes/pkg/util/node, GetNodeHostIPs)."""
# Key of the taint on a Node that the cluster autoscaler drains; the effect does not matter (`NodeEligible` of
# `pkg/proxy/healthcheck/proxy_health.go`).
_TO_BE_DELETED_TAINT = "ToBeDeletedByClusterAutoscaler"


def decode_node(node: wire.Node) -> Decoded[Node]:
    """Reduce a Node to its addresses, pod CIDR blocks and zone, and whether it is eligible."""
    metadata, spec = node.metadata or wire.NO_METADATA, node.spec or wire.NO_NODE_SPEC
    problems: Problems = []
    name = cluster_wide_name(metadata)
    if read_subdomain(name.name, "metadata.name", problems) is None:
        return Decoded(None, errors("Node", name, problems))
    # The API server keeps podCIDR equal to podCIDRs[0]; a file may have only podCIDR.
    listed, field = (spec.pod_cidrs, "spec.podCIDRs") if spec.pod_cidrs else ([spec.pod_cidr or ""], "spec.podCIDR")
    addresses = list(enumerate((node.status or wire.NO_NODE_STATUS).addresses or ()))
    # All InternalIPs, then all ExternalIPs, in the order of the status.
    ips = [
        read_ip(address.address or "", f"status.addresses[{index}].address", problems)
        for address_type in NODE_IP_TYPES
        for index, address in addresses
        if address.type == address_type
    ]
    # A Node that is being deleted or drained stays a node: only its health check tells load balancers to avoid it.
    decoded = Node(
        name=name.name,
        ips=tuple(dict.fromkeys(ip for ip in ips if ip is not None)),
        pod_cidrs=read_networks([text for text in listed if text], field, problems),
        zone=read_label_value(
            (metadata.labels or wire.NO_LABELS).zone or "", "metadata.labels[topology.kubernetes.io/zone]", problems
        ),
        is_eligible=not metadata.deletion_timestamp
        and all(taint.key != _TO_BE_DELETED_TAINT for taint in spec.taints or ()),
    )
    return Decoded(decoded, errors("Node", name, problems))


def decode_service_cidr(service_cidr: wire.ServiceCIDR) -> Decoded[ServiceCidr]:
    """Reduce a ServiceCIDR to its ranges; one that is being deleted counts until it is gone."""
    problems: Problems = []
    name = cluster_wide_name(service_cidr.metadata)
    if read_subdomain(name.name, "metadata.name", problems) is None:
        return Decoded(None, errors("ServiceCIDR", name, problems))
    cidrs = read_networks((service_cidr.spec or wire.NO_SERVICE_CIDR_SPEC).cidrs or (), "spec.cidrs", problems)
    return Decoded(ServiceCidr(name, cidrs), errors("ServiceCIDR", name, problems))
