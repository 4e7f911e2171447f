"""The capabilities of this process (capabilities(7)), checked before a command needs them.

``/proc/self/status`` has the effective set as a hexadecimal number in the line ``CapEff``.
"""

from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path

from pyproxy.errors import RightsError

_STATUS = Path("/proc/self/status")


class Capability(IntEnum):
    """`CAP_*` in `linux/capability.h`: bits of a capability set."""

    NET_ADMIN = 12
    """Required to read and write rules, sets, virtual servers and routes."""
    NET_RAW = 13
    """Required by the legacy variant of iptables, which uses a raw socket."""


def require_capabilities(command: str, wanted: Iterable[Capability] = (Capability.NET_ADMIN,)) -> None:
    """Check that this process has these capabilities.

    In a user namespace a process can have them and still lack them for the network namespace; then the kernel refuses later.

    Raises:
        RightsError: a capability is missing; the message names all missing ones.
    """
    lines = (line.partition(":") for line in _STATUS.read_text().splitlines())
    effective = next((int(value, 16) for name, _, value in lines if name == "CapEff"), 0)
    missing = [f"CAP_{capability.name}" for capability in wanted if not effective >> capability & 1]
    if missing:
        message = f"{command} needs {' and '.join(missing)}, which this process does not have: run it as root"
        raise RightsError(message)
