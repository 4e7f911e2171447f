#!/usr/bin/env python3
"""Writes the manual pages from the help of the commands: ``man_pages.py DIRECTORY``; one page for each command.

The date of the pages is that of SOURCE_DATE_EPOCH, so that two builds give the same files.
"""

import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

from pyproxy import __version__
from pyproxy.cli.program import COMMANDS, load_command, pyproxy

_EXIT_CODES = "Exit codes: "
_FILES = """\
.SH FILES
.TP
.I /etc/default/pyproxy
The flags of the systemd service, in the variable PYPROXY_FLAGS.
.TP
.I /run/pyproxy/control.sock
The control socket, on which the agent answers other commands of root.
.TP
.I /run/xtables.lock
The lock that pyproxy shares with iptables.
"""


class RoffFormatter(click.HelpFormatter):
    """Writes what click shows as help in the man macros of roff."""

    def __init__(self) -> None:
        super().__init__(width=1000)  # click cuts the descriptions of commands at this width
        self._has_options = False

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:  # noqa: ARG002 (click's)
        """Write the synopsis."""
        self.write(f".SH SYNOPSIS\n.B {escaped(prog)}\n{escaped(args)}\n.SH DESCRIPTION\n")

    def write_heading(self, heading: str) -> None:
        """Write the heading of a list; those after the options are subsections of them."""
        is_subsection = self._has_options and heading != "Commands"
        self.write(f'.SS "{escaped(heading)}"\n' if is_subsection else f'.SH "{heading.upper()}"\n')
        self._has_options = self._has_options or heading == "Options"

    def write_paragraph(self) -> None:
        """Write nothing: sections separate themselves."""

    def write_text(self, text: str) -> None:
        """Write paragraphs; the exit codes become a section."""
        for paragraph in text.split("\n\n"):
            if paragraph.startswith(_EXIT_CODES):
                self.write(f'.SH "EXIT STATUS"\n{escaped(paragraph.removeprefix(_EXIT_CODES))}\n')
            else:
                self.write(f".PP\n{escaped(paragraph)}\n")

    def write_dl(self, rows: Sequence[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:  # noqa: ARG002 (click's)
        """Write a list of flags or commands."""
        for name, text in rows:
            self.write(f".TP\n.B {escaped(name)}\n{escaped(text)}\n")


def escaped(text: str) -> str:
    """Return text for roff: on one line, with hyphens that can be copied, and never a request."""
    line = " ".join(text.split()).replace("\\", r"\e").replace("-", r"\-")
    return re.sub(r"^(?=[.'])", r"\\&", line)


def man_page(words: str, command: click.Command, date: str) -> str:
    """Return the manual page of a command."""
    context = click.Context(command, info_name=words, help_option_names=["-h", "--help"])
    formatter = RoffFormatter()
    name = words.replace(" ", "-")
    about = command.get_short_help_str(limit=200).rstrip(".")
    formatter.write(f'.TH {escaped(name.upper())} 1 {date} "pyproxy {__version__}"\n')
    formatter.write(f".SH NAME\n{escaped(name)} \\- {escaped(about)}\n")
    command.format_usage(context, formatter)
    command.format_help_text(context, formatter)
    command.format_options(context, formatter)
    if words == "pyproxy":
        formatter.write(_FILES)
    command.format_epilog(context, formatter)
    others = [f"pyproxy-{other}" for other in COMMANDS] if words == "pyproxy" else ["pyproxy"]
    pages = ",\n".join(f".BR {escaped(other)} (1)" for other in others).replace("(1),", "(1) ,")
    formatter.write(f'.SH "SEE ALSO"\n{pages}\n')
    # A paragraph directly below a heading is an error.
    return re.sub(r"(?m)^(\.SH .*\n)\.PP\n", r"\1", formatter.getvalue())


def write_pages(directory: Path, date: str) -> None:
    """Write the pages of all commands."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "pyproxy.1").write_text(man_page("pyproxy", pyproxy, date))
    for name in COMMANDS:
        (directory / f"pyproxy-{name}.1").write_text(man_page(f"pyproxy {name}", load_command(name), date))


if __name__ == "__main__":
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    write_pages(Path(sys.argv[1]), time.strftime("%Y-%m-%d", time.gmtime(seconds)))
