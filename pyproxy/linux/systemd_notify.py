"""Status messages to systemd: the datagrams of sd_notify(3). Without systemd nothing is sent."""

import math
import os
import socket


def notify(state: str) -> None:
    """Send a state such as ``READY=1`` to the socket that $NOTIFY_SOCKET names, if any."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    # A leading "@" means an abstract socket, whose address begins with a zero byte (unix(7)).
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as supervisor:
        supervisor.connect(address)
        supervisor.sendall(state.encode())


def watchdog_seconds() -> float:
    """Return after how long without ``WATCHDOG=1`` systemd kills this process; infinity if it does not watch it."""
    # Child processes inherit the variables; WATCHDOG_PID says which process they are meant for.
    watched = os.environ.get("WATCHDOG_PID", "") in {"", str(os.getpid())}
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if watched and microseconds.isdecimal() and int(microseconds) else math.inf
