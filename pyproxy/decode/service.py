"""Services from the wire to the model, by the rules of `decode.objects`."""

import re
from collections.abc import Collection, Iterable
from functools import lru_cache

from msgspec import UNSET

from pyproxy.decode import wire
from pyproxy.decode.decoded import Decoded, errors, is_usable, object_name
from pyproxy.decode.fields import (
    PORTS,
    FieldErrors,
    Problems,
    plain_ip,
    read_external_ip,
    read_family,
    read_ip,
    read_label,
    read_networks,
    read_number,
    read_port,
    read_protocol,
    read_word,
)
from pyproxy.model.address import Family, Network, family_of
from pyproxy.model.service import NoPacketPath, Service, ServicePort
from pyproxy.model.unserved import UnservedService

HEADLESS = "None"
"""Value of ``spec.clusterIP`` in a headless Service."""
SERVICE_TYPES = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")
NODE_PORT_TYPES = ("NodePort", "LoadBalancer")
TRAFFIC_POLICIES = ("Cluster", "Local")
AFFINITIES = ("None", "ClientIP")
IP_MODES = ("VIP", "Proxy")
# IP_VS_SCHEDNAME_MAXLEN is 16, including the zero byte at the end.
_SCHEDULER = re.compile(r"[a-z][a-z0-9_]{0,14}")
AFFINITY_SECONDS = range(1, 86401)
DEFAULT_AFFINITY_SECONDS = 10800
"""The API server's default (core/v1 DefaultClientIPServiceAffinitySeconds)."""


def decode_service(service: wire.Service, proxy_name: str = "") -> Decoded[Service]:
    """Reduce a Service to the fields that determine its packet path.

    Args:
        service: any Service.
        proxy_name: the value that its label service-proxy-name must have; empty if it must not have this label.
    """
    metadata, spec = service.metadata or wire.NO_METADATA, service.spec or wire.NO_SERVICE_SPEC
    name = object_name(metadata)
    if kind := no_packet_path(service, proxy_name):
        return Decoded(None, unserved=UnservedService(name, kind))
    problems: Problems = []
    if not is_usable(name, problems):
        found = errors("Service", name, problems)
        return Decoded(None, found, UnservedService(name, problem=found[0].complaint))
    # All families, ports and addresses that are valid are used; what is not costs only itself.
    service_type = read_word(spec.type, SERVICE_TYPES, "spec.type", problems) or "ClusterIP"
    families, cluster_ips = _cluster_ips(spec, problems)
    texts = enumerate(spec.external_ips or ())  # kube-proxy ignores empty entries
    external_ips = [read_external_ip(text, f"spec.externalIPs[{index}]", problems) for index, text in texts if text]
    load_balancer_ips, proxied_ips, source_ranges = _load_balancer(service, families, problems)
    balancer = service.status.load_balancer if service.status else None
    # A type without external traffic has no policy for it: the API server clears the field, a file may have kept it.
    is_external_local = _is_local(spec.external_traffic_policy, "spec.externalTrafficPolicy", problems) and (
        service_type in NODE_PORT_TYPES or bool(spec.external_ips)
    )
    scheduler = ((metadata.annotations or wire.NO_ANNOTATIONS).ipvs_scheduler or "").strip()
    if scheduler and not _SCHEDULER.fullmatch(scheduler):
        reason = f"{scheduler!r} is not a valid name of a scheduler"
        problems.append(("metadata.annotations[pyproxy.io/ipvs-scheduler]", reason))
        scheduler = ""
    decoded = Service(
        name=name,
        families=families,
        cluster_ips=cluster_ips,
        ports=_service_ports(spec, service_type, problems),
        external_ips=_distinct(external_ips, families),
        load_balancer_ips=load_balancer_ips,
        proxied_ips=proxied_ips,
        is_load_balancer_pending=service_type == "LoadBalancer" and not (balancer and balancer.ingress),
        load_balancer_source_ranges=source_ranges,
        affinity_seconds=_affinity_seconds(spec, problems),
        internal_policy_local=_is_local(spec.internal_traffic_policy, "spec.internalTrafficPolicy", problems),
        external_policy_local=is_external_local,
        health_check_node_port=(
            _health_check_node_port(spec, problems) if is_external_local and service_type == "LoadBalancer" else 0
        ),
        scheduler=scheduler,
        created=metadata.creation_timestamp or "",
    )
    return Decoded(decoded, errors("Service", name, problems))


def no_packet_path(service: wire.Service, proxy_name: str = "") -> NoPacketPath | None:
    """Return why a Service has no packet path, or None if it has one; `proxy_name` is as in `decode_service`."""
    labels = (service.metadata or wire.NO_METADATA).labels or wire.NO_LABELS
    spec = service.spec or wire.NO_SERVICE_SPEC
    if labels.service_proxy_name != (proxy_name or UNSET):
        return NoPacketPath.OTHER_PROXY
    if spec.type == "ExternalName":
        return NoPacketPath.EXTERNAL_NAME
    is_headless = spec.cluster_ip == HEADLESS or (not spec.cluster_ip and HEADLESS in (spec.cluster_ips or ()))
    return NoPacketPath.HEADLESS if is_headless else None


def _cluster_ips(spec: wire.ServiceSpec, problems: Problems) -> tuple[tuple[Family, ...], tuple[bytes, ...]]:
    # The families in which a Service exists, and its cluster IPs: it has nothing, not even node ports, in a family without
    # a cluster IP. Only in a file can a Service have no cluster IP at all; it exists in the families of `spec.ipFamilies`.
    requested, wrong = _requested_families(tuple(spec.ip_families or ()))
    problems += wrong
    # The API server keeps clusterIPs[0] equal to clusterIP, and ipFamilies[i] the family of clusterIPs[i]; a file may have
    # one of them only.
    texts = spec.cluster_ips or ([spec.cluster_ip] if spec.cluster_ip else [])
    found: dict[Family, bytes] = {}
    for index, text in enumerate(texts):
        family = requested[index] if index < len(requested) else None
        ip = plain_ip(text, family) if family and family not in found else None
        if ip is None:
            field = f"spec.clusterIPs[{index}]" if spec.cluster_ips else "spec.clusterIP"
            ip = read_ip(text, field, problems)
            possible = ({family} if requested else set(Family)) - found.keys()
            if ip is not None and family_of(ip) not in possible:
                problems.append((field, f"{text} is {family_of(ip)}, but spec.ipFamilies has another family here"))
                ip = None
        if ip is not None:
            found[family_of(ip)] = ip
    if len(texts) < max(1, len(requested)):
        reason = "an API server would assign one: set a free address of the cluster's service range"
        if texts:
            problems.append(("spec.clusterIPs", f"none for {requested[len(texts)]}; {reason}"))
        else:
            problems.append(("spec.clusterIP", f"missing; {reason}, or {HEADLESS} for a headless Service"))
    families = tuple(found) or tuple(dict.fromkeys(family for family in requested if family)) or (Family.IPV4,)
    return families, tuple(found.values())


# A cluster has few combinations of families, and each of its Services one of them.
@lru_cache(maxsize=8)
def _requested_families(texts: tuple[str, ...]) -> tuple[tuple[Family | None, ...], FieldErrors]:
    problems: Problems = []
    families = tuple(read_family(text, f"spec.ipFamilies[{index}]", problems) for index, text in enumerate(texts))
    return families, tuple(problems)


def _service_ports(spec: wire.ServiceSpec, service_type: str, problems: Problems) -> tuple[ServicePort, ...]:
    if not spec.ports:
        problems.append(("spec.ports", "missing; a Service without a port has no traffic"))
        return ()
    ports: list[ServicePort] = []
    for index, entry in enumerate(spec.ports):
        field = f"spec.ports[{index}]"
        port, wrong = _service_port(entry.name or "", entry.protocol, entry.port, entry.node_port or 0)
        if wrong:
            problems += [(f"{field}.{name}", reason) for name, reason in wrong]
        if port is None:
            continue
        # An API server refuses a second port with the same name, or with the same number and protocol.
        if ports and any(port.name == other.name for other in ports):
            reason = f"{port.name} is the name of an earlier port"
            problems.append((f"{field}.name", reason if port.name else "missing; required if there are several"))
            continue
        if ports and any((port.port, port.protocol) == (other.port, other.protocol) for other in ports):
            problems.append((f"{field}.port", f"an earlier port has {port.port}/{port.protocol.name} as well"))
            continue
        ports.append(port)
        has_node_ports = service_type in NODE_PORT_TYPES
        if entry.node_port and not has_node_ports:
            # kube-proxy ignores the type and serves the node port.
            reason = f"used, but an API server refuses it for type {service_type}: set spec.type to NodePort"
            problems.append((f"{field}.nodePort", reason))
        elif has_node_ports and not entry.node_port:
            if service_type == "LoadBalancer" and spec.allocate_load_balancer_node_ports is False:
                continue
            reason = f"missing; an API server would assign one for type {service_type}: set a port free on every node"
            problems.append((f"{field}.nodePort", reason))
    return tuple(ports)


# Thousands of Services have equal ports: the cache keeps one value for all of them.
@lru_cache(maxsize=1024)
def _service_port(
    name: str, protocol: str | None, number: int | None, node_number: int
) -> tuple[ServicePort | None, FieldErrors]:
    problems: Problems = []
    label = read_label(name, "name", problems) if name else ""
    known = read_protocol(protocol, "protocol", problems)
    port = read_port(number, "port", problems)
    node_port = read_port(node_number, "nodePort", problems) if node_number else 0
    if label is None or known is None or port is None:
        return None, tuple(problems)
    return ServicePort(label, known, port, node_port or 0), tuple(problems)


# An address of another family is valid, and kube-proxy drops it as well: a Service has no rules in a family without a
# cluster IP.
def _distinct(ips: Iterable[bytes | None], families: Collection[Family]) -> tuple[bytes, ...]:
    return tuple(dict.fromkeys(ip for ip in ips if ip and family_of(ip) in families))


def _load_balancer(
    service: wire.Service, families: Collection[Family], problems: Problems
) -> tuple[tuple[bytes, ...], tuple[bytes, ...], tuple[Network, ...]]:
    """Return the load balancer IPs of a Service's families, those that nodes do not serve, and the source ranges."""
    texts = service.spec.load_balancer_source_ranges if service.spec else None
    balancer = service.status.load_balancer if service.status else None
    if not texts and (balancer is None or not balancer.ingress):
        return (), (), ()
    ranges = read_networks(texts or (), "spec.loadBalancerSourceRanges", problems)
    if texts and not ranges:
        # Without ranges all clients would have access, so the last invalid range must not be dropped silently.
        reason = "no entry is valid; the load balancer IPs are not served, because all clients would have access"
        problems.append(("spec.loadBalancerSourceRanges", reason))
        return (), (), ()
    ips: list[bytes | None] = []
    proxied: list[bytes | None] = []
    for index, ingress in enumerate((balancer and balancer.ingress) or ()):
        field = f"status.loadBalancer.ingress[{index}]"
        # Absent means VIP. With Proxy the load balancer sends to a node port or pod, so that a rule for its own address
        # would keep pods from passing through it (core/v1 LoadBalancerIngress). A host name has no address for a rule.
        mode = "VIP"
        if ingress.ip_mode is not None:
            mode = read_word(ingress.ip_mode, IP_MODES, f"{field}.ipMode", problems) or ""
        if ingress.ip and mode:
            (ips if mode == "VIP" else proxied).append(read_ip(ingress.ip, f"{field}.ip", problems))
    return _distinct(ips, families), _distinct(proxied, families), ranges


def _affinity_seconds(spec: wire.ServiceSpec, problems: Problems) -> int | None:
    if read_word(spec.session_affinity, AFFINITIES, "spec.sessionAffinity", problems) != "ClientIP":
        return None
    client_ip = spec.session_affinity_config.client_ip if spec.session_affinity_config else None
    if client_ip is None or client_ip.timeout_seconds is None:
        return DEFAULT_AFFINITY_SECONDS
    field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
    return read_number(client_ip.timeout_seconds, AFFINITY_SECONDS, field, problems) or DEFAULT_AFFINITY_SECONDS


def _is_local(policy: str | None, field: str, problems: Problems) -> bool:
    return read_word(policy, TRAFFIC_POLICIES, field, problems) == "Local"


def _health_check_node_port(spec: wire.ServiceSpec, problems: Problems) -> int:
    # Set for type LoadBalancer with externalTrafficPolicy Local only (core/v1 ServiceSpec); the caller checks that.
    field = "spec.healthCheckNodePort"
    if spec.health_check_node_port:
        return read_number(spec.health_check_node_port, PORTS, field, problems) or 0
    reason = "missing; an API server would assign one for externalTrafficPolicy Local: set a port free on every node"
    problems.append((field, reason))
    return 0
