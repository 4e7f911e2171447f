"""System calls of an agent and its programs that fail with an errno of the kernel, injected by strace.

The system call is not made. For `iptables-restore` and `nft` it is the one that writes; for the agent itself, which writes
the elements of the nftables mode, it is the one that sends to, or receives from, its netfilter sockets.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.lab.waiting import wait_until

_WRITES = {"nft": "sendmsg", "iptables-legacy-restore": "setsockopt", "ip6tables-legacy-restore": "setsockopt"}
_WRITES |= {"iptables-nft-restore": "sendmsg", "ip6tables-nft-restore": "sendmsg"}
_SCRIPT = """#!/bin/sh
errno=$(cat {errno} 2>/dev/null)  # read once: the test may delete the file at any moment
if [ -n "$errno" ]; then
    exec strace -qq -o {log} -e trace={call} -e inject={call}:error="$errno" {program} "$@"
fi
exec {program} "$@"
"""
_NETLINK_NETFILTER = 12


class KernelErrors:
    """Wrappers of the programs that write; processes with the environment `env` use them."""

    def __init__(self, directory: Path) -> None:
        """Write the wrappers to a directory; nothing fails yet."""
        self._errno = directory / "errno"
        self._log = directory / "strace"
        programs = directory / "programs"
        programs.mkdir(parents=True)
        for name, call in _WRITES.items():
            program = programs / name
            program.write_text(
                _SCRIPT.format(errno=self._errno, log=f"{self._log}.$$", call=call, program=shutil.which(name))
            )
            program.chmod(0o755)
        self.env = {"PATH": f"{programs}:{os.environ['PATH']}"}

    @property
    def count(self) -> int:
        """The number of system calls that have failed."""
        return sum(path.read_text().count("(INJECTED)") for path in self._log.parent.glob(f"{self._log.name}.*"))

    @contextmanager
    def failing(self, errno: str, pid: int, call: str = "sendto") -> Iterator[None]:
        """Let writes of the programs fail, and a system call of the process on its netfilter sockets, if it has any."""
        if call == "sendto":
            self._errno.write_text(errno)
        sockets = [word for inode in _netfilter_sockets(pid) for word in ("-P", f"socket:[{inode}]")]
        injection = ("-e", f"trace={call}", "-e", f"inject={call}:error={errno}", "-o", f"{self._log}.agent")
        with ExitStack() as stack:
            if sockets:
                strace = stack.enter_context(
                    subprocess.Popen(["strace", "-f", "-qq", "-p", str(pid), *sockets, *injection])
                )
                stack.callback(strace.terminate)
                wait_until(lambda: _is_traced(pid), "strace to attach")
            yield
        self._errno.unlink(missing_ok=True)


def _is_traced(pid: int) -> bool:
    status = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
    return all("TracerPid:\t0\n" not in text for text in status)


def _netfilter_sockets(pid: int) -> list[str]:
    """Return the inodes of the netfilter sockets of a process."""
    rows = (line.split() for line in Path(f"/proc/{pid}/net/netlink").read_text().splitlines()[1:])
    inodes = {row[9] for row in rows if int(row[1]) == _NETLINK_NETFILTER}
    links = {str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()}
    return [inode for inode in inodes if f"socket:[{inode}]" in links]
