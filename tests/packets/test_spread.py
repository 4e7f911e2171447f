"""Connections are spread evenly over endpoints: a chi-square test on real connections."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain

import pytest

from tests.lab import tcp

from .cluster import Cluster
from .objects import PORT, SECOND_PORT, VERSIONS, port, service, slices

CONNECTIONS = 1400
AT_ONCE = 100
PODS = ("pod1-1", "pod1-2", "pod1-3", "pod2-1", "pod2-2", "pod2-3")
LARGEST = {2: 23.93, 3: 27.63, 7: 38.26}
"""Critical values of chi-square with n - 1 degrees of freedom, at a probability of 1e-6."""
SERVICES = {count: service(f"of-{count}", 84 + count, port(80)) for count in LARGEST}


@pytest.fixture(scope="module", autouse=True)
def objects(cluster: Cluster) -> Iterator[None]:
    """Add Services with two, three and seven endpoints; the seventh is a second port of the first pod."""
    backed = [
        *(SERVICES[2], *slices(SERVICES[2], *PODS[:1], *PODS[3:4])),
        # An endpoint in two slices counts as one endpoint.
        *(SERVICES[3], *slices(SERVICES[3], *PODS[:3]), *slices(SERVICES[3], PODS[0], suffix="b")),
        *(SERVICES[7], *slices(SERVICES[7], *PODS), *slices(SERVICES[7], PODS[0], to=SECOND_PORT, suffix="b")),
    ]
    with cluster.having(*backed):
        yield


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("count", LARGEST)
def test_connections_are_spread_evenly(cluster: Cluster, count: int, version: int) -> None:
    """The numbers of connections per endpoint differ only as much as chance explains."""
    probe = tcp(SERVICES[count]["spec"]["clusterIPs"][VERSIONS.index(version)], 80)

    batches = (cluster.lab.client_pod.probe(*[probe] * AT_ONCE) for _ in range(CONNECTIONS // AT_ONCE))
    met = Counter(str(outcome.reached) for outcome in chain.from_iterable(batches))

    expected = CONNECTIONS / count
    assert count == len(met)
    assert all(f":{PORT}" in endpoint or f":{SECOND_PORT}" in endpoint for endpoint in met)
    assert LARGEST[count] > sum((number - expected) ** 2 / expected for number in met.values()), met
