"""The program ``pyproxy``: a group of commands, each in a module of its own that is imported when the command is called.

Under the name ``kube-proxy`` the program is its ``run`` command, which takes kube-proxy's whole command line. Results go
to standard output, errors and logs to standard error.
"""

import sys
from importlib import import_module
from pathlib import Path

import click

from pyproxy import __version__
from pyproxy.cli.flags import EXIT_CODES, SETTINGS, VERSION_LINE

COMMANDS = {
    "check-config": "pyproxy.cli.check_config",
    "cleanup": "pyproxy.cli.cleanup",
    "doctor": "pyproxy.cli.doctor",
    "completion": "pyproxy.cli.completion",
    "drift": "pyproxy.cli.drift",
    "dump-rules": "pyproxy.cli.dump_rules",
    "explain": "pyproxy.cli.explain",
    "plan": "pyproxy.cli.plan",
    "run": "pyproxy.cli.run",
    "services": "pyproxy.cli.services",
    "support": "pyproxy.cli.support",
    "takeover": "pyproxy.cli.takeover",
    "version": "pyproxy.cli.version",
}
"""Command to the module whose ``command`` it is."""


def load_command(name: str) -> click.Command:
    """Import the module of a command and return the command."""
    command: click.Command = import_module(COMMANDS[name]).command
    return command


class CommandGroup(click.Group):
    """Imports a command when it is needed: an agent must not carry what only ``dump-rules`` uses."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        """Return the names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 (click's signature)
        """Return a command, or None if there is no command of this name."""
        return load_command(cmd_name) if cmd_name in COMMANDS else None


@click.group(cls=CommandGroup, context_settings=SETTINGS, epilog=EXIT_CODES)
@click.version_option(__version__, "-V", "--version", message=VERSION_LINE)
def pyproxy() -> None:
    """Send the traffic of Kubernetes Services to their endpoints, in place of kube-proxy."""


def main() -> None:
    """Run the command that the program's name and arguments select, and exit with its code."""
    # A link named kube-proxy replaces the program in a unit or manifest whose arguments stay as they are.
    if Path(sys.argv[0]).name == "kube-proxy":
        load_command("run")(prog_name="kube-proxy")
    # click would take the name from sys.argv; help and errors have the same name with a script, a zip file and python -m.
    pyproxy(prog_name="pyproxy")
