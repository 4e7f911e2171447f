"""The command ``takeover --dry-run``: a deprecated name of ``plan``. Writes nothing."""

import asyncio

import click

from pyproxy.cli.flags import EXIT_CODES, SETTINGS, Flag, FlagCommand, config_flags, configured_settings
from pyproxy.cli.output import OutputFormat
from pyproxy.cli.plan import print_plan
from pyproxy.cli.plan_live import plan_of_kernel
from pyproxy.config.config import OPTIONS
from pyproxy.config.grammar import SWITCH
from pyproxy.errors import ConfigError
from pyproxy.linux.capabilities import require_capabilities


@click.command(
    "takeover",
    cls=FlagCommand,
    params=[
        Flag(
            ["--dry-run"], SWITCH, "Print the changes and write nothing. Required: the takeover itself happens in run."
        ),
        *config_flags(OPTIONS, hidden=True),
    ],
    context_settings=SETTINGS,
    epilog=EXIT_CODES,
)
@click.pass_context
def command(ctx: click.Context, /, *, dry_run: bool | None, **_: object) -> None:
    """Deprecated: use plan. Show what run would change in the kernel of this node.

    Takes all flags of run. Prints the same as plan, but the exit code is 0 even if something changes.
    """
    if not dry_run:
        message = "give --dry-run: the takeover itself happens in run, once kube-proxy is gone"
        raise click.UsageError(message, ctx)
    config = configured_settings(ctx).config
    # Side-by-side kube-proxy keeps its rules and its Services, so there is nothing to take over.
    if config.service_proxy_name:
        message = (
            "--service-proxy-name: pyproxy takes nothing over when it runs side-by-side with kube-proxy; for its rules"
            " use `pyproxy plan`"
        )
        raise ConfigError(message)
    require_capabilities("takeover --dry-run")
    click.echo("takeover --dry-run is deprecated, use `pyproxy plan`", err=True)
    print_plan(asyncio.run(plan_of_kernel(config)), OutputFormat.TEXT)
