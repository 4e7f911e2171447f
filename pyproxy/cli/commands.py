"""The command line: words to a Config, and one call for each command. Nothing is decided here.

click has the commands, the help and the errors. The words of a command are first put in order by `flags`, because
pflag's rules are not click's; click then sees ``--flag=value`` only. Flags are made from Config's fields.
Under the name ``kube-proxy`` the program is its ``run`` command, which takes kube-proxy's whole command line.

What a person reads goes to standard output, errors and logs to standard error. Modules that do the work are
imported by the command that needs them: ``dump-rules`` must not pay for an API client.
"""

import logging
import re
import sys
from enum import Enum
from pathlib import Path

import click

from pyproxy import __version__
from pyproxy.cli.flags import Flag, FlagCommand, config_flags, typed_values
from pyproxy.config.config import NODE_NAME, OPTIONS, Config
from pyproxy.config.grammar import SWITCH, Grammar, one_of, parse_bool
from pyproxy.config.settings import ResolvedSettings, resolve_settings
from pyproxy.logs import set_up_logging

logger = logging.getLogger(__name__)

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
DURATIONS = "DURATION is a number with a unit, or several: 500ms, 30s, 1h30m."
VERSION_LINE = f"pyproxy {__version__}"
EXIT_CODES = "Exit codes: 0 done, 1 failed, 2 wrong flags or input."
LOG_ATTRIBUTES = ("v", "logging_format")
RULE_ATTRIBUTES = (
    "config",
    "pyproxy_config",
    "manifests",
    "proxy_mode",
    "iptables_variant",
    "cluster_cidr",
    "detect_local_mode",
    "pod_bridge_interface",
    "pod_interface_name_prefix",
    "masquerade_all",
    "iptables_masquerade_bit",
    "nodeport_addresses",
    "iptables_localhost_nodeports",
    "bind_address",
    "hostname_override",
    "service_proxy_name",
    "ipvs_scheduler",
)
"""What of Config can change a rule; ``dump-rules`` takes these flags and no others."""


class DumpFormat(Enum):
    """What ``dump-rules`` writes; values as ``-o`` takes them."""

    RESTORE = "restore"
    NFT = "nft"
    JSON = "json"
    TEXT = "text"


def configure(ctx: click.Context, **more: object) -> Config:
    """Return the Config that the user asked for, start to log as it says, and warn of what changes nothing."""
    return _configured(ctx, **more).config


def _configured(ctx: click.Context, **more: object) -> ResolvedSettings:
    settings = resolve_settings(typed_values(ctx) | more)
    set_up_logging(settings.config.v, settings.config.logging_format)
    for warning in settings.warnings:
        logger.warning(warning)
    return settings


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool | None) -> None:  # noqa: FBT001 (click's)
    if wanted:
        click.echo(VERSION_LINE)
        ctx.exit()


def _version_flag() -> Flag:
    # kube-proxy takes --version=raw as well, which says the same with more words.
    grammar = Grammar("", lambda text: text == "raw" or parse_bool(text))
    return Flag(
        ["--version"],
        grammar,
        "Print the version and exit.",
        callback=_print_version,
        is_eager=True,
        expose_value=False,
    )


@click.group(context_settings=SETTINGS, epilog=EXIT_CODES)
@click.version_option(__version__, message=VERSION_LINE)
def pyproxy() -> None:
    """Send the traffic of Kubernetes Services to their endpoints, in place of kube-proxy."""


@pyproxy.command(
    cls=FlagCommand,
    params=[
        *config_flags(OPTIONS),
        Flag(["--cleanup"], SWITCH, "Remove kube-proxy's and pyproxy's rules and exit, as kube-proxy's own flag does."),
        _version_flag(),
    ],
    context_settings=SETTINGS,
    epilog=f"{DURATIONS}\n\n{EXIT_CODES}",
)
@click.pass_context
def run(ctx: click.Context, /, *, cleanup: bool | None, **_: object) -> None:
    """Keep this node's rules equal to the cluster's Services, until stopped. Stopping leaves the rules in place.

    Flags are those of kube-proxy, written as kube-proxy takes them. Without --kubeconfig, --master and --manifests
    the API server is the one of the pod's service account.
    """
    settings = _configured(ctx)
    config = settings.config
    if config.write_config_to:
        from pyproxy.config.effective_config import write_configuration  # noqa: PLC0415 (see module docstring)

        write_configuration(config, config.write_config_to)
        ctx.exit(0)
    if cleanup:
        ctx.exit(_cleanup(config, kube_proxy=True))
    logger.info("configuration: %s", settings.in_words())
    from pyproxy.agent import daemon  # noqa: PLC0415 (see module docstring)

    ctx.exit(daemon.run(settings))


def _parse_service(text: str) -> str:
    if not re.fullmatch(r"[^/\s]+/[^/\s]+", text):
        message = f"{text!r} is not NAMESPACE/NAME"
        raise ValueError(message)
    return text


@pyproxy.command(
    "dump-rules",
    cls=FlagCommand,
    params=[
        Flag(["--service"], Grammar("NAMESPACE/NAME", _parse_service), "Only this Service."),
        Flag(["-o", "--output"], one_of(DumpFormat), "How to write rules.  [default: text]"),
        Flag(
            ["--live"], SWITCH, "Show what is in the kernel now, with packet counters, in place of what belongs there."
        ),
        Flag(["--node"], NODE_NAME, "Same as --hostname-override."),
        *config_flags((*RULE_ATTRIBUTES, *LOG_ATTRIBUTES)),
    ],
    context_settings=SETTINGS,
    epilog=EXIT_CODES,
)
@click.pass_context
def dump_rules(
    ctx: click.Context,
    /,
    *,
    service: str | None,
    output: DumpFormat | None,
    live: bool | None,
    **flags: object,
) -> None:
    """Show the rules for the objects in files, by Service. Needs neither root nor a cluster, except for --live."""
    config = configure(ctx, **({"hostname_override": flags["node"]} if flags["node"] else {}))
    if not live and not config.manifests:
        message = "say which objects: --manifests PATH; or --live for the rules that are in the kernel"
        raise click.UsageError(message, ctx)
    from pyproxy.cli.dump_rules import dump_rules as print_rules  # noqa: PLC0415 (see module docstring)

    output_format = (output or DumpFormat.TEXT).value
    ctx.exit(print_rules(config, service=service, output=output_format, live=bool(live)))


@pyproxy.command(
    cls=FlagCommand,
    params=[
        Flag(["--kube-proxy"], SWITCH, "Remove kube-proxy's rules too, even where pyproxy has never run."),
        *config_flags(("iptables_variant", *LOG_ATTRIBUTES)),
    ],
    context_settings=SETTINGS,
    epilog=EXIT_CODES,
)
@click.pass_context
def cleanup(ctx: click.Context, /, *, kube_proxy: bool | None, **_: object) -> None:
    """Remove pyproxy's rules from the kernel. Removing nothing is no error."""
    ctx.exit(_cleanup(configure(ctx), kube_proxy=bool(kube_proxy)))


def _cleanup(config: Config, *, kube_proxy: bool) -> int:
    from pyproxy.cli.cleanup import cleanup as remove_rules  # noqa: PLC0415 (see module docstring)

    return remove_rules(config, include_kube_proxy=kube_proxy)


@pyproxy.command(
    "check-config",
    cls=FlagCommand,
    params=config_flags(OPTIONS, hidden=True),
    context_settings=SETTINGS,
    epilog=EXIT_CODES,
)
@click.pass_context
def check_config(ctx: click.Context, /, **_: object) -> None:
    """Check flags, configuration files, and the objects or the kubeconfig that they name; change nothing.

    Takes all flags of run. What is wrong goes to standard error, each with its file, object and field; what would be
    in effect goes to standard output.
    """
    settings = resolve_settings(typed_values(ctx))
    from pyproxy.cli.check_config import check  # noqa: PLC0415 (see module docstring)

    findings = check(settings.config)
    for warning in settings.warnings:
        click.echo(f"Warning: {warning}", err=True)
    for problem in findings.problems:
        click.echo(f"Error: {problem}", err=True)
    for line in (f"configuration: {settings.in_words()}", *findings.notes):
        click.echo(line)
    click.echo(f"errors: {len(findings.problems)}, warnings: {len(settings.warnings)}")
    ctx.exit(2 if findings.problems else 0)


@pyproxy.command(
    cls=FlagCommand,
    params=[
        Flag(["--dry-run"], SWITCH, "Say what would change. Has to be given: a take-over happens in run."),
        *config_flags(OPTIONS, hidden=True),
    ],
    context_settings=SETTINGS,
    epilog=EXIT_CODES,
)
@click.pass_context
def takeover(ctx: click.Context, /, *, dry_run: bool | None, **_: object) -> None:
    """Say what run would change in the kernel of this node, against the rules that a kube-proxy has there now.

    Takes all flags of run. Writes nothing. Each Service port has a line with the number of its rules: those that are
    there, and those that pyproxy would have.
    """
    if not dry_run:
        message = "say --dry-run: the take-over itself happens in run, once kube-proxy is gone"
        raise click.UsageError(message, ctx)
    config = configure(ctx)
    from pyproxy.cli.takeover import show_plan  # noqa: PLC0415 (see module docstring)

    ctx.exit(show_plan(config))


@pyproxy.command(context_settings=SETTINGS)
def version() -> None:
    """Print the version."""
    click.echo(VERSION_LINE)


def main() -> None:
    """Run the command that the program's name and words say, and exit with its code."""
    if Path(sys.argv[0]).name == "kube-proxy":
        run(prog_name="kube-proxy")
    pyproxy(prog_name="pyproxy")
