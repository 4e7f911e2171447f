"""Tells the supervisor how we are: the datagrams of sd_notify(3). Without a supervisor it does nothing."""

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
