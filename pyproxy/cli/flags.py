"""What all commands share: flags for click, made from the options of Config and read by pflag's rules, and reading them.

click has the commands, the help and the errors. The arguments of a command are rewritten as ``--flag=value`` before click
reads them, because pflag's rules are not click's.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from pyproxy import __version__
from pyproxy.config.config import OPTIONS, Config
from pyproxy.config.grammar import PATH, Grammar, Syntax, parse_bool, split_command_line
from pyproxy.config.settings import ResolvedSettings, resolve_settings
from pyproxy.errors import ConfigError, PyproxyError
from pyproxy.logs import set_up_logging

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

logger = logging.getLogger(__name__)

# click wraps help at 80 columns unless a command sets a limit; the help of most flags would then take three lines.
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
DURATIONS = "DURATION is a number with a unit, or several: 500ms, 30s, 1h30m."
VERSION_LINE = f"pyproxy {__version__}"
EXIT_CODES = "Exit codes: 0 done, 1 failed, 2 wrong flags or input."
# The least verbosity (-v) at which an unexpected error is logged with its traceback.
_TRACEBACK_LEVEL = 4
LOG_ATTRIBUTES = ("v", "logging_format")
_GENERAL = "Options"
_WITHOUT_EFFECT = "Compatibility: flags of kube-proxy that change nothing"
# Sections of the help of a command with all flags: title to attributes of Config, or prefixes of attributes.
_SECTIONS: Mapping[str, tuple[str, ...]] = {
    _GENERAL: (),
    "API server and other sources of objects": ("manifests", "kubeconfig", "master", "api_servers"),
    "Node": (
        "hostname_override",
        "bind_address",
        "cluster_cidr",
        "detect_local_mode",
        "pod_bridge_interface",
        "pod_interface_name_prefix",
        "nodeport_addresses",
    ),
    "iptables and nftables mode": ("iptables_", "masquerade_all"),
    "IPVS mode": ("ipvs_",),
    "Connection tracking": ("conntrack_",),
    "Serving": ("metrics_bind_address", "healthz_bind_address", "bind_address_hard_fail", "control_socket"),
    "Logging": LOG_ATTRIBUTES,
    _WITHOUT_EFFECT: (),
}


class InputError(click.ClickException):
    """A file, an object or the combination of settings cannot be used. The flags are written correctly, so no usage is shown."""

    exit_code = 2


class Flag(click.Option):
    """A flag whose value is read by a `Grammar`. A switch has a value too, which may be omitted; click's flags have none."""

    def __init__(
        self,
        names: Sequence[str],
        grammar: Grammar[object],
        text: str,
        *,
        ignored: bool = False,
        **settings: Any,  # noqa: ANN401 (click.Option's)
    ) -> None:
        # click parses each value by a function of its own; errors of a grammar are ValueErrors with a message for people.
        def read(value: str) -> object:
            try:
                return grammar.parse(value)
            except ValueError as error:
                raise click.BadParameter(str(error)) from None

        super().__init__(names, type=read, help=text, **settings)
        self.grammar = grammar
        self.ignored = ignored
        self.section = _GENERAL
        # click has several names and a destination for each option; pflag's rules know one long name.
        self.long = next(name[2:] for name in self.opts if name.startswith("--"))

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the flag as it is typed, and its help."""
        record = super().get_help_record(ctx)
        if record is None:
            return None
        names = ", ".join(sorted(self.opts, key=len))
        return f"{names} {self.grammar.metavar}".strip(), record[1]

    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem]":  # noqa: ARG002 (click's)
        """Return the values that begin with an incomplete one, or let the shell complete the name of a file."""
        from click.shell_completion import CompletionItem  # noqa: PLC0415  # an agent does not need it

        # A flag with other grammars has no list of values to offer: numbers, addresses, names of objects.
        if self.grammar is PATH:
            return [CompletionItem(incomplete, type="file")]
        return [CompletionItem(word) for word in self.grammar.choices if word.startswith(incomplete)]


class FlagCommand(click.Command):
    """A command whose arguments are read by pflag's rules and whose errors become exit codes."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Rewrite the arguments as ``--flag=value``, each flag once, for click to read."""
        if ctx.resilient_parsing:
            # Completion: the command line is not complete, and its values are not used.
            return super().parse_args(ctx, [])
        known = {flag.long: flag for flag in self.params if isinstance(flag, Flag)}
        try:
            shorts = {opt[1:]: name for name, flag in known.items() for opt in flag.opts if not opt.startswith("--")}
            switches = {"help": True} | {name: flag.grammar.is_switch for name, flag in known.items()}
            line = split_command_line(args, Syntax(switches, {"h": "help"} | shorts))
            texts: dict[str, str] = {}
            for name, text in line.flags:
                # As in pflag: the last value of a flag counts, and the values of a list add up.
                repeats = name in known and known[name].grammar.repeats
                texts[name] = ",".join(filter(None, (texts.get(name), text))) if repeats else text
            # click shows help as soon as it reads the flag, before the values of other flags, so it comes first.
            help_wanted = ["--help"] if parse_bool(texts.pop("help", "false")) else []
            # After "--" click takes everything as an argument, also what begins with a dash.
            flags = (f"--{name}={text}" for name, text in texts.items())
            return super().parse_args(ctx, [*help_wanted, *flags, "--", *line.arguments])
        except (ConfigError, ValueError) as error:
            raise click.UsageError(str(error), ctx) from error

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 (click's)
        """Run the command. A ConfigError has exit code 2, any other error of ours or the system's a failure (1)."""
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            raise InputError(str(error)) from error
        except (PyproxyError, OSError) as error:
            # An OSError may come from anywhere; with -v 4 its origin can be found.
            if isinstance(error, OSError) and (ctx.params.get("v") or 0) >= _TRACEBACK_LEVEL:
                logger.debug("unexpected error of the system", exc_info=True)
            raise click.ClickException(str(error)) from error

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the flags."""
        self.format_sections(ctx, formatter, lambda flag: _WITHOUT_EFFECT if flag.ignored else _GENERAL)

    def format_sections(
        self, ctx: click.Context, formatter: click.HelpFormatter, section_of: Callable[[Flag], str]
    ) -> None:
        """Write the flags in sections; click's own flags are in the first."""
        records: dict[str, list[tuple[str, str]]] = {title: [] for title in _SECTIONS}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)):
                records[section_of(param) if isinstance(param, Flag) else _GENERAL].append(record)
        for title, flags in records.items():
            if flags:
                with formatter.section(title):
                    formatter.write_dl(flags, col_max=40)


class GroupedFlagCommand(FlagCommand):
    """A command with all flags of `run`, which are too many for one list in the help."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the flags in sections by subject."""
        self.format_sections(ctx, formatter, lambda flag: flag.section)


def config_flags(attributes: Iterable[str], *, hidden: bool = False) -> list[click.Parameter]:
    """Return the flags of these attributes of Config, sorted by name; hidden ones are not shown in any help."""
    # The name in Python comes last in the list of names; click passes the value under it.
    defaults = Config()
    flags: list[click.Parameter] = []
    # pflag lists flags by name, and shows no default that is the zero value of its type; so does the help here.
    for attribute in sorted(attributes, key=lambda attribute: OPTIONS[attribute].flag):
        about = OPTIONS[attribute]
        default = about.value(defaults)
        shown = "" if default is None or default is False else about.grammar.write(default)
        text = f"{about.help}  [default: {shown}]" if shown else about.help
        names = [f"--{about.flag}", *(["-v"] if attribute == "v" else []), attribute]
        environment = {"envvar": about.environment, "show_envvar": True} if about.environment else {}
        flag = Flag(names, about.grammar, text, ignored=bool(about.ignored), hidden=hidden, **environment)
        titles = (
            title
            for title, members in _SECTIONS.items()
            if attribute in members or attribute.startswith(tuple(name for name in members if name.endswith("_")))
        )
        flag.section = _WITHOUT_EFFECT if about.ignored else next(titles, _GENERAL)
        flags.append(flag)
    return flags


def typed_values(ctx: click.Context) -> dict[str, Any]:
    """Return the values of flags that were given, on the command line or in the environment, by attribute of Config.

    ``--node`` counts as ``--hostname-override``.
    """
    # A flag with the value of its default counts as given: it overrides a configuration file.
    given = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
    values = {name: ctx.params[name] for name in OPTIONS if ctx.get_parameter_source(name) in given}
    return values | ({"hostname_override": node} if (node := ctx.params.get("node")) else {})


def configured_settings(ctx: click.Context, **more: object) -> ResolvedSettings:
    """Resolve flags and configuration files, set up logging as they say, and log a warning for what has no effect.

    Args:
        ctx: has the flags.
        more: further values, by attribute of Config.

    Raises:
        ConfigError: see `resolve_settings`.
    """
    settings = resolve_settings(typed_values(ctx) | more)
    # Verbosity and format may come from a file, so warnings about flags have to wait for them.
    set_up_logging(settings.config.v, settings.config.logging_format)
    for warning in settings.warnings:
        logger.warning(warning)
    return settings
