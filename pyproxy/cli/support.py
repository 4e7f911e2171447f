"""The command ``support``: one archive with the state of this node, for a bug report. Changes nothing.

Each item is collected on its own, with a limit for its time and size. What fails is listed in the index with the reason,
so that the command is useful for other users than root and on a broken node, too. Most items are the output of other
commands, which run as separate processes: none of them can end or delay this one.
"""

import asyncio
import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import click

from pyproxy import __version__
from pyproxy.cli.control import agent_pid
from pyproxy.cli.flags import EXIT_CODES, LOG_ATTRIBUTES, SETTINGS, Flag, FlagCommand, config_flags, typed_values
from pyproxy.cli.program import load_command
from pyproxy.cli.support_bundle import Bundle, Item
from pyproxy.cli.support_items import items, known_secrets
from pyproxy.config.config import NODE_NAME, OPTIONS, Config
from pyproxy.config.grammar import PATH
from pyproxy.config.settings import resolve_settings
from pyproxy.errors import ConfigError, PyproxyError
from pyproxy.node.node_name import own_node_name

STANDARD_OUTPUT = "-"
_SHOWN = (
    *(
        "config",
        "pyproxy_config",
        "manifests",
        "kubeconfig",
        "master",
        "api_servers",
        "hostname_override",
        "proxy_mode",
    ),
    *("service_proxy_name", "metrics_bind_address", "healthz_bind_address", "control_socket"),
    *LOG_ATTRIBUTES,
)
_HEAD = """\
Support bundle of pyproxy {version}, node {node}, made {time} by uid {uid}

Configuration: {origin}

The bundle has the addresses and names of this cluster, and all firewall rules of this node. It has no Secrets, no tokens,
no private keys and no annotations that pyproxy does not use; what looks like a credential is replaced by REDACTED. Check
it before you publish it.

To see the Services as this node saw them: pyproxy services --manifests objects --node {node}"""


@click.command(
    "support",
    cls=FlagCommand,
    params=[
        Flag(
            ["-o", "--output"],
            PATH,
            "File to write, or - for standard output.  [default: pyproxy-support-NODE-TIME.tar.gz in this directory]",
        ),
        Flag(["--node"], NODE_NAME, "Same as --hostname-override."),
        *config_flags(_SHOWN),
        *config_flags(OPTIONS.keys() - set(_SHOWN), hidden=True),
    ],
    context_settings=SETTINGS,
    epilog=EXIT_CODES,
)
@click.pass_context
def command(ctx: click.Context, /, *, output: str | None, **_: object) -> None:
    """Write an archive for a bug report: configuration, objects, rules, log, metrics and versions. Changes nothing.

    Takes all flags of run. Without any, those of the running agent are used. INDEX.txt in the archive lists what it has,
    and what is missing and why. Credentials are left out. Run it as root, or most of the items are missing.
    """
    given = typed_values(ctx)
    if given.get("manifests") == STANDARD_OUTPUT:
        message = "--manifests=- is not supported here, because several commands read the objects"
        raise click.UsageError(message, ctx)
    settings = found_settings(ctx.command, given)
    name = settings.node
    now = time.time()
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    path = output or f"pyproxy-support-{name}-{stamp}.tar.gz"
    head = _HEAD.format(
        version=__version__,
        node=name,
        time=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now)),
        uid=os.geteuid(),
        origin=settings.origin,
    )

    def write(target: IO[bytes]) -> Bundle:
        bundle = Bundle(target, f"pyproxy-support-{name}-{stamp}", now, known_secrets(settings.config))
        wanted: list[Item] = list(items(settings.config, name, settings.words, settings.agent_pid))
        asyncio.run(bundle.collect(wanted, head))
        return bundle

    if path == STANDARD_OUTPUT:
        bundle = write(sys.stdout.buffer)
    else:
        try:
            bundle = _written(Path(path), write)
        except OSError as error:
            message = (
                f"{path} cannot be written: {error.strerror}; choose another file with -o, or -o - and redirect it"
            )
            raise click.ClickException(message) from error
    # To standard error: standard output may be the archive.
    for missing, reason in sorted(bundle.missing):
        click.echo(f"not available: {missing}: {reason}", err=True)
    size = "" if path == STANDARD_OUTPUT else f" ({Path(path).stat().st_size} bytes)"
    click.echo(f"wrote {path}{size}: {len(bundle.files)} files, {len(bundle.missing)} not available", err=True)


@dataclass(frozen=True, slots=True)
class FoundSettings:
    """The settings that the archive describes."""

    config: Config
    node: str
    """Name of this node, as part of a file name."""
    words: Mapping[str, list[str]]
    """By command, the flags for it."""
    origin: str
    """Where the settings come from, or why they cannot be used."""
    agent_pid: int
    """0 if no agent is visible."""


def found_settings(command: click.Command, given: Mapping[str, Any]) -> FoundSettings:
    """Return the settings of the flags that the user gave, else those of the running agent; defaults if they have errors."""
    pid, origin = agent_pid(given.get("control_socket", Config().control_socket)), "flags of this command"
    # In the agent's container the environment names files, and other values are still only on its command line.
    ambient = {name for name, about in OPTIONS.items() if about.environment and about.environment in os.environ}
    if not given.keys() - {"hostname_override", "control_socket", *LOG_ATTRIBUTES, *ambient}:
        origin = "defaults; no agent was found"
        if pid:
            try:
                given = {**agent_values(command, pid), **given}
                origin = f"flags of the agent, process {pid}"
            except (OSError, ValueError, click.UsageError) as error:
                origin = f"defaults; the flags of the agent, process {pid}, cannot be read: {error}"
    given = {name: value for name, value in given.items() if name != "write_config_to"}
    try:
        config = resolve_settings(given).config
    except PyproxyError as error:
        config = Config()
        origin += f"; they have errors, so defaults were used: {error}"
    # Each command gets only the flags that it has: an unknown flag would be an error instead of an item.
    words: dict[str, list[str]] = {}
    for name in ("check-config", "doctor", "dump-rules", "plan", "services"):
        known = {param.name for param in load_command(name).params}
        words[name] = [
            f"--{OPTIONS[attribute].flag}={'' if value is None else OPTIONS[attribute].grammar.write(value)}"
            for attribute, value in given.items()
            if attribute in known
        ]
    # The bundle is also needed if the node's name is what is wrong.
    try:
        node = own_node_name(config)
    except ConfigError:
        node = platform.node()
    return FoundSettings(config, node.replace("/", "-") or "unknown", words, origin, pid)


def agent_values(command: click.Command, pid: int) -> dict[str, Any]:
    """Return the values of the flags of a running agent.

    Args:
        command: a command with all flags of ``run``.
        pid: the process of the agent.

    Raises:
        OSError: its command line cannot be read.
        ValueError: it is not the command line of an agent.
        click.UsageError: a flag is not known.
    """
    # Each argument ends with a NUL (proc(5)). The interpreter and its options may come before the program.
    words = Path(f"/proc/{pid}/cmdline").read_text().removesuffix("\0").split("\0")
    names = [Path(word).name for word in words]
    if "kube-proxy" in names[:3]:
        start = names.index("kube-proxy") + 1
    elif "run" in words[:5]:
        start = words.index("run") + 1
    else:
        message = "it is not the command line of an agent"
        raise ValueError(message)
    return typed_values(command.make_context("support", words[start:]))


def _written(path: Path, write: Any) -> Bundle:  # noqa: ANN401
    """Write a file that only this user can read; it appears when it is complete."""
    # In the same directory, because a file cannot be renamed to another file system.
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as target:
        try:
            bundle: Bundle = write(target)
            target.flush()
            Path(target.name).replace(path)
        # Also after Ctrl-C: an incomplete archive must not stay.
        except BaseException:
            with suppress(OSError):
                Path(target.name).unlink()
            raise
    return bundle
