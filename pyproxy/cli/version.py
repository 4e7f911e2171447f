"""The command ``version``."""

import platform
from typing import Literal

import click
from msgspec import Struct

from pyproxy import __version__
from pyproxy.cli.flags import EXIT_CODES, SETTINGS, VERSION_LINE, Flag, FlagCommand
from pyproxy.cli.output import API_VERSION, OutputFormat, print_document
from pyproxy.config.grammar import one_of


class VersionDocument(Struct, rename="camel", forbid_unknown_fields=True):
    """The document that ``pyproxy version -o json`` prints."""

    api_version: Literal["pyproxy.io/v1alpha1"]
    kind: Literal["Version"]
    version: str
    python: str
    kernel: str
    machine: str


@click.command(
    "version",
    cls=FlagCommand,
    params=[Flag(["-o", "--output"], one_of(OutputFormat), "Output format.  [default: text]")],
    context_settings=SETTINGS,
    epilog=EXIT_CODES,
)
def command(*, output: OutputFormat | None) -> None:
    """Print the version; with -o json or yaml also those of Python and the kernel."""
    if output not in {OutputFormat.JSON, OutputFormat.YAML}:
        click.echo(VERSION_LINE)
        return
    # What a bug report needs: most faults depend on the kernel, some on Python.
    system = platform.uname()
    found = VersionDocument(
        API_VERSION, "Version", __version__, platform.python_version(), system.release, system.machine
    )
    print_document(found, output)
