"""Who listens on a TCP port of this network namespace, as far as this process may know.

Facts of proc(5): ``/proc/PID/net/tcp`` and ``tcp6`` have a line for each socket, with the port in hex behind the last
colon of the second field, the state in the fourth, and in the tenth the inode, a number that no other socket of the
machine has. Who has a socket open has a link ``socket:[inode]`` in ``/proc/PID/fd``.

Who reads these links of another process needs the right to trace it (ptrace(2), PTRACE_MODE_READ_FSCREDS), which root has
with all capabilities, and not with few, as under our systemd unit. Processes outside the PID namespace are not seen at
all, as from a container without ``hostPID``.
"""

from contextlib import suppress
from glob import iglob
from pathlib import Path

_TABLES = ("/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6")
_LISTENS = "0A"
"""TCP_LISTEN in ``net/tcp_states.h``."""


def listening_sockets(table: str, port: int) -> set[str]:
    """Return the inodes of the sockets that listen on a port, on whichever address, from the text of a table."""
    rows = (line.split() for line in table.splitlines()[1:])
    return {row[9] for row in rows if row[3] == _LISTENS and int(row[1].rpartition(":")[2], 16) == port}


def who_listens(port: int) -> list[str]:
    """Return name and command line of each process that listens on a port.

    None at all where a socket is of somebody who cannot be seen. May take a second where processes are many.
    """
    inodes = (inode for name in _TABLES for inode in listening_sockets(_text(name), port))
    found: dict[str, list[str]] = {f"socket:[{inode}]": [] for inode in inodes}
    for link in map(Path, iglob("/proc/[0-9]*/fd/*")):  # noqa: PTH207  # Path.glob fails if a process ends meanwhile
        with suppress(OSError):  # as that one, or it was closed
            if (socket := str(link.readlink())) in found:
                found[socket].append(_command(link.parents[1]))
    return [command for commands in found.values() for command in commands] if all(found.values()) else []


def _text(name: str) -> str:
    try:
        return Path(name).read_text()
    except OSError:
        return ""  # a kernel without IPv6 has only one of the two


def _command(process: Path) -> str:
    words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return f"{(process / 'comm').read_text().strip()}: {words.strip()}"
