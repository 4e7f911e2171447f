"""Services from the wire to the model. The law is that of `decode`."""

import re
from collections.abc import Collection, Iterable, Sequence
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
"""What ``spec.clusterIP`` says in a headless Service."""
SERVICE_TYPES = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")
NODE_PORT_TYPES = ("NodePort", "LoadBalancer")
TRAFFIC_POLICIES = ("Cluster", "Local")
AFFINITIES = ("None", "ClientIP")
IP_MODES = ("VIP", "Proxy")
_SCHEDULER = re.compile(r"[a-z][a-z0-9_]{0,14}")
"""IP_VS_SCHEDNAME_MAXLEN is 16, with the zero byte at the end."""
AFFINITY_SECONDS = range(1, 86401)
DEFAULT_AFFINITY_SECONDS = 10800
"""What the API server fills in (core/v1 DefaultClientIPServiceAffinitySeconds)."""


def decode_service(service: wire.Service, proxy_name: str = "") -> Decoded[Service]:
    """Reduce a Service to its packet path.

    Args:
        service: any Service.
        proxy_name: what its label service-proxy-name has to say for it to count; empty: it must not have that label.
    """
    metadata, spec = service.metadata or wire.NO_METADATA, service.spec or wire.NO_SERVICE_SPEC
    name = object_name(metadata)
    if kind := no_packet_path(service, proxy_name):
        return Decoded(None, unserved=UnservedService(name, kind))
    problems: Problems = []
    if not is_usable(name, problems):
        found = errors("Service", name, problems)
        return Decoded(None, found, UnservedService(name, problem=found[0].complaint))
    service_type = read_word(spec.type, SERVICE_TYPES, "spec.type", problems) or "ClusterIP"
    families, cluster_ips = _cluster_ips(spec, problems)
    load_balancer_ips, source_ranges = _load_balancer(service, families, problems)
    is_external_local = _is_external_local(spec, service_type, problems)
    decoded = Service(
        name=name,
        families=families,
        cluster_ips=cluster_ips,
        ports=_service_ports(spec, service_type, problems),
        external_ips=_external_ips(spec, families, problems),
        load_balancer_ips=load_balancer_ips,
        load_balancer_source_ranges=source_ranges,
        affinity_seconds=_affinity_seconds(spec, problems),
        internal_policy_local=_is_local(spec.internal_traffic_policy, "spec.internalTrafficPolicy", problems),
        external_policy_local=is_external_local,
        health_check_node_port=(
            _health_check_node_port(spec, problems) if is_external_local and service_type == "LoadBalancer" else 0
        ),
        scheduler=_scheduler(metadata.annotations or wire.NO_ANNOTATIONS, problems),
        created=metadata.creation_timestamp or "",
    )
    return Decoded(decoded, errors("Service", name, problems))


def _scheduler(annotations: wire.Annotations, problems: Problems) -> str:
    text = (annotations.ipvs_scheduler or "").strip()
    if text and not _SCHEDULER.fullmatch(text):
        problems.append(("metadata.annotations[pyproxy.io/ipvs-scheduler]", f"{text!r} is no name of a scheduler"))
        return ""
    return text


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
    """Return the families in which a Service exists, and its cluster IPs.

    A family without a cluster IP has nothing of the Service, not even its node ports. Only a file can have a Service
    with no cluster IP at all: that one exists in the families that it asks for.
    """
    asked, wrong = _asked_families(tuple(spec.ip_families or ()))
    problems += wrong
    texts = spec.cluster_ips or ([spec.cluster_ip] if spec.cluster_ip else [])
    found: dict[Family, bytes] = {}
    for index, text in enumerate(texts):
        family = asked[index] if index < len(asked) else None
        ip = plain_ip(text, family) if family and family not in found else None
        if ip is None:
            field = f"spec.clusterIPs[{index}]" if spec.cluster_ips else "spec.clusterIP"
            ip = _odd_cluster_ip(text, field, {family} if asked else set(Family), found, problems)
        if ip is not None:
            found[family_of(ip)] = ip
    if len(texts) < max(1, len(asked)):
        problems.append(_missing_cluster_ip(asked, texts))
    families = tuple(found) or tuple(dict.fromkeys(family for family in asked if family)) or (Family.IPV4,)
    return families, tuple(found.values())


def _odd_cluster_ip(
    text: str, field: str, asked: Collection[Family | None], found: Collection[Family], problems: Problems
) -> bytes | None:
    ip = read_ip(text, field, problems)
    if ip is None or (family_of(ip) in asked and family_of(ip) not in found):
        return ip
    problems.append((field, f"{text} is {family_of(ip)}, which spec.ipFamilies does not have in this place"))
    return None


@lru_cache(maxsize=8)
def _asked_families(texts: tuple[str, ...]) -> tuple[tuple[Family | None, ...], FieldErrors]:
    problems: Problems = []
    asked = tuple(read_family(text, f"spec.ipFamilies[{index}]", problems) for index, text in enumerate(texts))
    return asked, tuple(problems)


def _missing_cluster_ip(asked: Sequence[Family | None], texts: Sequence[str]) -> tuple[str, str]:
    reason = "an API server would assign one: set a free address of the cluster's service range"
    if texts:
        return "spec.clusterIPs", f"none for {asked[len(texts)]}; {reason}"
    return "spec.clusterIP", f"missing; {reason}, or {HEADLESS} for a headless Service"


def _service_ports(spec: wire.ServiceSpec, service_type: str, problems: Problems) -> tuple[ServicePort, ...]:
    if not spec.ports:
        problems.append(("spec.ports", "missing; a Service without a port has no traffic"))
        return ()
    ports: list[ServicePort] = []
    for index, entry in enumerate(spec.ports):
        port, wrong = _service_port(entry.name or "", entry.protocol, entry.port, entry.node_port or 0)
        if wrong:
            problems += [(f"spec.ports[{index}].{name}", reason) for name, reason in wrong]
        if port is None or (ports and _is_repeated(port, ports, f"spec.ports[{index}]", problems)):
            continue
        ports.append(port)
        if bool(entry.node_port) is not (service_type in NODE_PORT_TYPES):
            _say_odd_node_port(entry, spec, service_type, f"spec.ports[{index}]", problems)
    return tuple(ports)


# Thousands of Services have the same port: one copy of it, made once.
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


def _is_repeated(port: ServicePort, others: list[ServicePort], field: str, problems: Problems) -> bool:
    """Tell whether an earlier port has the same name, or number and protocol; an API server lets no such port pass."""
    if any(port.name == other.name for other in others):
        reason = f"{port.name} is an earlier port's" if port.name else "missing; only a Service's only port needs none"
        problems.append((f"{field}.name", reason))
        return True
    if any((port.port, port.protocol) == (other.port, other.protocol) for other in others):
        problems.append((f"{field}.port", f"{port.port}/{port.protocol.name} is an earlier port's"))
        return True
    return False


def _say_odd_node_port(
    entry: wire.ServicePort, spec: wire.ServiceSpec, service_type: str, field: str, problems: Problems
) -> None:
    """Say that a node port is missing where the type needs one, or there where an API server would refuse it.

    The latter is used all the same: kube-proxy goes by the number and never by the type.
    """
    if entry.node_port:
        reason = f"used, but an API server refuses it for type {service_type}: set spec.type to NodePort"
    elif service_type == "LoadBalancer" and spec.allocate_load_balancer_node_ports is False:
        return
    else:
        reason = f"missing; an API server would assign one for type {service_type}: set a port free on every node"
    problems.append((f"{field}.nodePort", reason))


def _external_ips(spec: wire.ServiceSpec, families: Collection[Family], problems: Problems) -> tuple[bytes, ...]:
    """Return the external IPs of a Service's families; blank ones are passed over in silence."""
    if not spec.external_ips:
        return ()
    ips = (
        read_external_ip(text, f"spec.externalIPs[{index}]", problems)
        for index, text in enumerate(spec.external_ips)
        if text
    )
    return _distinct(ips, families)


def _distinct(ips: Iterable[bytes | None], families: Collection[Family]) -> tuple[bytes, ...]:
    return tuple(dict.fromkeys(ip for ip in ips if ip and family_of(ip) in families))


def _load_balancer(
    service: wire.Service, families: Collection[Family], problems: Problems
) -> tuple[tuple[bytes, ...], tuple[Network, ...]]:
    """Return the load-balancer addresses of a Service's families, and who may use them."""
    texts = service.spec.load_balancer_source_ranges if service.spec else None
    balancer = service.status.load_balancer if service.status else None
    if not texts and (balancer is None or not balancer.ingress):
        return (), ()
    ranges = read_networks(texts or (), "spec.loadBalancerSourceRanges", problems)
    if texts and not ranges:
        # No range means everybody: to drop the last bad one must not open what it was to close.
        reason = "no entry is usable, so the load-balancer addresses are left out rather than open to everybody"
        problems.append(("spec.loadBalancerSourceRanges", reason))
        return (), ()
    ingress = balancer.ingress if balancer and balancer.ingress else ()
    ips = (_ingress_ip(entry, f"status.loadBalancer.ingress[{index}]", problems) for index, entry in enumerate(ingress))
    return _distinct(ips, families), tuple(network for network in ranges if network.family in families)


def _ingress_ip(ingress: wire.LoadBalancerIngress, field: str, problems: Problems) -> bytes | None:
    """Return the address of an entry whose traffic comes with that very destination; a host name has none."""
    if ingress.ip_mode not in {None, "VIP"}:
        read_word(ingress.ip_mode, IP_MODES, f"{field}.ipMode", problems)
        return None
    return read_ip(ingress.ip, f"{field}.ip", problems) if ingress.ip else None


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


def _is_external_local(spec: wire.ServiceSpec, service_type: str, problems: Problems) -> bool:
    """Tell whether external traffic stays on the node; a type that can have none has no such policy."""
    is_local = _is_local(spec.external_traffic_policy, "spec.externalTrafficPolicy", problems)
    return is_local and (service_type in NODE_PORT_TYPES or bool(spec.external_ips))


def _health_check_node_port(spec: wire.ServiceSpec, problems: Problems) -> int:
    field = "spec.healthCheckNodePort"
    if spec.health_check_node_port:
        return read_number(spec.health_check_node_port, PORTS, field, problems) or 0
    reason = "missing; an API server would assign one for externalTrafficPolicy Local: set a port free on every node"
    problems.append((field, reason))
    return 0
