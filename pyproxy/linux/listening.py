"""The processes that listen on a TCP port of this network namespace, as far as this process may see them.

From proc(5): ``/proc/PID/net/tcp`` and ``tcp6`` have a line for each socket, with the port in hex after the last colon of
the second field, the state in the fourth, and the inode of the socket in the tenth. Inodes of sockets are unique on the
machine. A process that has the socket open has a link ``socket:[inode]`` in ``/proc/PID/fd``.

Reading these links of another process requires the right to trace it (ptrace(2), PTRACE_MODE_READ_FSCREDS). Root has it
with all capabilities, but not with the few that our systemd unit grants. Processes outside the PID namespace are invisible,
for example to a container without ``hostPID``.
"""

from contextlib import suppress
from glob import iglob
from pathlib import Path

_TABLES = ("/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6")
_LISTENS = "0A"  # TCP_LISTEN in ``net/tcp_states.h``


def listening_sockets(table: str, port: int) -> set[str]:
    """Return the inodes of the sockets that listen on a port, on any address, from the text of a table."""
    rows = (line.split() for line in table.splitlines()[1:])
    return {row[9] for row in rows if row[3] == _LISTENS and int(row[1].rpartition(":")[2], 16) == port}


def who_listens(port: int) -> list[str]:
    """Return name and command line of each process that listens on a port.

    The list is empty if any of the sockets belongs to a process that is not visible. On a node with many processes this can
    take a second.
    """
    found: dict[str, list[str]] = {}
    for table in _TABLES:
        with suppress(OSError):  # A kernel without IPv6 has only the first table.
            text = Path(table).read_text()
            found |= {f"socket:[{inode}]": [] for inode in listening_sockets(text, port)}
    for link in map(Path, iglob("/proc/[0-9]*/fd/*")):  # noqa: PTH207  # Path.glob fails if a process exits meanwhile
        with suppress(OSError):  # The process exited, or closed the file.
            if (socket := str(link.readlink())) in found:
                process = link.parents[1]
                words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found[socket].append(f"{(process / 'comm').read_text().strip()}: {words.strip()}")
    return [command for commands in found.values() for command in commands] if all(found.values()) else []
