"""The command ``drift``: what differs between the kernel and the rules that pyproxy wrote there. Writes nothing."""

import asyncio
from collections import Counter

import click
from rich.text import Text

from pyproxy.backends.drift import DriftDocument, ServiceDrift, SharedDrift, few
from pyproxy.cli.control import NoAgentError, ask
from pyproxy.cli.dump_rules import RULE_ATTRIBUTES
from pyproxy.cli.flags import LOG_ATTRIBUTES, SETTINGS, Flag, FlagCommand, config_flags, configured_settings
from pyproxy.cli.output import OutputFormat, console, print_document
from pyproxy.cli.plan_report import family_suffix, plural, service_port_title
from pyproxy.config.config import NODE_NAME, OPTIONS
from pyproxy.config.grammar import one_of
from pyproxy.plan.service_values import API_VERSION

# Neither 1 nor 2, so that a script can tell drift from a failure of the command and from wrong flags.
_DIFFERENCES = 3  # exit code
_EXIT_CODES = "Exit codes: 0 no drift, 3 drift, 1 failed, 2 wrong flags or input."
_SHOWN = (*RULE_ATTRIBUTES, "control_socket", *LOG_ATTRIBUTES)
_STYLES = {"missing": "red", "unexpected": "yellow", "reordered": "yellow"}


@click.command(
    "drift",
    cls=FlagCommand,
    params=[
        Flag(["-o", "--output"], one_of(OutputFormat), "Output format.  [default: text]"),
        Flag(["--node"], NODE_NAME, "Same as --hostname-override."),
        *config_flags(_SHOWN),
        *config_flags(OPTIONS.keys() - set(_SHOWN), hidden=True),
    ],
    context_settings=SETTINGS,
    epilog=_EXIT_CODES,
)
@click.pass_context
def command(ctx: click.Context, /, *, output: OutputFormat | None, **_: object) -> None:
    """Show which rules in the kernel differ from those that pyproxy wrote, by Service. Writes nothing; needs root.

    The agent of this node compares the kernel with what it wrote last. With --manifests the kernel is compared with the
    rules for the objects there, and no agent is needed; then give the flags of the agent.
    """
    if output is OutputFormat.WIDE:
        message = "-o: wide is not an output format of this command"
        raise click.UsageError(message, ctx)
    config = configured_settings(ctx).config
    if config.manifests:
        from pyproxy.cli.plan_live import plan_of_kernel  # noqa: PLC0415  # libraries of the kernel's interfaces

        # What a sync adds is missing in the kernel, and what it removes is unexpected there.
        plan = asyncio.run(plan_of_kernel(config, with_leftovers=False))
        services = [
            ServiceDrift(
                item.namespace,
                item.name,
                item.port_name,
                item.protocol,
                item.family,
                item.rules.added,
                item.rules.removed,
            )
            for item in plan.services
        ]
        shared = [SharedDrift(item.family, item.used_by, item.rules.added, item.rules.removed) for item in plan.shared]
        found = DriftDocument(API_VERSION, "Drift", plan.node, plan.mode, "objects", plan.rule_noun, services, shared)
    else:
        try:
            found = ask(config.control_socket, "drift", DriftDocument)
        except NoAgentError as error:
            message = f"{error}, so it is not known which rules it wrote; give --manifests"
            raise NoAgentError(message) from error
    if output in {OutputFormat.JSON, OutputFormat.YAML}:
        print_document(found, output)
    else:
        print_drift(found)
    ctx.exit(0 if found.is_empty else _DIFFERENCES)


def print_drift(found: DriftDocument) -> None:
    """Print a line for each difference, and a summary."""
    items: list[ServiceDrift | SharedDrift] = [*found.services, *found.shared]
    rows: list[tuple[str, str, str]] = []
    for item in items:
        if isinstance(item, ServiceDrift):
            title = service_port_title(item)
        else:
            title = f"shared by {few(item.used_by)}" if item.used_by else f"shared by all{family_suffix(item.family)}"
        rows += [(title, "missing", rule) for rule in item.missing]
        rows += [(title, "unexpected", rule) for rule in item.unexpected]
        # The same rules in another order are drift, too: in a chain the first rule that matches decides.
        if not (item.missing or item.unexpected):
            rows.append((title, "reordered", ""))
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    target = console()
    for title, kind, rule in rows:
        text = Text.assemble(f"{title:{widths[0]}}  ", (f"{kind:{widths[1]}}", _STYLES[kind]), f"  {rule}")
        text.rstrip()
        target.print(text, soft_wrap=True)
    kinds = Counter(kind for _, kind, _ in rows)
    noun = plural(found.rule_noun)
    counts = ", ".join(f"{count} {noun if count != 1 else found.rule_noun} {kind}" for kind, count in kinds.items())
    target.print(f"Drift: {counts or 'none'}. Nothing was written.", soft_wrap=True)
