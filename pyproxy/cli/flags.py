"""Flags and commands for click, made from the fields of Config and read by pflag's rules."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click
from click.core import ParameterSource

from pyproxy.config.config import OPTIONS, Config
from pyproxy.config.grammar import Grammar, Syntax, parse_bool, split_command_line
from pyproxy.errors import ConfigError, PyproxyError


class Flag(click.Option):
    """A flag with a grammar of ours. A switch is no click flag: it has a value, which may be left out."""

    def __init__(
        self,
        names: Sequence[str],
        grammar: Grammar[object],
        text: str,
        *,
        ignored: bool = False,
        **settings: Any,  # noqa: ANN401 (click.Option's)
    ) -> None:
        super().__init__(names, type=_value_reader(grammar), help=text, **settings)
        self.grammar = grammar
        self.ignored = ignored
        self.long = next(name[2:] for name in self.opts if name.startswith("--"))

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the flag as it is typed, and its help."""
        record = super().get_help_record(ctx)
        if record is None:
            return None
        names = ", ".join(sorted(self.opts, key=len))
        return f"{names} {self.grammar.metavar}".strip(), record[1]


def _value_reader(grammar: Grammar[object]) -> Callable[[str], object]:
    def read(text: str) -> object:
        try:
            return grammar.parse(text)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return read


class FlagCommand(click.Command):
    """A command whose words are read by pflag's rules and whose errors are exit codes."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Rewrite the words as ``--flag=value``, each flag once, for click to read."""
        known = {flag.long: flag for flag in self.params if isinstance(flag, Flag)}
        try:
            return super().parse_args(ctx, _canonical(args, known))
        except (ConfigError, ValueError) as error:
            raise click.UsageError(str(error), ctx) from error

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 (click's)
        """Run the command; what the user got wrong is a usage error, anything else that we foresaw a failure."""
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            raise click.UsageError(str(error), ctx) from error
        except PyproxyError as error:
            raise click.ClickException(str(error)) from error

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the flags in two lists: those with effect, and those without."""
        for title, ignored in (("Options", False), ("Flags of kube-proxy that change nothing", True)):
            flags = (param for param in self.get_params(ctx) if getattr(param, "ignored", False) is ignored)
            if records := [record for flag in flags if (record := flag.get_help_record(ctx))]:
                with formatter.section(title):
                    formatter.write_dl(records, col_max=40)


def _canonical(words: Sequence[str], known: Mapping[str, Flag]) -> list[str]:
    shorts = {opt[1:]: name for name, flag in known.items() for opt in flag.opts if not opt.startswith("--")}
    switches = {"help": True} | {name: flag.grammar.is_switch for name, flag in known.items()}
    line = split_command_line(words, Syntax(switches, {"h": "help"} | shorts))
    texts: dict[str, str] = {}
    for name, text in line.flags:
        repeats = name in known and known[name].grammar.repeats
        texts[name] = ",".join(filter(None, (texts.get(name), text))) if repeats else text
    help_wanted = ["--help"] if parse_bool(texts.pop("help", "false")) else []
    return [*help_wanted, *(f"--{name}={text}" for name, text in texts.items()), "--", *line.arguments]


def config_flags(attributes: Iterable[str], *, hidden: bool = False) -> list[click.Parameter]:
    """Return the flags of these attributes of Config, by name; hidden ones are in no help."""
    defaults = Config()
    ordered = sorted(attributes, key=lambda attribute: OPTIONS[attribute].flag)
    return [_config_flag(attribute, getattr(defaults, attribute), hidden=hidden) for attribute in ordered]


def _config_flag(attribute: str, default: object, *, hidden: bool) -> Flag:
    about = OPTIONS[attribute]
    shown = "" if default is None or default is False else about.grammar.write(default)
    text = f"{about.help}  [default: {shown}]" if shown else about.help
    short = ["-v"] if attribute == "v" else []
    names = [f"--{about.flag}", *short, attribute]
    return Flag(names, about.grammar, text, ignored=bool(about.ignored), hidden=hidden)


def typed_values(ctx: click.Context) -> dict[str, Any]:
    """Return what the user typed, by attribute of Config; Config fills in the rest."""
    return {name: ctx.params[name] for name in OPTIONS if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}
