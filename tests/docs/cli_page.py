"""Generates docs/cli.md from the help of the program: ``python tests/docs/cli_page.py``; ``--check`` only compares."""

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from pyproxy.cli.program import COMMANDS, load_command, pyproxy

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
WIDTH = 98
"""The width of the help text on a terminal of 100 columns."""

HEAD = """\
# Command line

This page is the output of `--help`, written by `python tests/docs/cli_page.py`; do not edit it.

- Flags are read as kube-proxy reads them: `--flag=value` or `--flag value`, `-v 4`, `-v=4` or `-v4`, `_` for `-` in a
  name. A switch is `--flag` or `--flag=false`, never `--flag false`. A list has commas, or the flag several times;
  `--cluster-cidr` has commas only. Of any other flag the last one counts.
- A flag of kube-proxy that changes nothing is read, checked, and answered with one warning.
- Called under the name `kube-proxy`, for example by a symbolic link, the program is `pyproxy run`.
- `-o json` and `-o yaml` print documents with `apiVersion` and `kind`. Their schemas are in `docs/schemas`.
- What a person reads goes to standard output; errors and logs go to standard error.
"""


def commands() -> Iterator[tuple[str, click.Command]]:
    """Return each command with its command line."""
    yield "pyproxy", pyproxy
    for name in sorted(COMMANDS):
        yield f"pyproxy {name}", load_command(name)


def page() -> str:
    """Return the generated page."""
    return "\n".join([HEAD, *(section(words, command) for words, command in commands())])


def section(words: str, command: click.Command) -> str:
    """Return the section of a command."""
    # A child's Context has to inherit the settings of its parent, or -h would be missing from the help.
    context = click.Context(command, info_name=words, terminal_width=WIDTH, help_option_names=["-h", "--help"])
    return f"## `{words}`\n\n```text\n{command.get_help(context)}\n```\n"


def main() -> int:
    """Write the page, or report that it is stale."""
    if "--check" not in sys.argv:
        PAGE.write_text(page())
        return 0
    if PAGE.read_text() == page():
        return 0
    sys.stderr.write("docs/cli.md is stale; run: python tests/docs/cli_page.py\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
