"""Tells the supervisor how we are: the datagrams of sd_notify(3). Without a supervisor it does nothing."""

import math
import os
import socket


def notify(state: str) -> None:
    """Send a state such as ``READY=1`` to the socket that $NOTIFY_SOCKET names, if any."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as supervisor:
        supervisor.connect(address)
        supervisor.sendall(state.encode())


def watchdog_seconds() -> float:
    """Return after how long without ``WATCHDOG=1`` the supervisor ends this process; infinite where it does not watch."""
    # Set for the process that was started, and inherited by whatever that starts.
    watched = os.environ.get("WATCHDOG_PID", "") in {"", str(os.getpid())}
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if watched and microseconds.isdecimal() and int(microseconds) else math.inf
