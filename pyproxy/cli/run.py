"""The command ``run``: the agent. Takes all flags of kube-proxy, those included that make it write a file or clean up."""

import asyncio
import logging

import click

from pyproxy.cli.flags import (
    DURATIONS,
    EXIT_CODES,
    SETTINGS,
    VERSION_LINE,
    Flag,
    GroupedFlagCommand,
    config_flags,
    configured_settings,
)
from pyproxy.config.config import OPTIONS, IptablesVariant, ProxyMode
from pyproxy.config.grammar import SWITCH, Grammar, parse_bool
from pyproxy.linux.capabilities import Capability, require_capabilities

logger = logging.getLogger(__name__)


# Eager, so that --version works beside flags that are wrong, as in kube-proxy.
def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool | None) -> None:  # noqa: FBT001 (click's)
    if wanted:
        click.echo(VERSION_LINE)
        ctx.exit()


_VERSION_FLAG = Flag(
    ["--version"],
    # kube-proxy also takes --version=raw, which prints the same in more words.
    Grammar("", lambda text: text == "raw" or parse_bool(text)),
    "Print the version and exit.",
    callback=_print_version,
    is_eager=True,
    expose_value=False,
)


@click.command(
    "run",
    cls=GroupedFlagCommand,
    params=[
        *config_flags(OPTIONS),
        Flag(["--cleanup"], SWITCH, "Remove kube-proxy's and pyproxy's rules and exit, as kube-proxy's own flag does."),
        _VERSION_FLAG,
    ],
    context_settings=SETTINGS,
    epilog=f"{DURATIONS}\n\n{EXIT_CODES}",
)
@click.pass_context
def command(ctx: click.Context, /, *, cleanup: bool | None, **_: object) -> None:
    """Keep this node's rules in sync with the cluster's Services until stopped. Stopping leaves the rules in place.

    Takes the flags of kube-proxy, in kube-proxy's syntax. Without --kubeconfig, --master and --manifests pyproxy uses
    the API server of the pod's service account.
    """
    settings = configured_settings(ctx)
    config = settings.config
    if config.write_config_to:
        from pyproxy.config.effective_config import write_configuration  # noqa: PLC0415 (YAML: an agent does not need it)

        write_configuration(config, config.write_config_to)
        ctx.exit(0)
    if cleanup:
        from pyproxy.cli.cleanup import remove_rules  # noqa: PLC0415 (an agent does not need it)

        asyncio.run(remove_rules(config, include_kube_proxy=True))
        ctx.exit(0)
    # libiptc reads legacy tables through a raw socket, which needs CAP_NET_RAW.
    is_legacy = config.proxy_mode is not ProxyMode.NFTABLES and config.iptables_variant is IptablesVariant.LEGACY
    require_capabilities("run", Capability if is_legacy else [Capability.NET_ADMIN])
    logger.info("configuration: %s", settings.in_words())
    if config.init_only:
        from pyproxy.agent.prepare import prepare  # noqa: PLC0415 (an agent does not need it)

        ctx.exit(asyncio.run(prepare(config)))
    from pyproxy.agent import daemon  # noqa: PLC0415 (--init-only does not need it)

    ctx.exit(daemon.run(settings))
