"""All requests of the demo except those of the rollout, by feature.

Data only. The addresses are those of `examples/` and of the lab (`tests/lab/shape.py`).
"""

from __future__ import annotations

from ipaddress import ip_address

from tests.lab import sctp, tcp, udp

from .check import Check, Section, any_of, dropped, one_of, reached_at, refused, seen_by, spread

PODS = ("pod1-1", "pod1-2", "pod2-1", "pod2-2")
NODE1, NODE2 = "172.18.0.11", "172.18.0.12"
NODE1_IPV6, NODE2_IPV6 = "fd00:172:18::11", "fd00:172:18::12"
NODE1_SECOND = "172.19.0.11"
"""Another address of node1, which its Node object does not have."""
BRIDGE1, BRIDGE2 = ip_address("10.244.1.1"), ip_address("10.244.2.1")
"""The source address of masqueraded packets, as pods of the same node see it."""
CLIENT_POD = ip_address("10.244.1.13")
OUTSIDE1 = ip_address("172.18.0.101")

SECTIONS = (
    Section(
        "ClusterIP",
        "clusterip.yaml",
        "One address for several pods; each request goes to one of them, with equal probability.",
        (
            Check("client-pod", tcp("10.96.0.10", 80), spread(*PODS), requests=400),
            Check("client-pod", tcp("10.96.0.10", 80), seen_by(CLIENT_POD, *PODS)),
            Check("node1", tcp("10.96.0.10", 80), spread(*PODS), requests=400),
            Check("outside1", tcp("10.96.0.10", 80), any_of(*PODS)),
        ),
    ),
    Section(
        "Hairpin",
        "hairpin.yaml",
        "A pod that connects to its own Service may reach itself.",
        (
            Check("pod1-1", tcp("10.96.0.15", 80), seen_by(BRIDGE1, "pod1-1")),
            Check("client-pod", tcp("10.96.0.15", 80), seen_by(CLIENT_POD, "pod1-1")),
        ),
    ),
    Section(
        "Several ports, by name",
        "named-ports.yaml",
        "A port name may have a different number in each pod.",
        (
            Check("client-pod", tcp("10.96.0.20", 80), reached_at("pod1-1:8080", "pod2-1:8081"), requests=50),
            Check("client-pod", tcp("10.96.0.20", 9100), reached_at("pod1-1:9100", "pod2-1:9100"), requests=50),
        ),
    ),
    Section(
        "UDP",
        "udp.yaml",
        "The same port for UDP and TCP, as in DNS.",
        (
            Check("client-pod", udp("10.96.0.53", 53), spread("pod1-1", "pod2-1"), requests=100),
            Check("client-pod", tcp("10.96.0.53", 53), spread("pod1-1", "pod2-1"), requests=100),
        ),
    ),
    Section(
        "SCTP",
        "sctp.yaml",
        "The first round trip of an association: INIT, INIT ACK.",
        (Check("client-pod", sctp("10.96.0.30", 3868), spread("pod1-2", "pod2-2"), requests=100),),
    ),
    Section(
        "NodePort",
        "nodeport.yaml",
        "A port on every address of every node; both pods are on node2.",
        (
            Check("outside1", tcp(NODE1, 30080), seen_by(ip_address(NODE1), "pod2-1", "pod2-2")),
            Check("outside2", tcp(NODE2, 30080), seen_by(BRIDGE2, "pod2-1", "pod2-2")),
            Check("outside1", tcp(NODE1_SECOND, 30080), any_of("pod2-1", "pod2-2")),
            Check("outside2", udp(NODE1, 30053), any_of("pod2-1", "pod2-2")),
            Check("client-pod", tcp(NODE2, 30080), any_of("pod2-1", "pod2-2")),
            Check("outside1", tcp(NODE1, 30081), refused()),
        ),
    ),
    Section(
        "ExternalIP",
        "externalip.yaml",
        "Only the addresses that the Service lists, here two addresses of the nodes.",
        (
            Check("outside1", tcp(NODE1, 8888), any_of("pod1-2", "pod2-2")),
            Check("outside2", tcp(NODE2, 8888), any_of("pod1-2", "pod2-2")),
            Check("client-pod", tcp(NODE2, 8888), any_of("pod1-2", "pod2-2")),
            Check("outside1", tcp(NODE1_SECOND, 8888), refused()),
        ),
    ),
    Section(
        "LoadBalancer",
        "loadbalancer.yaml",
        "An address that a load balancer routes to the nodes; only outside1 is allowed to use it.",
        (
            Check("outside1", tcp("203.0.113.10", 443), any_of("pod1-1", "pod2-2")),
            Check("outside2", tcp("203.0.113.10", 443), dropped()),
        ),
    ),
    Section(
        "Session affinity",
        "session-affinity.yaml",
        "All requests of a client go to the same pod.",
        (
            Check("client-pod", tcp("10.96.0.70", 80), one_of(*PODS), requests=30, one_by_one=True),
            Check("pod2-1", tcp("10.96.0.70", 80), one_of(*PODS), requests=30, one_by_one=True),
        ),
    ),
    Section(
        "Internal traffic policy Local",
        "internal-traffic-local.yaml",
        "Clients inside the cluster reach the pod on their own node only.",
        (
            Check("client-pod", tcp("10.96.0.75", 24224), seen_by(CLIENT_POD, "pod1-2"), requests=30),
            Check("pod2-1", tcp("10.96.0.75", 24224), any_of("pod2-2"), requests=30),
        ),
    ),
    Section(
        "External traffic policy Local",
        "external-traffic-local.yaml",
        "External clients reach only pods of the same node, which see their addresses; the pod is on node1.",
        (
            Check("outside1", tcp(NODE1, 30090), seen_by(OUTSIDE1, "pod1-1")),
            Check("outside2", tcp(NODE2, 30090), dropped()),
            Check("pod2-1", tcp(NODE2, 30090), any_of("pod1-1")),
        ),
    ),
    Section(
        "Service without selector",
        "external-database.yaml",
        "A cluster IP for a host outside the cluster.",
        (Check("client-pod", tcp("10.96.0.90", 5432), seen_by(CLIENT_POD, "database"), requests=30),),
    ),
    Section(
        "Scaled down",
        "scaled-down.yaml",
        "Without pods clients are refused at once, and need not wait for a time-out.",
        (
            Check("client-pod", tcp("10.96.0.100", 80), refused()),
            Check("node1", tcp("10.96.0.100", 80), refused()),
            Check("outside1", tcp(NODE1, 30100), refused()),
        ),
    ),
    Section(
        "IPv6",
        "dual-stack.yaml",
        "One Service in both families.",
        (
            Check("client-pod", tcp("fd00:10:96::110", 25), spread("pod1-1", "pod2-1"), requests=100),
            Check("client-pod", tcp("10.96.0.110", 25), spread("pod1-1", "pod2-1"), requests=100),
            Check("outside1", tcp(NODE2_IPV6, 30025), any_of("pod1-1", "pod2-1")),
            Check("outside2", tcp(NODE1_IPV6, 30025), any_of("pod1-1", "pod2-1")),
        ),
    ),
)
