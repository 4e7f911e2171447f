"""A gate in front of iptables-restore: it counts calls, and refuses input with certain texts.

Input that is let through goes to the real program unchanged. Input that only lists chains always passes, and is not
counted. No Service that the API accepts makes the kernel refuse its rules, so tests need a gate to see how a refusal
affects other Services.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .modes import Mode
from .objects import cluster_ips

SYNC_PERIOD_FLAG = "--iptables-sync-period=1s"
"""Short, so that a refused change is soon retried."""
_SCRIPT = """#!/bin/sh
input=$(mktemp)
trap 'rm -f "$input"' EXIT
cat > "$input"
if ! grep -q -v -e '^\\*' -e '^-S ' -e '^COMMIT$' "$input"; then
    {program} "$@" < "$input"
    exit
fi
echo "$0" >> {log}
if [ -e {busy} ]; then
    exit 4
fi
line=$(grep -n -F -f {refused} "$input" | head -n 1 | cut -d : -f 1)
if [ -n "$line" ]; then
    echo "$(basename "$0"): line $line failed" >&2
    exit 1
fi
{program} "$@" < "$input"
"""


class Gate:
    """Wrappers of the restore programs of both families; processes with the environment `env` use them."""

    def __init__(self, mode: Mode, directory: Path) -> None:
        """Write the wrapper programs to the directory; they refuse nothing yet."""
        self._log = directory / "passed"
        self._refused = directory / "refused"
        self._busy = directory / "busy"
        programs = directory / "programs"
        programs.mkdir(parents=True)
        for name in mode.restores:
            program = programs / name
            program.write_text(
                _SCRIPT.format(log=self._log, refused=self._refused, busy=self._busy, program=shutil.which(name))
            )
            program.chmod(0o755)
        self.env = {"PATH": f"{programs}:{os.environ['PATH']}"}
        self._log.touch()
        self.admit_all()

    @property
    def count(self) -> int:
        """The number of calls that write."""
        return len(self._log.read_text().splitlines())

    def be_busy(self) -> None:
        """Fail all calls from now on, as if another program held the xtables lock."""
        self._busy.touch()

    def be_free(self) -> None:
        """Undo `be_busy`."""
        self._busy.unlink(missing_ok=True)

    def refuse(self, text: str) -> None:
        """Refuse all input with this text from now on."""
        self._refused.write_text(f"{text}\n")

    def refuse_cluster_ip(self, number: int) -> None:
        """Refuse input with the cluster IP of a number, in IPv4 only."""
        self.refuse(f"-d {cluster_ips(number)[0]}/32")

    def admit_all(self) -> None:
        """Stop refusing input."""
        self._refused.write_text("")
        self.be_free()
