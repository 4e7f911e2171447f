"""EndpointSlices and core/v1 Endpoints from the wire to the model, by the rules of `decode.objects`."""

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from sys import intern

from msgspec import UNSET

from pyproxy.decode import wire
from pyproxy.decode.decoded import Decoded, errors, has_usable_namespace, is_usable, object_name
from pyproxy.decode.fields import (
    FieldErrors,
    Problems,
    is_subdomain,
    plain_ip,
    read_family,
    read_ip,
    read_label,
    read_port,
    read_protocol,
    read_subdomain,
)
from pyproxy.model.address import Family, family_of
from pyproxy.model.endpoint import EndpointSlice, SliceEndpoint, SlicePort
from pyproxy.model.names import NamespacedName

MOST_MIRRORED = 1000
"""Most addresses of a port that are mirrored from core/v1 Endpoints (``--mirroring-max-endpoints-per-subset``)."""
HOST_NAMES = "FQDN"
"""The ``addressType`` for host names, which make no rules."""


def decode_endpoint_slice(endpoint_slice: wire.EndpointSlice) -> Decoded[EndpointSlice]:
    """Reduce an EndpointSlice to its endpoints."""
    metadata = endpoint_slice.metadata or wire.NO_METADATA
    labels = metadata.labels or wire.NO_LABELS
    if labels.headless is not UNSET or endpoint_slice.address_type == HOST_NAMES:
        return Decoded(None)
    problems: Problems = []
    name = object_name(metadata)
    field = "metadata.labels[kubernetes.io/service-name]"
    owner = read_label(labels.service_name, field, problems) if labels.service_name else None
    if not labels.service_name:
        problems.append((field, "missing; without it the slice belongs to no Service"))
    family = read_family(endpoint_slice.address_type, "addressType", problems)
    has_namespace = has_usable_namespace(name, problems)
    is_named = read_subdomain(name.name, "metadata.name", problems) is not None
    if not has_namespace or not is_named or owner is None or family is None:
        return Decoded(None, errors("EndpointSlice", name, problems))
    triggered_at = 0.0
    # Only metrics use the time: one that is absent or not readable is not a problem of the slice.
    if text := metadata.annotations.last_change_trigger_time if metadata.annotations else None:
        with suppress(ValueError, OverflowError):
            moment = datetime.fromisoformat(text)
            triggered_at = moment.timestamp() if moment.tzinfo else 0.0
    decoded = EndpointSlice(
        name,
        NamespacedName(name.namespace, owner),
        family,
        _slice_ports(endpoint_slice.ports or (), "ports", problems),
        _slice_endpoints(endpoint_slice.endpoints or (), family, problems),
        triggered_at,
    )
    return Decoded(decoded, errors("EndpointSlice", name, problems))


def decode_endpoints(endpoints: wire.Endpoints) -> Decoded[tuple[EndpointSlice, ...]]:
    """Turn core/v1 Endpoints into one slice for each subset and family.

    Endpoints that a cluster does not mirror to EndpointSlices are ignored here as well (``pkg/controller/
    endpointslicemirroring`` of Kubernetes 1.37); the caller checks the conditions that depend on the Service. The names of
    the slices have colons, which are not possible in the name of an API object.
    """
    metadata = endpoints.metadata or wire.NO_METADATA
    labels, annotations = metadata.labels or wire.NO_LABELS, metadata.annotations
    # Leader election once kept its lock in an annotation of Endpoints; their addresses are not traffic.
    is_lock = annotations is not None and annotations.leader is not UNSET
    if labels.headless is not UNSET or labels.skip_mirror == "true" or is_lock:
        return Decoded(None)
    problems: Problems = []
    name = object_name(metadata)
    if not is_usable(name, problems):
        return Decoded(None, errors("Endpoints", name, problems))
    slices: list[EndpointSlice] = []
    mirrored = Counter[SlicePort]()
    for index, subset in enumerate(endpoints.subsets or ()):
        ports = _slice_ports(subset.ports or (), f"subsets[{index}].ports", problems)
        # Endpoints of both lists differ in `ready` only, as in a mirrored slice.
        members = [
            SliceEndpoint(ip, intern(node_name), ready=ready)
            for group, addresses, ready in (
                ("addresses", subset.addresses, True),
                ("notReadyAddresses", subset.not_ready_addresses, False),
            )
            for place, address in enumerate(addresses or ())
            if (ip := read_ip(address.ip or "", f"subsets[{index}].{group}[{place}].ip", problems)) is not None
            for node_name in (
                read_subdomain(address.node_name, f"subsets[{index}].{group}[{place}].nodeName", problems) or ""
                if address.node_name
                else "",
            )
        ]
        # The controller merges subsets with the same port; ready addresses come first.
        room = MOST_MIRRORED - max((mirrored[port] for port in ports), default=0)
        if len(members) > room:
            reason = (
                f"only {MOST_MIRRORED} addresses of a port are used, as in a cluster; {len(members) - room} are not"
            )
            problems.append((f"subsets[{index}].addresses", reason))
            members = members[:room]
        mirrored.update(dict.fromkeys(ports, len(members)))
        for family in Family:
            slice_name = NamespacedName(name.namespace, f"endpoints:{name.name}:{index}:{family}")
            of_family = tuple(member for member in members if family_of(member.ip) is family)
            # A slice has one family, as in the API; Endpoints may mix them.
            slices += [EndpointSlice(slice_name, name, family, ports, of_family)] if of_family else []
    return Decoded(tuple(slices), errors("Endpoints", name, problems))


def _slice_ports(entries: Iterable[wire.EndpointPort], field: str, problems: Problems) -> tuple[SlicePort, ...]:
    # kube-proxy ignores a port without a number: the slices of a Service always have one (discovery/v1 EndpointPort).
    ports: list[SlicePort] = []
    for index, entry in enumerate(entries):
        if not entry.port:
            continue
        port, wrong = _slice_port(entry.name or "", entry.protocol, entry.port)
        if port is not None:
            ports.append(port)
        if wrong:
            problems += [(f"{field}[{index}].{name}", reason) for name, reason in wrong]
    return tuple(ports)


# Thousands of slices have equal ports: the cache keeps one value for all of them.
@lru_cache(maxsize=1024)
def _slice_port(name: str, protocol: str | None, number: int) -> tuple[SlicePort | None, FieldErrors]:
    problems: Problems = []
    label = read_label(name, "name", problems) if name else ""
    known = read_protocol(protocol, "protocol", problems)
    port = read_port(number, "port", problems)
    if label is None or known is None or port is None:
        return None, tuple(problems)
    return SlicePort(label, known, port), tuple(problems)


def _slice_endpoints(entries: Iterable[wire.Endpoint], family: Family, problems: Problems) -> tuple[SliceEndpoint, ...]:
    endpoints: list[SliceEndpoint] = []
    for index, entry in enumerate(entries):
        if not entry.addresses:
            continue
        # More addresses have no meaning, and kube-proxy does not look at them (discovery/v1 Endpoint).
        text = entry.addresses[0]
        # The usual notation of the right family is tested first, without building the text of a field name.
        ip = plain_ip(text, family)
        if ip is None:
            field = f"endpoints[{index}].addresses[0]"
            ip = read_ip(text, field, problems)
            if ip is None:
                continue
            if family_of(ip) is not family:
                problems.append((field, f"{text} is not of addressType {family}"))
                continue
        # Absent means true for ready and serving, and false for terminating (discovery/v1 EndpointConditions).
        conditions, hints = entry.conditions, entry.hints
        node_name = entry.node_name or ""
        if node_name and not is_subdomain(node_name):
            node_name = read_subdomain(node_name, f"endpoints[{index}].nodeName", problems) or ""
        endpoints.append(
            SliceEndpoint(
                ip,
                # Thousands of endpoints have the same node name: keep one copy.
                intern(node_name),
                conditions is None or conditions.ready is not False,
                conditions is None or conditions.serving is not False,
                conditions is not None and conditions.terminating is True,
                _hint_names(hints.for_zones) if hints else (),
                _hint_names(hints.for_nodes) if hints else (),
            )
        )
    return tuple(endpoints)


def _hint_names(hints: Iterable[wire.Hint] | None) -> tuple[str, ...]:
    return tuple([intern(hint.name) for hint in hints if hint.name]) if hints else ()
