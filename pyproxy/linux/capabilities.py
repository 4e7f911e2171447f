"""What this process may do to the kernel (capabilities(7)), asked before it is tried."""

from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path

from pyproxy.errors import RightsError

_STATUS = Path("/proc/self/status")


class Capability(IntEnum):
    """Bits of a capability set (``linux/capability.h``)."""

    NET_ADMIN = 12
    """Needed to read and write rules, sets, virtual servers and routes."""
    NET_RAW = 13
    """Needed by the legacy variant of iptables, which talks to the kernel through a raw socket."""


def require_capabilities(command: str, wanted: Iterable[Capability] = (Capability.NET_ADMIN,)) -> None:
    """Return if this process has some capabilities.

    In a user namespace it may have them and still lack them for the network namespace: then the kernel refuses later.

    Raises:
        RightsError: it lacks one; the message names all that it lacks.
    """
    effective = _effective_set()
    missing = [f"CAP_{capability.name}" for capability in wanted if not effective >> capability & 1]
    if missing:
        message = f"{command} needs {' and '.join(missing)}, which this process does not have: run it as root"
        raise RightsError(message)


def _effective_set() -> int:
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return int(value, 16)
    return 0
