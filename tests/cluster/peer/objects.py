"""The objects for both proxies: Services with their EndpointSlices, and the zones of the Nodes.

They are plain values, as sent to the API server, which validates and completes them. No two Services of a state claim
the same address and port, so that the fate of every packet is unambiguous.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.packets.objects import (
    NAMESPACE,
    SERVICE_NAME_LABEL,
    JsonObject,
    On,
    TargetPorts,
    endpoint_slice,
    ingress,
    not_ready,
    port,
    slices,
    terminating,
)
from tests.packets.objects import unnumbered_service as service

from .world import FAMILIES, PORT, VERSIONS

__all__ = (
    "HEADLESS_LABEL",
    "NAMESPACE",
    "PROXY_NAME_LABEL",
    "SERVICE_NAME_LABEL",
    "ZONES",
    "Entry",
    "JsonObject",
    "On",
    "State",
    "endpoint_slice",
    "entry",
    "ingress",
    "not_ready",
    "port",
    "possible_endpoints",
    "service",
    "slices",
    "terminating",
)
ZONES: Mapping[str, str | None] = {"node1": "a", "node2": "b"}
PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"
HEADLESS_LABEL = "service.kubernetes.io/headless"


@dataclass(frozen=True, slots=True)
class Entry:
    """A Service and its slices."""

    service: JsonObject
    slices: tuple[JsonObject, ...] = ()

    @property
    def name(self) -> str:
        """The name of the Service."""
        return str(self.service["metadata"]["name"])


@dataclass(frozen=True, slots=True)
class State:
    """All objects at one time."""

    entries: tuple[Entry, ...]
    zones: Mapping[str, str | None] = field(default_factory=lambda: ZONES)
    """The zone of each Node; None for no zone label."""


def entry(owner: JsonObject, *endpoints: str | On, to: TargetPorts = PORT) -> Entry:
    """Return a Service with all endpoints in one slice per family."""
    return Entry(owner, tuple(slices(owner, *endpoints, to=to)))


def possible_endpoints(item: Entry, wanted: JsonObject, version: int) -> int:
    """Return the maximum number of endpoints for packets to a port of the Service."""
    family = FAMILIES[VERSIONS.index(version)]
    found = {
        (endpoint["addresses"][0], target["port"])
        for endpoint_slice in item.slices
        if endpoint_slice["addressType"] == family
        for target in endpoint_slice["ports"]
        if (target["name"], target["protocol"]) == (wanted.get("name", ""), wanted["protocol"])
        for endpoint in endpoint_slice["endpoints"]
    }
    return len(found)
