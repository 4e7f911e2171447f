"""Packets to cluster IPs: which endpoint answers, and which source address it sees."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import Ports

from .cluster import Cluster
from .objects import (
    NAMESPACE,
    PORT,
    SECOND_PORT,
    JsonObject,
    On,
    not_ready,
    port,
    service,
    slices,
    terminating,
)
from .table import Row, rows

DATABASE_PORT = 5432

WEB = service("web", 10, port(80, "TCP", name="t"), port(80, "UDP", name="u"), port(80, "SCTP", name="s"))
SEVERAL = service("several", 11, port(80, name="http"), port(81, name="admin"), port(82, "UDP", name="syslog"))
MERGED = service("merged", 12, port(80))
EMPTY = service("empty", 13, port(80, "TCP", name="t"), port(80, "UDP", name="u"), port(80, "SCTP", name="s"))
UNREADY = service("unready", 14, port(80))
HAIRPIN = service("hairpin", 15, port(80, "TCP", name="t"), port(80, "UDP", name="u"), port(80, "SCTP", name="s"))
OUTSIDE = service("outside", 16, port(DATABASE_PORT))
IPV4_ONLY = service("ipv4-only", 17, port(80), ipFamilies=["IPv4"], clusterIPs=["10.96.0.17"])
IPV6_ONLY = service(
    "ipv6-only", 18, port(80), ipFamilies=["IPv6"], clusterIP="fd00:10:96::12", clusterIPs=["fd00:10:96::12"]
)
BY_ENDPOINTS = service("by-endpoints", 19, port(80))
REPLACED = service("replaced", 20, port(80))
ALL_DRAIN = service("all-drain", 21, port(80))
LAST_GASP = service("last-gasp", 22, port(80))
HALF_HEADLESS = service("half-headless", 23, port(80))

LOCAL = service("local", 24, port(80, "TCP", name="t"), port(80, "UDP", name="u"), internalTrafficPolicy="Local")
LOCAL_ON_NODE1 = service("local-on-node1", 25, port(80), internalTrafficPolicy="Local")
LOCAL_EMPTY = service("local-empty", 26, port(80), internalTrafficPolicy="Local")
LOCAL_DRAINS = service("local-drains", 27, port(80), internalTrafficPolicy="Local")
NAMELESS = service("nameless", 28, port(80), internalTrafficPolicy="Local")

BY_ZONE = service("by-zone", 29, port(80))
BY_NODE = service("by-node", 30, port(80))
HALF_HINTED = service("half-hinted", 31, port(80))
OTHER_ZONE = service("other-zone", 32, port(80))
ZONE_DRAINS = service("zone-drains", 33, port(80))
NODE_BEFORE_ZONE = service("node-before-zone", 34, port(80))

LABELLED = service("labelled", 35, port(80), labels={"service.kubernetes.io/service-proxy-name": ""})
EXTERNAL_NAME = service("external-name", 36, port(80), type="ExternalName", externalName="example.com")
HOST_NETWORK = service("host-network", 38, port(80, "TCP", name="t"), port(80, "UDP", name="u"))
HEADLESS = service("headless", 37, port(80), clusterIP="None", clusterIPs=["None"])

OBJECTS: list[JsonObject] = [
    *(WEB, *slices(WEB, "pod1-1", "pod2-1")),
    # A port name can have different numbers in different slices; one slice lacks a port.
    *(SEVERAL, *slices(SEVERAL, "pod1-1", to={"http": PORT, "admin": SECOND_PORT, "syslog": PORT})),
    *slices(SEVERAL, "pod2-1", to={"http": SECOND_PORT, "syslog": SECOND_PORT}, suffix="b"),
    *(MERGED, *slices(MERGED, "pod1-1", "pod2-1"), *slices(MERGED, "pod2-1", "pod1-2", suffix="b")),
    *(EMPTY, *slices(EMPTY)),
    *(UNREADY, *slices(UNREADY, not_ready("pod1-1"), On("pod2-1", {"ready": False, "serving": True}))),
    *(HAIRPIN, *slices(HAIRPIN, "pod1-1")),
    *(OUTSIDE, *slices(OUTSIDE, "database", to=DATABASE_PORT)),
    *(IPV4_ONLY, *slices(IPV4_ONLY, "pod1-1"), IPV6_ONLY, *slices(IPV6_ONLY, "pod1-1")),
    BY_ENDPOINTS,
    {
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {"name": "by-endpoints", "namespace": NAMESPACE},
        "subsets": [
            {
                "addresses": [{"ip": "10.244.1.11"}, {"ip": "fd00:10:244:1::11"}],
                "notReadyAddresses": [{"ip": "10.244.2.11"}, {"ip": "fd00:10:244:2::11"}],
                "ports": [{"port": PORT}],
            }
        ],
    },
    # A running pod has reused the address of a terminating one; the order of the slices does not matter.
    *(REPLACED, *slices(REPLACED, terminating("pod1-1"), "pod2-1")),
    *(*slices(REPLACED, "pod1-1", suffix="b"), *slices(REPLACED, terminating("pod2-1"), suffix="c")),
    *(
        ALL_DRAIN,
        *slices(ALL_DRAIN, terminating("pod1-1"), terminating("pod2-1"), terminating("pod2-2", serving=False)),
    ),
    *(LAST_GASP, *slices(LAST_GASP, terminating("pod1-1", serving=False))),
    *(HALF_HEADLESS, *slices(HALF_HEADLESS, "pod1-1")),
    *slices(HALF_HEADLESS, "pod2-1", suffix="b", labels={"service.kubernetes.io/headless": ""}),
    *(LOCAL, *slices(LOCAL, "pod1-1", "pod1-2", "pod2-1")),
    *(LOCAL_ON_NODE1, *slices(LOCAL_ON_NODE1, "pod1-1")),
    *(LOCAL_EMPTY, *slices(LOCAL_EMPTY)),
    *(LOCAL_DRAINS, *slices(LOCAL_DRAINS, terminating("pod1-1"), terminating("pod2-2"), "pod2-1")),
    *(NAMELESS, *slices(NAMELESS, "database", to=DATABASE_PORT)),
    *(BY_ZONE, *slices(BY_ZONE, On("pod1-1", zones=["zone-a"]), On("pod2-1", zones=["zone-b", "zone-c"]))),
    *(BY_NODE, *slices(BY_NODE, On("pod1-1", nodes=["node1"]), On("pod2-1", nodes=["node2"]))),
    *(HALF_HINTED, *slices(HALF_HINTED, On("pod1-1", zones=["zone-a"]), "pod2-1")),
    *(OTHER_ZONE, *slices(OTHER_ZONE, On("pod1-1", zones=["zone-b"]), On("pod2-1", zones=["zone-c"]))),
    ZONE_DRAINS,
    *slices(ZONE_DRAINS, On("pod1-1", {"ready": False, "terminating": True}, zones=["zone-a"]), terminating("pod2-1")),
    NODE_BEFORE_ZONE,
    *slices(
        NODE_BEFORE_ZONE,
        On("pod1-1", zones=["zone-a"], nodes=["node1"]),
        On("pod1-2", zones=["zone-a", "zone-b"], nodes=["node3"]),
    ),
    *(LABELLED, *slices(LABELLED, "pod1-1")),
    *(EXTERNAL_NAME, *slices(EXTERNAL_NAME, "pod1-1")),
    *(HOST_NETWORK, *slices(HOST_NETWORK, "node1")),
    *(HEADLESS, *slices(HEADLESS, "pod1-1")),
]

TABLE = """
client-pod   web:80/tcp               pod1-1 pod2-1              itself
client-pod   web:80/udp               pod1-1 pod2-1              itself
client-pod   web:80/sctp              pod1-1 pod2-1              itself
pod2-2       web:80/tcp               pod1-1 pod2-1              itself
node1        web:80/tcp               pod1-1 pod2-1              node1
node1        web:80/udp               pod1-1 pod2-1              node1
node1        web:80/sctp              pod1-1 pod2-1              node1
outside1     web:80/tcp               pod1-1 pod2-1              node1
outside2     web:80/udp               pod1-1 pod2-1              node2
outside1     web:80/sctp              pod1-1 pod2-1              node1
client-pod   web:81/tcp               unserved

client-pod   several:80/tcp           pod1-1 pod2-1:9090         itself
client-pod   several:81/tcp           pod1-1:9090                itself
client-pod   several:82/udp           pod1-1 pod2-1:9090         itself
client-pod   several:82/tcp           unserved
client-pod   merged:80/tcp            pod1-1 pod1-2 pod2-1       itself

client-pod   empty:80/tcp             refused
client-pod   empty:80/udp             refused
client-pod   empty:80/sctp            refused
node1        empty:80/tcp             refused
node1@node1'  empty:80/sctp           refused
outside1     empty:80/udp             refused
client-pod   unready:80/tcp           refused
client-pod   last-gasp:80/tcp         refused

pod1-1       hairpin:80/tcp           pod1-1                     node1
pod1-1       hairpin:80/udp           pod1-1                     node1
pod1-1       hairpin:80/sctp          pod1-1                     node1
pod1-2       hairpin:80/tcp           pod1-1                     itself

client-pod   outside:5432/tcp         database:5432              itself
node2        outside:5432/tcp         database:5432              node2
client-pod   host-network:80/tcp      node1                      itself
pod2-2       host-network:80/udp      node1                      itself
node1        host-network:80/tcp      node1                      node1
node2        host-network:80/tcp      node1                      node2
outside2     host-network:80/udp      node1                      node2
client-pod   by-endpoints:80/tcp      pod1-1                     itself
client-pod   10.96.0.17:80/tcp        pod1-1                     itself
client-pod   fd00:10:96::12:80/tcp    pod1-1                     itself

client-pod   replaced:80/tcp          pod1-1 pod2-1              itself
client-pod   all-drain:80/tcp         pod1-1 pod2-1              itself
client-pod   half-headless:80/tcp     pod1-1                     itself

client-pod   local:80/tcp             pod1-1 pod1-2              itself
pod2-2       local:80/udp             pod2-1                     itself
node1        local:80/tcp             pod1-1 pod1-2              node1
outside2     local:80/tcp             pod2-1                     node2
client-pod   local-on-node1:80/tcp    pod1-1                     itself
pod2-2       local-on-node1:80/tcp    dropped
node2        local-on-node1:80/tcp    dropped
client-pod   local-empty:80/tcp       refused
client-pod   local-drains:80/tcp      pod1-1                     itself
pod2-3       local-drains:80/tcp      pod2-1                     itself
client-pod   nameless:80/tcp          dropped

client-pod   by-zone:80/tcp           pod1-1                     itself
pod2-2       by-zone:80/tcp           pod2-1                     itself
client-pod   by-node:80/tcp           pod1-1                     itself
node2        by-node:80/tcp           pod2-1                     node2
client-pod   half-hinted:80/tcp       pod1-1 pod2-1              itself
client-pod   other-zone:80/tcp        pod1-1 pod2-1              itself
pod2-2       other-zone:80/tcp        pod1-1                     itself
client-pod   zone-drains:80/tcp       pod1-1 pod2-1              itself
client-pod   node-before-zone:80/tcp  pod1-1                     itself
pod2-2       node-before-zone:80/tcp  pod1-2                     itself

client-pod   labelled:80/tcp          untouched
client-pod   external-name:80/tcp     untouched
"""


@pytest.fixture(scope="module", autouse=True)
def objects(cluster: Cluster) -> Iterator[None]:
    """Add the objects of this suite, start the database that some of them lead to, and a server on a node's network."""
    database, node = cluster.lab.database, cluster.lab["node1"]
    database.serve(tcp=[DATABASE_PORT])
    node.serve(tcp=[PORT], udp=[PORT])
    with cluster.having(*OBJECTS):
        yield
    database.stop_serving(Ports(tcp=(DATABASE_PORT,)))
    node.stop_serving(Ports(tcp=(PORT,), udp=(PORT,)))


@rows(TABLE, OBJECTS)
def test_packet_to_a_cluster_ip(cluster: Cluster, row: Row) -> None:
    """A packet to a cluster IP has the result of its row."""
    assert cluster.expected(row) == cluster.observed(row)


@pytest.mark.parametrize("name", ["labelled", "external-name", "headless"])
def test_service_without_packet_path_makes_no_rules(cluster: Cluster, name: str) -> None:
    """Services of another proxy, ExternalName Services and headless Services have no rules in the kernel."""
    assert f"{NAMESPACE}/{name}" not in cluster.rules(cluster.lab["node1"])


@rows("client-pod  labelled:80/tcp  pod1-1  itself", OBJECTS)
def test_service_that_loses_the_label_of_another_proxy_is_ours(cluster: Cluster, row: Row) -> None:
    """A Service is programmed when it loses the label of another proxy, and removed when it gets it again."""
    unlabelled = service("labelled", 35, port(80))

    cluster.put(unlabelled)

    assert cluster.expected(row) == cluster.observe(row)
    cluster.put(LABELLED)
    assert f"{NAMESPACE}/labelled" not in cluster.rules(cluster.lab["node1"])
