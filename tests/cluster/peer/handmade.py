"""Handmade states with one Service for each feature, after which it is named.

Every feature must show with the sources of `world`: node1 is in zone a, node2 in zone b.
"""

from collections.abc import Mapping
from typing import Final

from .objects import (
    HEADLESS_LABEL,
    PROXY_NAME_LABEL,
    SERVICE_NAME_LABEL,
    Entry,
    JsonObject,
    On,
    State,
    entry,
    ingress,
    not_ready,
    port,
    service,
    slices,
    terminating,
)
from .world import ADDRESSES, SECOND_ADDRESSES, SECOND_PORT, public

PROTOCOLS = ("TCP", "UDP", "SCTP")
LOCAL: Final[JsonObject] = {"externalTrafficPolicy": "Local"}
INTERNAL_LOCAL: Final[JsonObject] = {"internalTrafficPolicy": "Local"}
BALANCED: Final[JsonObject] = {"type": "LoadBalancer"}
NODE_PORT: Final[JsonObject] = {"type": "NodePort"}
AFFINITY: Final[JsonObject] = {"sessionAffinity": "ClientIP"}


def every_protocol(node_port: int = 0) -> list[JsonObject]:
    """Return port 80 in every protocol, with the same node port."""
    return [port(80, protocol, name=protocol.lower(), node_port=node_port) for protocol in PROTOCOLS]


def blocks(*hosts: str) -> list[str]:
    """Return the addresses of hosts as source ranges."""
    return [f"{ip}/{ip.max_prefixlen}" for host in hosts for ip in ADDRESSES[host]]


def several(owner: JsonObject, *parts: tuple[str | On, ...]) -> Entry:
    """Return a Service with several slices per family."""
    found = [item for place, part in enumerate(parts) for item in slices(owner, *part, suffix=f"s{place}")]
    return Entry(owner, tuple(found))


def relabelled(item: Entry, **labels: str) -> Entry:
    """Return a Service whose slices have more labels."""
    found = [
        {**each, "metadata": {**each["metadata"], "labels": each["metadata"]["labels"] | labels}}
        for each in item.slices
    ]
    return Entry(item.service, tuple(found))


ENDPOINTS = State(
    (
        entry(service("ready", *every_protocol()), "pod1-1", "pod2-1"),
        entry(service("draining", port(80)), terminating("pod1-1"), terminating("pod2-1")),
        entry(service("one-is-draining", port(80)), "pod1-1", terminating("pod2-1")),
        entry(service("draining-in-vain", port(80)), terminating("pod1-1", serving=False)),
        entry(service("not-ready", port(80)), not_ready("pod1-1")),
        entry(service("not-ready-but-serving", port(80, "UDP")), not_ready("pod1-1", serving=True)),
        entry(
            service("published-not-ready", port(80)),
            On("pod1-1", {"ready": True, "terminating": True, "serving": False}),
        ),
        Entry(service("without-slices", port(80))),
        entry(service("without-endpoints", port(80, "UDP"))),
        entry(service("two-ports", port(80, name="a"), port(81, name="b")), "pod1-1", to={"a": 8080, "b": SECOND_PORT}),
        entry(service("one-port-is-missing", port(80, name="a"), port(81, name="b")), "pod1-1", to={"a": 8080}),
        entry(service("host-network", port(80)), "node1", "node2"),
        entry(service("outside-the-cluster", port(80)), "database"),
    )
)
SLICES = State(
    (
        several(service("several-slices", port(80)), ("pod1-1",), ("pod1-2", "pod2-1")),
        several(service("twice-the-same", port(80)), ("pod1-1", "pod2-1"), ("pod1-1",)),
        several(service("address-taken-over", port(80)), (terminating("pod1-1"),), ("pod1-1",)),
        several(
            service("address-taken-over-earlier", port(80)), ("pod2-1",), (terminating("pod2-1"), terminating("pod1-1"))
        ),
        Entry(
            both := service("two-target-ports", port(80, name="p")),
            (*slices(both, "pod1-1", suffix="x"), *slices(both, "pod1-1", "pod2-1", to=SECOND_PORT, suffix="y")),
        ),
        relabelled(entry(service("slices-of-a-headless-one", port(80)), "pod1-1"), **{HEADLESS_LABEL: ""}),
        relabelled(entry(service("labelled-slices", port(80)), "pod1-1"), **{PROXY_NAME_LABEL: "other"}),
        entry(service("of-another-proxy", port(80), labels={PROXY_NAME_LABEL: ""}, **NODE_PORT), "pod1-1"),
        entry(service("labelled-as-headless", port(80), labels={HEADLESS_LABEL: ""}), "pod1-1"),
        entry(service("headless", port(80), clusterIP="None"), "pod1-1"),
        Entry(service("slice-of-a-missing-service", port(80)), tuple(slices(service("missing", port(80)), "pod1-1"))),
        entry(
            service("single-stack", port(80), ipFamilies=["IPv6"], ipFamilyPolicy="SingleStack", **NODE_PORT), "pod1-1"
        ),
    )
)
INTERNAL = State(
    (
        entry(
            service("local-everywhere", port(80, name="t"), port(80, "UDP", name="u"), **INTERNAL_LOCAL),
            "pod1-1",
            "pod1-2",
            "pod2-1",
        ),
        entry(service("local-on-node1", port(80, "SCTP"), **INTERNAL_LOCAL), "pod1-1"),
        entry(service("local-nowhere", port(80), **INTERNAL_LOCAL), "database"),
        entry(service("local-but-unplaced", port(80), **INTERNAL_LOCAL), On("pod1-1", is_ready_for=False)),
        entry(service("local-empty", port(80, "UDP"), **INTERNAL_LOCAL)),
        entry(
            service("local-drains", port(80), **INTERNAL_LOCAL), terminating("pod1-1"), terminating("pod2-2"), "pod2-1"
        ),
        entry(service("local-host-network", port(80), **INTERNAL_LOCAL), "node1", "node2"),
        entry(service("internal-only", port(80), **INTERNAL_LOCAL, **NODE_PORT), "pod1-1", "pod2-1"),
    )
)
EXTERNAL = State(
    (
        entry(
            service("every-address", *every_protocol(30080), externalIPs=public(20), ingress=ingress(21), **BALANCED),
            "pod1-1",
            "pod2-1",
        ),
        entry(service("hairpin", port(80), externalIPs=public(22), ingress=ingress(23), **BALANCED), "pod1-1"),
        entry(service("host-network", port(80), externalIPs=public(24), **NODE_PORT), "node1"),
        entry(service("address-of-a-node", port(80), externalIPs=[*map(str, SECOND_ADDRESSES["node1"])]), "pod2-1"),
        entry(service("same-address", port(81), externalIPs=public(20)), "pod1-2"),
        entry(service("empty", *every_protocol(30081), externalIPs=public(25), ingress=ingress(26), **BALANCED)),
    )
)
BALANCERS = State(
    (
        entry(service("proxied", port(80), ingress=ingress(30, ipMode="Proxy"), **BALANCED), "pod1-1"),
        entry(
            service(
                "one-is-proxied",
                port(80),
                ingress=[*ingress(31, ipMode="VIP"), *ingress(32, ipMode="Proxy")],
                **BALANCED,
            ),
            "pod1-1",
        ),
        entry(
            service("with-a-name", port(80), ingress=[{"hostname": "lb.example.com"}, *ingress(33)], **BALANCED),
            "pod2-1",
        ),
        entry(
            service("no-node-ports", port(80), ingress=ingress(34), allocateLoadBalancerNodePorts=False, **BALANCED),
            "pod1-1",
        ),
        entry(service("health-checked", port(80), ingress=ingress(35), **LOCAL, **BALANCED), "pod1-1", "pod1-2"),
        entry(service("two-addresses", port(80, "UDP"), ingress=ingress(36, 37), **BALANCED), "pod1-1"),
    )
)
EXTERNAL_LOCAL = State(
    (
        entry(
            service(
                "local-everywhere",
                port(80, name="t", node_port=30090),
                port(80, "UDP", name="u", node_port=30090),
                externalIPs=public(40),
                ingress=ingress(41),
                **LOCAL,
                **BALANCED,
            ),
            "pod1-1",
            "pod2-1",
        ),
        entry(service("local-on-node1", port(80), externalIPs=public(42), **LOCAL, **NODE_PORT), "pod1-1"),
        entry(service("local-nowhere", port(80, "UDP"), ingress=ingress(43), **LOCAL, **BALANCED), "database"),
        entry(service("local-empty", port(80), externalIPs=public(44), **LOCAL, **NODE_PORT)),
        entry(service("local-external-ip", port(80), externalIPs=public(45), **LOCAL), "pod1-1"),
    )
)
BOTH_LOCAL = State(
    (
        entry(service("both-local", port(80), **LOCAL, **INTERNAL_LOCAL, **NODE_PORT), "pod1-1", "pod2-1"),
        entry(service("both-local-on-node2", port(80), **LOCAL, **INTERNAL_LOCAL, **NODE_PORT), "pod2-1"),
        entry(
            service("local-drains", port(80), **LOCAL, **NODE_PORT),
            terminating("pod1-1"),
            terminating("pod2-2"),
            "pod2-1",
        ),
        entry(service("local-all-drain", port(80), **LOCAL, **NODE_PORT), terminating("pod1-1"), terminating("pod2-2")),
        entry(service("local-host-network", port(80), **LOCAL, **NODE_PORT), "node1"),
        entry(service("local-unplaced", port(80), **LOCAL, **NODE_PORT), On("pod1-1", is_ready_for=False)),
    )
)
RANGES = State(
    (
        entry(
            service(
                "some",
                port(80),
                externalIPs=public(50),
                ingress=ingress(51),
                loadBalancerSourceRanges=[*blocks("outside1"), "10.244.1.0/24", "fd00:10:244:1::/64"],
                **BALANCED,
            ),
            "pod1-1",
            "pod2-1",
        ),
        entry(
            service("node1-only", port(80), ingress=ingress(52), loadBalancerSourceRanges=blocks("node1"), **BALANCED),
            "pod2-1",
        ),
        entry(
            service(
                "all-external",
                port(80, "UDP"),
                ingress=ingress(53),
                loadBalancerSourceRanges=["0.0.0.0/0", "::/0"],
                **BALANCED,
            ),
            "pod1-1",
        ),
        entry(
            service(
                "of-one-family", port(80), ingress=ingress(54), loadBalancerSourceRanges=["172.18.0.0/24"], **BALANCED
            ),
            "pod1-1",
        ),
        entry(service("empty", port(80), ingress=ingress(55), loadBalancerSourceRanges=blocks("outside1"), **BALANCED)),
        entry(
            service(
                "local", port(80), ingress=ingress(56), loadBalancerSourceRanges=blocks("outside1"), **LOCAL, **BALANCED
            ),
            "pod1-1",
        ),
        entry(
            service(
                "local-elsewhere",
                port(80, "UDP"),
                ingress=ingress(57),
                loadBalancerSourceRanges=blocks("outside1", "node1"),
                **LOCAL,
                **BALANCED,
            ),
            "pod2-1",
        ),
    )
)
_ZONED = (On("pod1-1", zones=["a"]), On("pod2-1", zones=["b"]))
_PLACED = (On("pod1-1", nodes=["node1"]), On("pod2-1", nodes=["node2"]))
_HINTED = (
    entry(service("zones", port(80), **NODE_PORT), *_ZONED),
    entry(service("zones-but-one", port(80)), *_ZONED, "pod2-2"),
    entry(service("zones-but-a-draining-one", port(80)), *_ZONED, terminating("pod2-2")),
    entry(service("other-zones", port(80)), On("pod1-1", zones=["c"]), On("pod2-1", zones=["c"])),
    entry(service("one-zone", port(80)), On("pod1-1", zones=["a"]), On("pod2-1", zones=["a", "c"])),
    entry(
        service("zones-drained", port(80)),
        On("pod1-1", terminating("").conditions, zones=["a"]),
        On("pod2-1", terminating("").conditions, zones=["b"]),
    ),
    entry(service("nodes", port(80)), *_PLACED),
    entry(service("nodes-but-one", port(80)), *_PLACED, "pod2-2"),
    entry(service("nodes-of-node2", port(80)), On("pod1-1", nodes=["node2"]), On("pod2-1", nodes=["node2"])),
    entry(
        service("nodes-before-zones", port(80)),
        On("pod1-1", nodes=["node2"], zones=["a"]),
        On("pod2-1", nodes=["node1"], zones=["b"]),
    ),
    entry(
        service("zones-after-nodes", port(80)), On("pod1-1", nodes=["node1"], zones=["b"]), On("pod2-1", zones=["a"])
    ),
)
HINTS = State(_HINTED)
NO_ZONE = State(_HINTED[:2] + _HINTED[-2:], {"node1": None, "node2": "a"})
HINTED_LOCAL = State(
    (
        entry(
            service("internal-local", port(80), **INTERNAL_LOCAL), On("pod1-1", zones=["b"]), On("pod2-1", zones=["a"])
        ),
        entry(
            service("external-local", port(80), **LOCAL, **NODE_PORT),
            On("pod1-1", zones=["b"]),
            On("pod2-1", zones=["a"]),
        ),
        entry(
            service("far-only", port(80), **LOCAL, **NODE_PORT),
            On("pod1-1", nodes=["node2"]),
            On("pod2-1", nodes=["node1"]),
        ),
    ),
    {"node1": "a", "node2": "c"},
)
PINNED = State(
    (
        entry(
            service(
                "pinned", port(80, name="t"), port(80, "UDP", name="u"), externalIPs=public(60), **AFFINITY, **NODE_PORT
            ),
            "pod1-1",
            "pod2-1",
        ),
        entry(
            service("pinned-locally", port(80), ingress=ingress(61), **AFFINITY, **LOCAL, **BALANCED),
            "pod1-1",
            "pod1-2",
            "pod2-1",
        ),
        entry(service("pinned-inside", port(80), **AFFINITY, **INTERNAL_LOCAL), "pod1-1", "pod1-2"),
        entry(service("pinned-to-one", port(80, "SCTP"), **AFFINITY), "pod1-1"),
        entry(service("pinned-without-endpoints", port(80), **AFFINITY)),
    )
)

FOR_FLAGS = State(
    (
        entry(service("cluster", port(80), externalIPs=public(100), ingress=ingress(101), **BALANCED), "pod2-1"),
        entry(service("local", port(80), ingress=ingress(102), **LOCAL, **BALANCED), "pod1-1"),
        entry(service("local-elsewhere", port(80, "UDP"), externalIPs=public(103), **LOCAL, **NODE_PORT), "pod2-1"),
        entry(service("internal-local", port(80, "UDP"), **INTERNAL_LOCAL, **NODE_PORT), "pod1-1"),
        entry(
            service(
                "ranged", port(80), ingress=ingress(104), loadBalancerSourceRanges=blocks("node1", "pod1-1"), **BALANCED
            ),
            "pod1-1",
        ),
        entry(service("host-network", port(80, "SCTP"), **NODE_PORT), "node1"),
        entry(service("empty", port(80), **NODE_PORT)),
    )
)
"""Services that are affected by flags; with single endpoints, because no flag affects the choice of endpoints."""

FOR_IPVS = State(
    (
        *FOR_FLAGS.entries,
        entry(service("pinned", port(80), externalIPs=public(60), **AFFINITY), "pod1-1", "pod2-1"),
        entry(service("one-is-draining", port(80, "UDP")), "pod1-1", terminating("pod2-1")),
        entry(service("address-of-a-node", port(80), externalIPs=[*map(str, SECOND_ADDRESSES["node1"])]), "pod2-1"),
        entry(service("local-empty", port(80), externalIPs=public(44), **LOCAL)),
        entry(service("internal-nowhere", port(80), **INTERNAL_LOCAL), "database"),
    )
)
"""A few Services of every kind: a sync of kube-proxy's IPVS mode starts a program for each address of each Service."""

STATES: Final = {
    "endpoints": ENDPOINTS,
    "slices": SLICES,
    "internal": INTERNAL,
    "external": EXTERNAL,
    "balancers": BALANCERS,
    "external-local": EXTERNAL_LOCAL,
    "both-local": BOTH_LOCAL,
    "ranges": RANGES,
    "hints": HINTS,
    "no-zone": NO_ZONE,
    "hinted-local": HINTED_LOCAL,
    "pinned": PINNED,
}


def together(states: Mapping[str, State]) -> State:
    """Return the union of several states, whose Services have the names of their states as prefixes."""
    return State(
        tuple(_renamed(item, f"{name}-{item.name}") for name, state in states.items() for item in state.entries)
    )


def _renamed(item: Entry, name: str) -> Entry:
    service = {**item.service, "metadata": {**item.service["metadata"], "name": name}}
    return Entry(service, tuple(_slice_of(name, each) for each in item.slices))


def _slice_of(owner: str, item: JsonObject) -> JsonObject:
    metadata = item["metadata"]
    labels = {**metadata["labels"], SERVICE_NAME_LABEL: owner}
    own = metadata["name"].removeprefix(metadata["labels"][SERVICE_NAME_LABEL])
    return {**item, "metadata": {**metadata, "name": f"{owner}{own}", "labels": labels}}
