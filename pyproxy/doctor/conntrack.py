"""Checks of connection tracking: size of the table, and entries and packets that it loses."""

import asyncio
from collections import Counter
from pathlib import Path

from pyproxy.doctor.finding import Finding, NotCheckedError, fail, info, warn
from pyproxy.doctor.inputs import Inputs
from pyproxy.linux.sysctl import read_sysctl

# nf_conntrack_max counts entries. When it is reached, the kernel first drops half-open connections early (`early_drop`), and then
# first packets.
WARN_SHARE, FAIL_SHARE = 0.75, 0.95
"""Shares of the table that are in use."""
# Of this thread: /proc/net would be that of the main thread, which may be in another network namespace.
_STATISTICS = Path("/proc/thread-self/net/stat/nf_conntrack")
_SAMPLE_SECONDS = 1.0
_LOSSES = {
    "drop": (
        "packets are dropped because the connection tracking table is full",
        "raise --conntrack-min, or find the clients that open so many connections",
    ),
    # Two packets of a new UDP flow, such as the A and AAAA queries of one socket, each make an entry; the second cannot be added.
    "insert_failed": (
        "first packets are dropped because another packet created the same entry",
        "for DNS, a cache on each node, or options single-request-reopen in resolv.conf",
    ),
}


async def check_usage(_: Inputs) -> list[Finding]:
    """A full table drops the first packet of each new connection."""
    count, most = (read_sysctl(f"net/netfilter/nf_conntrack_{name}") for name in ("count", "max"))
    if count is None or most is None:
        message = "the kernel has no connection tracking, or /proc/sys/net/netfilter cannot be read"
        raise NotCheckedError(message)
    if not most or count < WARN_SHARE * most:
        return []
    severity = fail if count >= FAIL_SHARE * most else warn
    return [
        severity(
            f"conntrack {100 * count // most} % of {most}",
            "/proc/sys/net/netfilter/nf_conntrack_count",
            f"--conntrack-min={2 * most}",
        )
    ]


async def check_losses(_: Inputs) -> list[Finding]:
    """Compare the counters with those a second later."""
    before = _statistics()
    await asyncio.sleep(_SAMPLE_SECONDS)
    be_liberal = read_sysctl("net/netfilter/nf_conntrack_tcp_be_liberal") == 1
    return losses(before, _statistics(), be_liberal=be_liberal)


def losses(before: Counter[str], now: Counter[str], *, be_liberal: bool) -> list[Finding]:
    """Return a warning for each counter that grows, and information for one that grew since the kernel started."""
    found = []
    for name, (text, fix) in _LOSSES.items():
        evidence = f"{_STATISTICS}: {name} {now[name]}"
        if (grown := now[name] - before[name]) > 0:
            found.append(warn(f"{text}: {round(grown * 60 / _SAMPLE_SECONDS)} a minute", evidence, fix))
        elif now[name]:
            found.append(info(f"{text}: {now[name]} since the start of the kernel, none now", evidence, fix))
    grown = now["invalid"] - before["invalid"]
    if grown > 0 and not be_liberal:
        found.append(
            warn(
                f"{round(grown * 60 / _SAMPLE_SECONDS)} packets a minute are in conntrack state INVALID",
                f"{_STATISTICS}: invalid {now['invalid']}",
                "if connections hang or are reset: --conntrack-tcp-be-liberal",
            )
        )
    return found


def _statistics() -> Counter[str]:
    # A line of names, and a line of hex numbers for each CPU (`net/netfilter/nf_conntrack_standalone.c`).
    try:
        names, *lines = (line.split() for line in _STATISTICS.read_text().splitlines())
    except FileNotFoundError:
        message = "the kernel has no statistics of connection tracking (CONFIG_NF_CONNTRACK_PROCFS)"
        raise NotCheckedError(message) from None
    total: Counter[str] = Counter()
    for line in lines:
        total.update({name: int(value, 16) for name, value in zip(names, line, strict=False)})
    return total
