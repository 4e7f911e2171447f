"""A status of an agent, for tests of how it is shown."""

from __future__ import annotations

from pyproxy.serve.agent_status import AgentStatus, DoctorStatus, NodeStatus, ServicePage


def status(node_name: str = "node-1") -> AgentStatus:
    """Return the status of an agent of which nothing but its node is known."""
    return AgentStatus(
        api_version="pyproxy.io/v1alpha1",
        kind="AgentStatus",
        time="2026-11-21T18:15:40Z",
        verdict="ok",
        problems=[],
        node=NodeStatus(node_name, ["172.18.0.11", "fd00:18::11"], ["10.244.1.0/24"], ["10.244.0.0/16"], "zone-a"),
        version="1.2.3",
        mode="iptables",
        variant="nft",
        started="2026-11-21T15:10:40Z",
        uptime_seconds=3 * 3600 + 5 * 60,
        families=[],
        earlier_rules=None,
        watches=[],
        invalid_count=0,
        invalid=[],
        doctor=DoctorStatus(None, None, "", 0, []),
        changes=[],
        services=ServicePage("", 0, 0, 1, 1, [], ""),
    )
