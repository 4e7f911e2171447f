"""The command ``version``."""

import click

from pyproxy.cli.flags import SETTINGS, VERSION_LINE


@click.command("version", context_settings=SETTINGS)
def command() -> None:
    """Print the version."""
    click.echo(VERSION_LINE)
