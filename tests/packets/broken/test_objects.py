"""Set-ups that are broken by their objects: one command, given files, names the cause, and packets show what an operator sees.

Each file in `objects` is a set-up, as `kubectl get -o yaml` prints it. One command without a network reads it, and a
cluster with all of them answers, or does not answer, the packet of each row.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from tests.cli.test_cli import pyproxy
from tests.packets.cluster import CLUSTER_CIDR_FLAG, Cluster
from tests.packets.objects import JsonObject
from tests.packets.table import Row, rows

FOLDER = Path(__file__).with_name("objects")
SERVICES = "services --problems"
DOCTOR = "doctor --offline"


class Fault(NamedTuple):
    """A set-up that is broken by its objects."""

    file: str
    sees: str
    """What an operator sees."""
    cause: str
    """The true cause."""
    command: str
    names: tuple[str, ...]
    """Parts of the output that name the cause."""
    packets: str = ""
    """Rows of packets that show what the operator sees."""


FAULTS = (
    Fault(
        "selector",
        "Connections are refused although pods run.",
        "The selector of the Service matches the labels of no pod.",
        SERVICES,
        ("REJECT: the EndpointSlices of the Service list no endpoint",),
        "client-pod  10.96.1.1:80/tcp  refused",
    ),
    Fault(
        "no-slice",
        "Connections to a Service without a selector are refused.",
        "Nothing has created an EndpointSlice for it.",
        SERVICES,
        ("REJECT: the Service has no EndpointSlice",),
        "client-pod  10.96.1.2:80/tcp  refused",
    ),
    Fault(
        "port-name",
        "Connections are refused although the slice has a ready endpoint.",
        "The port has another name in the slice than in the Service.",
        SERVICES,
        ('slice has port "web", Service wants "http"',),
        "client-pod  10.96.1.3:80/tcp  refused",
    ),
    Fault(
        "target-port",
        "Connections are reset although the endpoint is ready.",
        "The targetPort of the Service is 8081, and the pod listens on 8080.",
        "explain client-pod default/target-port",
        ("10.244.1.11:8081", "pod default/pod1-1 declares the ports 8080/TCP, not 8081/TCP"),
        "client-pod  10.96.1.4:80/tcp  reset",
    ),
    Fault(
        "named-target-port",
        "Connections are refused although the pod is ready.",
        "The targetPort of the Service is a name that no container port of the pod has.",
        SERVICES,
        ('slice has no ports, Service wants "http"',),
        "client-pod  10.96.1.5:80/tcp  refused",
    ),
    Fault(
        "not-ready",
        "Connections are refused although pods run.",
        "The readiness probes of all pods fail.",
        SERVICES,
        ("all 2 endpoints are not ready (10.244.1.11 on node1, 10.244.2.11 on node2)",),
        "client-pod  10.96.1.6:80/tcp  refused",
    ),
    Fault(
        "terminating",
        "Connections are refused during a rollout.",
        "The only pod is terminating and no longer serves.",
        SERVICES,
        ("REJECT: the only endpoint is terminating, and no longer serving (10.244.1.11 on node1)",),
        "client-pod  10.96.1.7:80/tcp  refused",
    ),
    Fault(
        "external-local",
        "The node port answers on node2 only.",
        "externalTrafficPolicy is Local, and node1 has no endpoint.",
        SERVICES,
        ("DROP: 1 endpoint elsewhere (10.244.2.11 on node2), 0 here",),
        "outside1  node1:31008/tcp  dropped\noutside1  node2:31008/tcp  pod2-1  itself",
    ),
    Fault(
        "internal-local",
        "Pods of node1 get no answer, pods of node2 do.",
        "internalTrafficPolicy is Local, and node1 has no endpoint.",
        SERVICES,
        ("DROP: 1 endpoint elsewhere (10.244.2.11 on node2), 0 here",),
        "client-pod  10.96.1.9:80/tcp  dropped\npod2-3  10.96.1.9:80/tcp  pod2-1  itself",
    ),
    Fault(
        "source-range",
        "One client gets no answer from the load balancer IP.",
        "Its address is not in spec.loadBalancerSourceRanges.",
        "explain 172.18.0.101 203.0.113.110:80 --node=node1",
        ("172.18.0.101 is not in spec.loadBalancerSourceRanges (198.51.100.0/24)",),
        "outside1  203.0.113.110:80/tcp  dropped",
    ),
    Fault(
        "source-range-of-no-client",
        "No client gets an answer from the load balancer IP.",
        "The source range is 0.0.0.0/32 instead of 0.0.0.0/0.",
        SERVICES,
        ("203.0.113.111:80/TCP", "DROP: no client has an address in spec.loadBalancerSourceRanges (0.0.0.0/32)"),
        "outside1  203.0.113.111:80/tcp  dropped",
    ),
    Fault(
        "source-range-of-other-family",
        "Clients outside the source ranges get answers from the load balancer IP.",
        "All source ranges are IPv6, so they do not restrict the IPv4 address.",
        SERVICES,
        ("203.0.113.112:80/TCP", "ok, but open to all clients: spec.loadBalancerSourceRanges has no IPv4 range"),
        "outside1  203.0.113.112:80/tcp  pod1-1  node1",
    ),
    Fault(
        "other-family",
        "Connections are refused although the slice has a ready endpoint.",
        "The Service is IPv4, and the pods have IPv6 addresses only.",
        SERVICES,
        ("all endpoints are IPv6, the Service is IPv4",),
        "client-pod  10.96.1.13:80/tcp  refused",
    ),
    Fault(
        "address-type",
        "Connections are refused although a slice has an endpoint.",
        "The addressType of the slice is IPv4, and its address is IPv6.",
        SERVICES,
        ("address-type-x7k2p: endpoints[0].addresses[0]: fd00:10:244:1::11 is not of addressType IPv4",),
        "client-pod  10.96.1.14:80/tcp  refused",
    ),
    Fault(
        "slice-without-label",
        "Connections are refused although an EndpointSlice was created by hand.",
        "The slice does not have the label kubernetes.io/service-name.",
        SERVICES,
        ("slice-without-label-x7k2p: metadata.labels[kubernetes.io/service-name]: missing",),
        "client-pod  10.96.1.15:80/tcp  refused",
    ),
    Fault(
        "slice-of-misspelt-service",
        "Connections are refused although an EndpointSlice was created by hand.",
        "The label kubernetes.io/service-name of the slice has a typing error.",
        SERVICES,
        (
            "REJECT: the Service has no EndpointSlice",
            "slice-of-misspelt-service-x7k2p has the label of slice-of-mispelt-service, which does not exist",
        ),
        "client-pod  10.96.1.16:80/tcp  refused",
    ),
    Fault(
        "slice-in-other-namespace",
        "Connections are refused although an EndpointSlice was created by hand.",
        "The slice is in another namespace than the Service.",
        SERVICES,
        ("REJECT: the Service has no EndpointSlice; shop/slice-in-other-namespace-x7k2p is in another namespace",),
        "client-pod  10.96.1.17:80/tcp  refused",
    ),
    Fault(
        "node-port-without-ipv6",
        "The node port of a dual-stack Service answers on IPv4 only.",
        "The node has no IPv6 address.",
        SERVICES + " --proxy-mode=nftables",
        ("node port 31018 is not served: no IPv6 address of this node qualifies",),
    ),
    Fault(
        "external-name",
        "A Service has no cluster IP.",
        "It is of type ExternalName.",
        "explain client-pod external-name.default.svc",
        ("NO SERVICE", "the Service is of type ExternalName", "connect to spec.externalName"),
    ),
    Fault(
        "headless",
        "A Service has no cluster IP.",
        "It is headless.",
        "explain client-pod default/headless",
        ("NO SERVICE", "the Service is headless"),
    ),
    Fault(
        "external-ip-of-two",
        "Clients of one Service reach the pods of another.",
        "Two Services have the same external IP and port; the older one gets it.",
        SERVICES,
        (
            "default/external-ip-of-two-later",
            "no rules: Service default/external-ip-of-two:http has the same address and port",
        ),
        "outside1  203.0.113.121:80/tcp  pod1-1  node1",
    ),
    Fault(
        "node-port-of-two",
        "Clients of one Service reach the pods of another.",
        "Two Services have the same node port, as in manifests that no API server has checked.",
        SERVICES,
        (
            "default/node-port-of-two-later",
            "no rules: Service default/node-port-of-two:http has the same address and port",
        ),
        "outside1  node1:31022/tcp  pod1-1  node1",
    ),
    Fault(
        "invalid-cluster-ip",
        "A Service has no rules.",
        "Its cluster IP is not a valid address.",
        SERVICES,
        ("default/invalid-cluster-ip: spec.clusterIPs[0]: 10.96.1.323 is not a valid IP address",),
    ),
    Fault(
        "invalid-port",
        "A Service has no rules.",
        "Its port is a name instead of a number.",
        SERVICES,
        ("invalid: spec.ports[0].port: Expected int, got str",),
        "client-pod  10.96.1.24:80/tcp  untouched",
    ),
    Fault(
        "zone-hints",
        "Clients in zone-a are always refused, clients in zone-b never.",
        "Hints keep clients of zone-a at the endpoint in their zone, which does not serve the port.",
        "explain client-pod default/zone-hints",
        ("100.0 %  10.244.1.11:8081", "Note: 1 of 2 endpoints: topology hints restrict node1 to zone-a"),
        "client-pod  10.96.1.25:80/tcp  reset\npod2-3  10.96.1.25:80/tcp  pod2-1  itself",
    ),
    Fault(
        "load-balancer-pending",
        "A Service of type LoadBalancer has no address.",
        "No load balancer controller has set status.loadBalancer.",
        SERVICES,
        ("no rules: status.loadBalancer has no address",),
    ),
    Fault(
        "ip-mode-proxy",
        "Nodes do not accept traffic to the load balancer IP.",
        "The ipMode of the address is Proxy, so the load balancer delivers to node ports.",
        "explain outside 203.0.113.128:80 --node=node1",
        ("NO SERVICE", "ipMode of 203.0.113.128 is Proxy"),
        "outside1  203.0.113.128:80/tcp  untouched",
    ),
    Fault(
        "protocol",
        "Queries are refused although the endpoint is ready.",
        "The Service port is UDP, the port of the slice is TCP.",
        SERVICES,
        ('slice has "dns"/TCP, Service wants "dns"/UDP',),
        "client-pod  10.96.1.29:53/udp  refused",
    ),
    Fault(
        "web",
        "Connections to a Service that works time out or are refused.",
        "The client uses the port of the pods instead of the port of the Service.",
        "explain client-pod default/web:8080",
        ("has only the port 80/TCP", "connect to port 80/TCP"),
        "client-pod  10.96.1.30:8080/tcp  unserved",
    ),
    Fault(
        "web",
        "A client gets no answer over UDP.",
        "The Service has a TCP port only.",
        "explain client-pod default/web:80/UDP",
        ("has only the port 80/TCP",),
        "client-pod  10.96.1.30:80/udp  unserved",
    ),
    Fault(
        "web",
        "A client gets no answer from an address that used to be a Service.",
        "The client keeps the cluster IP of a Service that was deleted.",
        "explain client-pod 10.96.1.99:80",
        ("NO SERVICE", "no Service has this address, port and protocol on this node"),
        "client-pod  10.96.1.99:80/tcp  untouched",
    ),
    Fault(
        "web",
        "A name does not resolve.",
        "The name of the Service is misspelt.",
        "explain client-pod wbe.default.svc",
        ("there is no such Service (did you mean default/web?)",),
    ),
    Fault(
        "only-in-shop",
        "A name does not resolve.",
        "The Service is in another namespace.",
        "explain client-pod only-in-shop.default.svc",
        ("there is no such Service (did you mean shop/only-in-shop?)",),
    ),
    Fault(
        "cluster-ip-pending",
        "A Service has no rules.",
        "It has no cluster IP, because no API server has assigned one.",
        SERVICES,
        ("default/cluster-ip-pending: spec.clusterIP: missing",),
    ),
    Fault(
        "other-proxy",
        "A Service has no rules.",
        "A label leaves it to another proxy.",
        "explain client-pod default/other-proxy",
        ("the label service.kubernetes.io/service-proxy-name selects another proxy",),
        "client-pod  10.96.1.34:80/tcp  untouched",
    ),
    Fault(
        "endpoint-of-a-service",
        "Connections time out although the Service has an endpoint.",
        "The endpoint is the cluster IP of another Service; the kernel translates a connection only once.",
        DOCTOR,
        ("default/endpoint-of-a-service may not work: endpoint 10.96.1.30:80 is the cluster IP of default/web",),
        "client-pod  10.96.1.35:80/tcp  unserved",
    ),
    Fault(
        "endpoint-on-loopback",
        "Connections time out although the Service has an endpoint.",
        "The endpoint is a loopback address, to which other hosts' packets cannot be forwarded.",
        DOCTOR,
        ("default/endpoint-on-loopback may not work: endpoint 127.0.0.1:8080 is a loopback address",),
    ),
    Fault(
        "health-check-port-of-two",
        "The health checks of a load balancer show the state of another Service.",
        "Two Services have the same healthCheckNodePort.",
        SERVICES,
        ("health-check-port-of-two-later: spec.healthCheckNodePort: node port 32037/TCP belongs to",),
    ),
    Fault(
        "external-ip-of-a-node",
        "A port of node2 is answered by a pod.",
        "The external IP of a Service is an address of node2.",
        DOCTOR,
        ("ExternalIP 172.18.0.12 is an address of node node2: port 8999 of it leads to the Service",),
        "outside1  172.18.0.12:8999/tcp  pod1-1  node2",
    ),
    Fault(
        "local-without-node-name",
        "The node port answers on no node.",
        "externalTrafficPolicy is Local, and the endpoint of the slice, written by hand, has no nodeName.",
        SERVICES,
        ("DROP: 1 endpoint without a nodeName (10.244.1.11), 0 here",),
        "outside1  node1:31054/tcp  dropped\noutside1  node2:31054/tcp  dropped",
    ),
    Fault(
        "local-on-unknown-node",
        "The node port answers on no node.",
        "externalTrafficPolicy is Local, and the endpoint names the node by its FQDN, the agent by its short name.",
        SERVICES,
        (
            "DROP: 1 endpoint elsewhere (10.244.1.11 on node1.example.com), 0 here",
            "10.244.1.11 is in a pod CIDR of node1, but its nodeName is node1.example.com",
        ),
        "outside1  node1:31055/tcp  dropped",
    ),
    Fault(
        "web",
        "The node port does not answer on the address of a node.",
        "--nodeport-addresses excludes this address.",
        "explain outside 172.18.0.11:31030 --nodeport-addresses=10.9.0.0/16",
        ("NO SERVICE", "node ports are not served on 172.18.0.11", "--nodeport-addresses"),
    ),
    Fault(
        "web",
        "The node port does not answer on 127.0.0.1.",
        "nftables mode serves node ports on localhost only if --nodeport-addresses includes localhost.",
        "explain localhost localhost:31030 --node=node1 --proxy-mode=nftables",
        ("NO SERVICE", "node ports are not served on 127.0.0.1", "add localhost to --nodeport-addresses"),
    ),
)


def objects() -> Iterator[JsonObject]:
    """Yield the objects of all set-ups; the cluster has Nodes of its own."""
    for file in sorted(FOLDER.glob("*.yaml")):
        items = yaml.safe_load(file.read_text())["items"]
        yield from (item for item in items if item["kind"] in ("Service", "EndpointSlice"))


@cache
def of_all(command: str) -> str:
    """Return what a command prints about all set-ups together."""
    return output(command, FOLDER)


def output(command: str, *paths: Path) -> str:
    """Return both outputs of a command that reads these files."""
    flags = [f"--manifests={path}" for path in paths]
    done = pyproxy(*command.split(), *flags, *([] if "--node" in command else ["--node=node1"]), CLUSTER_CIDR_FLAG)
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.file}: {fault.cause}")
def test_the_cause_is_named(fault: Fault) -> None:
    """The command names the cause."""
    if fault.command in (SERVICES, DOCTOR):
        # One run for all set-ups: the lines about this one.
        found = "\n".join(line for line in of_all(fault.command).splitlines() if fault.file in line)
    else:
        found = output(fault.command, FOLDER)
    for text in fault.names:
        assert text in found


@pytest.fixture(scope="module")
def broken(cluster: Cluster) -> Iterator[Cluster]:
    """Provide the cluster with the objects of all set-ups."""
    with cluster.having(*objects()):
        yield cluster


@rows("\n".join(fault.packets for fault in FAULTS), versions=[4])
def test_what_an_operator_sees(broken: Cluster, row: Row) -> None:
    """Packets meet what the operator sees."""
    assert broken.expected(row) == broken.observed(row)
