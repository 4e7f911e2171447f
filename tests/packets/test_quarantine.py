"""A Service that the kernel refuses does not affect other Services, and is logged once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.lab.waiting import wait_until

from .cluster import PYPROXY, Cluster
from .gate import Gate
from .modes import needs
from .objects import backed, cluster_ips, port, service
from .table import Row, rows

pytestmark = needs("is_iptables")

GOOD = [service(f"good-{number}", number, port(80)) for number in range(100, 110)]
BAD = service("bad", 110, port(80))
LATER = service("later", 112, port(80))


@pytest.fixture(scope="module", autouse=True)
def objects(cluster: Cluster, gate: Gate) -> Iterator[None]:
    """Add a Service that is refused in IPv4, ten more in the same change, and one later."""
    gate.refuse_cluster_ip(110)
    with cluster.having(*backed(*GOOD, BAD, by="pod1-1")), cluster.having(*backed(LATER, by="pod1-1")):
        yield


@rows("client-pod  bad:80/tcp  untouched", [BAD], versions=[4])
def test_refused_service_is_named_in_the_log_once(cluster: Cluster, gate: Gate, row: Row) -> None:
    """The log has one error for it, with the rule; retries with the same error are not logged."""
    count = gate.count
    wait_until(lambda: gate.count >= count + 2, "more tries")

    assert cluster.expected(row) == cluster.observe(row)
    log = cluster.agents["node1"].stderr
    [error] = re.findall(r"^E.*\bdefault/bad\b.*", log, re.MULTILINE)
    assert "in quarantine" in error
    assert f"-d {cluster_ips(110)[0]}/32" in log


OTHER_SERVICES = """
client-pod  good-100:80/tcp  pod1-1   itself
client-pod  good-104:80/tcp  pod1-1   itself
client-pod  good-109:80/tcp  pod1-1   itself
client-pod  later:80/tcp     pod1-1   itself
"""


@rows(OTHER_SERVICES, [*GOOD, LATER])
def test_other_services_are_programmed(cluster: Cluster, row: Row) -> None:
    """Services in the same change as the refused one, and later Services, work."""
    assert cluster.expected(row) == cluster.observed(row)


@rows("client-pod  bad:80/tcp  pod1-1  itself", [BAD], versions=[6])
def test_other_family_is_programmed(cluster: Cluster, row: Row) -> None:
    """A Service refused in IPv4 works in IPv6."""
    assert cluster.expected(row) == cluster.observed(row)


def test_services_show_the_quarantine(cluster: Cluster) -> None:
    """`pyproxy services` shows the refused Service with the kernel's error, in the family in which it was refused."""
    host = cluster.lab["node1"]
    control_socket = f"--control-socket={cluster.control_socket(host)}"
    listed = json.loads(cluster.run(host, PYPROXY, "services", control_socket, "default/bad", "-o", "json"))

    found = {item["frontend"]["family"]: (item["sync"], item["syncError"]) for item in listed["items"]}
    assert ("programmed", "") == found["IPv6"]
    assert "quarantined" == found["IPv4"][0]
    assert f"-d {cluster_ips(110)[0]}/32" in found["IPv4"][1]
