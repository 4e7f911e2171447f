"""The command ``plan``: what a sync would change, by the comparison of entries that the agent makes. Writes nothing.

With two paths the comparison is between the rules for two sets of objects. Otherwise it is between the rules in the kernel
and those for the objects of one path, or of the API server.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import click

from pyproxy.backends.interface import desired_entries
from pyproxy.backends.registry import open_dumper
from pyproxy.cli.dump_rules import RULE_ATTRIBUTES
from pyproxy.cli.flags import LOG_ATTRIBUTES, SETTINGS, Flag, FlagCommand, config_flags, configured_settings
from pyproxy.cli.objects import read_cluster
from pyproxy.cli.output import OutputFormat, console, print_document
from pyproxy.cli.plan_report import Comparison, PlanDocument, compared, plan_document, plan_lines
from pyproxy.config.config import NODE_NAME, OPTIONS, Config
from pyproxy.config.grammar import one_of
from pyproxy.model.address import Family
from pyproxy.node.context import NodeContext
from pyproxy.plan.planner import final_plans

# Exit code.
_CHANGES = 3
_EXIT_CODES = "Exit codes: 0 nothing changes, 3 something changes, 1 failed, 2 wrong flags or input."
_SHOWN = (*RULE_ATTRIBUTES, "kubeconfig", "master", "api_servers", *LOG_ATTRIBUTES)
_COLOURS = {"~": "yellow", "+": "green", "-": "red"}


@click.command(
    "plan",
    cls=FlagCommand,
    params=[
        click.Argument(["before"], required=False, metavar="[A"),
        click.Argument(["after"], required=False, metavar="[B]]"),
        Flag(
            ["-o", "--output"],
            one_of(OutputFormat),
            "Output format; wide also shows the rules that are added and removed.  [default: text]",
        ),
        Flag(["--node"], NODE_NAME, "Same as --hostname-override."),
        *config_flags(_SHOWN),
        *config_flags(OPTIONS.keys() - set(_SHOWN), hidden=True),
    ],
    context_settings=SETTINGS,
    epilog=_EXIT_CODES,
)
@click.pass_context
def command(
    ctx: click.Context, /, *, before: str | None, after: str | None, output: OutputFormat | None, **_: object
) -> None:
    """Show what a sync would change on a node, for each Service port. Writes nothing.

    A and B are files or directories of objects. With A and B: what changes on the node if the objects of A become those
    of B; this needs neither root nor a cluster. With A, or the flags of run: what changes in the kernel of this node.

    Takes all flags of run. Use those that the agent has.
    """
    # Flags without effect on rules are accepted and hidden: the command line of an agent can be copied as it is.
    config = configured_settings(ctx, **({} if before is None else {"manifests": before})).config
    if before is not None and after is not None:
        found = plan_of_files(config, before, after)
    else:
        from pyproxy.cli.plan_live import plan_of_kernel  # noqa: PLC0415  # libraries of the kernel's interfaces

        found = asyncio.run(plan_of_kernel(config))
    print_plan(found, output or OutputFormat.TEXT)
    ctx.exit(0 if found.is_empty else _CHANGES)


def plan_of_files(config: Config, before: str, after: str) -> PlanDocument:
    """Return what changes on a node if the objects of one path become those of another.

    Raises:
        ConfigError: the mode depends on the node.
        SourceError: a path cannot be read.
    """
    # Both sets of objects are compiled for the same node and settings, so that only the objects make a difference.
    dumper = open_dumper(config)
    old = read_cluster(replace(config, manifests=before))
    new = read_cluster(replace(config, manifests=after))

    def comparisons() -> Iterator[Comparison]:
        contexts = [
            NodeContext(
                node=cluster.node,
                local_ips=frozenset(cluster.node.ips),
                service_cidrs=cluster.tracker.take_service_cidrs(),
            )
            for cluster in (old, new)
        ]
        for family in Family:
            # Entries of the first set take the place of those in the kernel.
            program = dumper.program(family, contexts[0], {})
            present = desired_entries(program, final_plans(old.tracker, old.node, family))
            plans = final_plans(new.tracker, new.node, family)
            yield compared(dumper, family, present, dumper.program(family, contexts[1], {}), plans)

    return plan_document(new.node.name, config.proxy_mode.value, "files", dumper, comparisons())


def print_plan(found: PlanDocument, output: OutputFormat) -> None:
    """Print a plan as text, with colours on a terminal, or as a document."""
    if output in {OutputFormat.JSON, OutputFormat.YAML}:
        print_document(found, output)
        return
    target = console()
    for line in plan_lines(found, wide=output is OutputFormat.WIDE):
        target.print(line, style=_COLOURS.get(line.lstrip()[0]), soft_wrap=True)
