"""Kernel settings in /proc/sys.

A setting that cannot be written is a warning, not an error: Services work without it, and in many containers /proc/sys is
read-only.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

_SYS = Path("/proc/sys")
_HASH_SIZE = Path("/sys/module/nf_conntrack/parameters/hashsize")
# Connections per bucket of the hash table, the ratio that kube-proxy sets.
_ENTRIES_PER_BUCKET = 4
# Upper limit of `max_per_core` times the number of CPUs, as in kube-proxy.
_MOST_BY_CORES = 1 << 20


def read_sysctl(name: str) -> int | None:
    """Return a setting such as ``net/ipv4/ip_forward``, or None if it cannot be read."""
    return _read(_SYS / name)


def write_sysctl(name: str, value: int) -> bool:
    """Write a setting unless it already has the value; return whether it has the value now."""
    return _write(_SYS / name, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConntrackLimits:
    """Settings of connection tracking; 0 keeps the kernel's value."""

    max_per_core: int
    min: int
    tcp_timeout_established_seconds: float
    tcp_timeout_close_wait_seconds: float
    tcp_be_liberal: bool
    udp_timeout_seconds: float
    udp_timeout_stream_seconds: float


def apply_conntrack_limits(limits: ConntrackLimits) -> bool:
    """Write what kube-proxy writes at start (`pkg/proxy/conntrack/sysctls.go` in 1.37); the table is never made smaller.

    Returns whether all settings could be written.
    """
    written = []
    if limits.max_per_core:
        per_cores = min(limits.max_per_core * (os.cpu_count() or 1), _MOST_BY_CORES)
        written.append(_raise_table_size(max(limits.min, per_cores)))
    values = {
        "tcp_timeout_established": limits.tcp_timeout_established_seconds,
        "tcp_timeout_close_wait": limits.tcp_timeout_close_wait_seconds,
        "tcp_be_liberal": int(limits.tcp_be_liberal),
        "udp_timeout": limits.udp_timeout_seconds,
        "udp_timeout_stream": limits.udp_timeout_stream_seconds,
    }
    for name, value in values.items():
        if value:
            # The kernel takes whole seconds, and with 0 it would drop each connection at once.
            written.append(write_sysctl(f"net/netfilter/nf_conntrack_{name}", max(1, int(value))))
    return all(written)


def _raise_table_size(wanted: int) -> bool:
    present = read_sysctl("net/netfilter/nf_conntrack_max")
    if present is not None and present >= wanted:
        return True
    # The hash table belongs to the whole machine. Where the limit is read-only (a container, another network namespace),
    # the hash table is not changed either.
    if not write_sysctl("net/netfilter/nf_conntrack_max", wanted):
        return False
    buckets = _read(_HASH_SIZE)
    if buckets is not None and buckets < wanted // _ENTRIES_PER_BUCKET:
        return _write(_HASH_SIZE, wanted // _ENTRIES_PER_BUCKET)
    return True


def _read(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _write(path: Path, value: int) -> bool:
    if _read(path) == value:
        return True
    try:
        path.write_text(str(value))
    except OSError as error:
        logger.warning("%s: cannot be set to %d: %s", path, value, error.strerror)
        return False
    logger.info("%s: set to %d", path, value)
    return True
