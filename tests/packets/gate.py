"""A gate in front of iptables-restore: it keeps count of what passes, and refuses what names something.

Law: what is let through is run by the real program, word by word. What only lists chains always is, and does not count. No Service that the API accepts makes the kernel
refuse its rules, so what such a refusal does to the others can only be seen behind a gate.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .modes import Mode
from .objects import cluster_ips

SYNC_PERIOD_FLAG = "--iptables-sync-period=1s"
"""So that what was refused is soon tried again."""
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
    """Programs that stand in for both families' restore programs of an iptables mode, for whoever has `env`."""

    def __init__(self, mode: Mode, directory: Path) -> None:
        """Write the programs into the directory; nothing is refused yet."""
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
        """How many times a program was run that writes."""
        return len(self._log.read_text().splitlines())

    def be_busy(self) -> None:
        """Let nothing pass from now on, as if somebody held the lock: it is no Service's fault."""
        self._busy.touch()

    def be_free(self) -> None:
        """End what `be_busy` began."""
        self._busy.unlink(missing_ok=True)

    def refuse(self, text: str) -> None:
        """Refuse from now on all input that holds this text."""
        self._refused.write_text(f"{text}\n")

    def refuse_cluster_ip(self, number: int) -> None:
        """Refuse what has the cluster IP of a number, in IPv4 only."""
        self.refuse(f"-d {cluster_ips(number)[0]}/32")

    def admit_all(self) -> None:
        """Refuse nothing any more."""
        self._refused.write_text("")
        self.be_free()
