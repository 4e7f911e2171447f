"""The output of `ipvsadm` on a host, as values."""

import re
from typing import NamedTuple

from tests.lab import Host
from tests.packets.modes import IPVS as IPVS  # noqa: PLC0414  # re-exported for the tests in this folder


class RealServer(NamedTuple):
    """One real server."""

    weight: int
    active: int
    inactive: int


def virtual_servers(host: Host) -> dict[str, dict[str, RealServer]]:
    """Return the real servers of each virtual server, by names such as ``TCP 10.96.0.10:80``."""
    found: dict[str, dict[str, RealServer]] = {}
    reals: dict[str, RealServer] = {}
    for line in host.run("ipvsadm", "-Ln").splitlines()[3:]:
        words = line.split()
        if words[0] == "->":
            reals[words[1]] = RealServer(*map(int, words[3:6]))
        else:
            reals = found.setdefault(" ".join(words[:2]), {})
    return found


def weights(host: Host, virtual: str) -> dict[str, int]:
    """Return the weight of each real server of one virtual server; empty if it does not exist."""
    return {name: real.weight for name, real in virtual_servers(host).get(virtual, {}).items()}


def connections(host: Host) -> dict[str, int]:
    """Return the connection count of each virtual server since it was created."""
    listing = host.run("ipvsadm", "-Ln", "--stats")
    return {
        f"{kind} {at}": int(count) for kind, at, count in re.findall(r"^(\w+) +(\S+) +(\d+)", listing, re.MULTILINE)
    }
