"""A flood of new UDP connections within one network namespace: each is one packet, and each must be answered.

    python -m tests.packets.flood serve PORT
    python -m tests.packets.flood send VERSION IP PORT

Both are separate processes, so that neither waits for the test. The sender uses a new source address for each
question, and limits the number of open questions, so that no buffer can overflow: a question without an answer was
lost in the rules. After a time without any answer it repeats the open questions from the same addresses. For each
line on standard input it prints a report; after the end of the input it sends nothing new, and prints a last report.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_address
from pathlib import Path

from tests.lab.datagram import answer, open_server, queue_icmp_errors, receive

CLIENTS = ("10.9.0.0/16", "fd00:9::/112")
"""Source addresses, each used once; they and the endpoints' addresses must be local to the namespace."""
_PORT = 5000
_UNDER_WAY = 64
_PATIENCE_SECONDS = 3.0
"""Enough for an answer, even on a busy machine."""
_START_SECONDS = 20.0
_MOST_CLIENTS = 0xFFF0
_IP_PKTINFO, _IPV6_FREEBIND = 8, 78
_NUMBER = struct.Struct("=I")
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a flood."""

    sent: int
    """Connections."""
    repeated: int
    """Connections whose first packet got no answer."""
    lost: int
    """Connections without an answer so far; in the last report, connections that were never answered."""
    refused: int
    """ICMP errors."""
    servers: dict[str, int]
    """The number of answers by endpoint."""


class Flood:
    """A handle of a running flood."""

    def __init__(self, version: int, ip: str, port: int) -> None:
        self._process = _start("send", str(version), ip, str(port))

    def report(self) -> Report:
        """Return a report while the flood continues."""
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._read()

    def stop(self) -> Report:
        """Wait until every question is answered, and return the last report."""
        assert self._process.stdin
        self._process.stdin.close()
        try:
            return self._read()
        finally:
            self.close()

    def close(self) -> None:
        """Stop the sender."""
        _end(self._process)

    def _read(self) -> Report:
        assert self._process.stdout
        return Report(**json.loads(self._process.stdout.readline()))


@contextmanager
def flooding(version: int, ip: str, port: int, server_port: int) -> Iterator[Flood]:
    """Run a server and a flood in this namespace; entered after the first answer."""
    server = _start("serve", str(server_port))
    assert server.stdout
    server.stdout.readline()
    flood = Flood(version, ip, port)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not flood.report().servers:
            assert time.monotonic() < deadline, "no server answers"
        yield flood
    finally:
        flood.close()
        _end(server)


def _start(*arguments: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "tests.packets.flood", *arguments]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT)


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            with suppress(BrokenPipeError):
                pipe.close()


# -- the programs


def serve(port: int) -> None:
    """Answer every datagram with its content and the address that it was sent to."""
    servers = [open_server(family, socket.SOCK_DGRAM, 0, port) for family in (socket.AF_INET, socket.AF_INET6)]
    servers[1].setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
    print(flush=True)
    while True:
        for server in select.select(servers, [], [])[0]:
            with suppress(BlockingIOError):
                while True:
                    question = receive(server)
                    answer(server, question, question.payload + str(question.local.ip).encode())


@dataclass(slots=True)
class Sender:
    """The state of the sending program."""

    to: tuple[str, int]
    sock: socket.socket
    sent: int = 0
    refused: int = 0
    under_way: dict[int, None] = field(default_factory=dict)
    repeated: set[int] = field(default_factory=set)
    servers: Counter[str] = field(default_factory=Counter)
    heard_at: float = field(default_factory=time.monotonic)

    def run(self) -> None:
        """Send until the end of standard input, then print the last report."""
        while True:
            self._send_new()
            for ready in select.select([self.sock, sys.stdin], [], [], _PATIENCE_SECONDS)[0]:
                if ready is self.sock:
                    self._receive()
                elif sys.stdin.readline():
                    self._report()
                else:
                    self._wait_for_answers()
                    self._report()
                    return
            self._ask_again()

    def _send_new(self) -> None:
        while len(self.under_way) < _UNDER_WAY and self.sent < _MOST_CLIENTS:
            self.sent += 1
            self.under_way[self.sent] = None
            self._send(self.sent)

    def _send(self, number: int) -> None:
        network, _, _ = CLIENTS[self.sock.family == socket.AF_INET6].partition("/")
        source = ip_address(network) + number
        if isinstance(source, IPv4Address):
            control = (socket.IPPROTO_IP, _IP_PKTINFO, struct.pack("@i4s4s", 0, source.packed, bytes(4)))
        else:
            control = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, struct.pack("@16si", source.packed, 0))
        try:
            self.sock.sendmsg([_NUMBER.pack(number)], [control], 0, self.to)
        except PermissionError:
            pass  # dropped by a rule: there will be no answer
        except OSError:
            # An ICMP error of an earlier packet; the kernel reports it instead of sending.
            self.refused += 1
            with suppress(OSError):
                self.sock.sendmsg([_NUMBER.pack(number)], [control], 0, self.to)

    def _receive(self) -> None:
        while True:
            try:
                data = self.sock.recv(100)
            except BlockingIOError:
                return
            except OSError:
                # An ICMP error; the kernel reports it here or when sending.
                self.refused += 1
                continue
            [number] = _NUMBER.unpack_from(data)
            self.heard_at = time.monotonic()
            if number in self.under_way:
                del self.under_way[number]
                self.servers[data[_NUMBER.size :].decode()] += 1

    def _ask_again(self) -> None:
        """Repeat the open questions after a time without any answer."""
        if time.monotonic() - self.heard_at < _PATIENCE_SECONDS:
            return
        for number in self.under_way:
            self._send(number)
            self.repeated.add(number)
        self.heard_at = time.monotonic()

    def _wait_for_answers(self) -> None:
        deadline = time.monotonic() + 2 * _PATIENCE_SECONDS
        while self.under_way and time.monotonic() < deadline:
            if select.select([self.sock], [], [], _PATIENCE_SECONDS)[0]:
                self._receive()
            self._ask_again()

    def _report(self) -> None:
        report = {
            "sent": self.sent,
            "repeated": len(self.repeated),
            "lost": len(self.under_way),
            "refused": self.refused,
            "servers": dict(self.servers),
        }
        print(json.dumps(report), flush=True)


def send(version: int, ip: str, port: int) -> None:
    """Send the flood."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        queue_icmp_errors(sock)
        if version == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        sock.bind(("", _PORT))
        Sender((ip, port), sock).run()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        send(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
