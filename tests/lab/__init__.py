"""A small cluster made of network namespaces, through which tests send real packets.

    with Lab(Shape(nodes=2)) as lab:
        for pod in lab.pods:
            pod.serve(tcp=[8080], udp=[8053], sctp=[8132])
        agent = lab["node1"].start("pyproxy", "run", "--from", "state.yaml")
        agent.wait_until_ready()
        [outcome] = lab.client_pod.probe(tcp("10.96.0.10", 80))
        assert (outcome.verdict, outcome.server) == (Verdict.REPLY, "pod1-1")

Needs root, iproute2, nsenter, and a kernel with namespaces, veth and bridge. The lab has no notion of Services.

Each namespace has a worker, a process that runs the servers and sends the probes. `fork_server` forks the workers: a
lab with two nodes has 11 namespaces, and starting Python in each would take some 1.4 s of CPU time instead of 0.15 s.
"""

from .host import Connection, Host, Load, probe_all
from .process import Process
from .shape import (
    CLUSTER_CIDRS,
    EXTERNAL_CIDRS,
    SECOND_SEGMENT,
    SEGMENT,
    SERVICE_CIDRS,
    Plan,
    Shape,
)
from .topology import Lab
from .values import (
    Identity,
    IPAddress,
    LabError,
    LoadFailure,
    LoadReport,
    Outcome,
    Ports,
    Probe,
    Protocol,
    RefusedBy,
    SocketAddress,
    Verdict,
    sctp,
    tcp,
    udp,
)

__all__ = [
    "CLUSTER_CIDRS",
    "EXTERNAL_CIDRS",
    "SECOND_SEGMENT",
    "SEGMENT",
    "SERVICE_CIDRS",
    "Connection",
    "Host",
    "IPAddress",
    "Identity",
    "Lab",
    "LabError",
    "Load",
    "LoadFailure",
    "LoadReport",
    "Outcome",
    "Plan",
    "Ports",
    "Probe",
    "Process",
    "Protocol",
    "RefusedBy",
    "Shape",
    "SocketAddress",
    "Verdict",
    "probe_all",
    "sctp",
    "tcp",
    "udp",
]
