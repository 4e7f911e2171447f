"""Writes the results of a benchmark: tables in Markdown, the check of the budgets, and plots."""

from pathlib import Path

from .budgets import check, number, ratio_text
from .cluster import Shape
from .plot import Bar, plot
from .results import (
    FIRST_PACKET,
    METRICS,
    PROGRAMS,
    Metric,
    Results,
    Summary,
    growth,
    interleaved,
    ratio,
    summarize,
)
from .run import MOST_ENDPOINTS

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
_MODES = {
    "nftables": "nftables",
    "iptables-legacy": "iptables, legacy",
    "iptables-nft": "iptables, nft",
    "ipvs-legacy": "IPVS",
    "ipvs-nft": "IPVS, nft",
}
_PLOTS = {
    "start": (METRICS[0], "Start until the last rule, s (Services x endpoints of each)"),
    "change": (METRICS[2], "Change of an endpoint until its first reply, p50, ms (Services x endpoints of each)"),
    "change-cpu": (METRICS[6], "CPU time of the agent per change, ms (Services x endpoints of each)"),
    "memory": (METRICS[14], "Resident memory after the start, MB (Services x endpoints of each)"),
}


def markdown(results: Results, level: int = 3) -> str:
    """Return all tables; ``level`` is that of their headings."""
    loads = [record.load for record in results.records]
    lines = [f"- {name}: {value}" for name, value in results.machine.items()]
    lines += [
        f"- Load average before a run: {min(loads):.1f} to {max(loads):.1f}, median {sorted(loads)[len(loads) // 2]:.1f}",
        "",
    ]
    heading = "#" * level
    for shape, mode in dict.fromkeys((each.shape, each.mode) for each in results.records):
        if any(
            "start" in each.values or each.not_done for program in PROGRAMS for each in results.of(shape, mode, program)
        ):
            lines += [f"{heading} {title(shape)}: {_MODES[mode]}", "", *_case(results, shape, mode), ""]
    if packets := _first_packets(results):
        lines += [f"{heading} New connections", "", *packets, ""]
    lines += [f"{heading} Budgets", "", *_budgets(results), ""]
    return "\n".join(lines)


def title(shape: str) -> str:
    """Return a shape in words."""
    services, endpoints = Shape.parse(shape)
    plural, each = ("", "") if services == 1 else ("s", " each")
    return f"{services:,} Service{plural} with {endpoints:,} endpoints{each}"


def _case(results: Results, shape: str, mode: str) -> list[str]:
    sides = {program: results.of(shape, mode, program) for program in PROGRAMS}
    lines = [
        f"{program} did not finish the phase “{phase}” within {limit:.0f} s."
        for program, records in sides.items()
        for phase, limit in dict.fromkeys((each.not_done, each.limit) for each in records if each.not_done)
    ]
    if Shape.parse(shape).endpoints > MOST_ENDPOINTS:
        lines += ["A change removes an endpoint or adds it again. It ends when the kernel has it, not with a reply."]
    lines += ["", f"| | {' | '.join(PROGRAMS)} | ratio | runs |", "|---|---|---|---|---|"]
    for metric in METRICS:
        found = [summarize(sides[program], metric) for program in PROGRAMS]
        if any(found):
            cells = " | ".join(map(_cell, found))
            runs = ", ".join(dict.fromkeys(str(each.runs if each else 0) for each in found))
            lines.append(f"| {metric.title} | {cells} | {ratio_text(ratio(results, shape, mode, metric))} | {runs} |")
    return lines


def _first_packets(results: Results) -> list[str]:
    rows = []
    for shape, mode in dict.fromkeys((each.shape, each.mode) for each in results.records):
        for program in PROGRAMS:
            if not (pairs := interleaved(results, shape, mode, program)):
                continue
            for metric in FIRST_PACKET:
                few, many = (_cell(summarize([pair[side] for pair in pairs], metric)) for side in (0, 1))
                grown = growth(results, shape, mode, program, metric.name)
                by = f"{grown.value:.2f} ({grown.low:.2f} to {grown.high:.2f})" if grown else "-"
                services = f"{Shape.parse(shape).services:,}"
                rows.append(f"| {_MODES[mode]} | {program} | {services} | {metric.title} | {few} | {many} | {by} |")
    head = ["| mode | rules of | Services | | 10 Services | all Services | ratio |", "|---|---|---|---|---|---|---|"]
    return [*head, *rows] if rows else []


def _budgets(results: Results) -> list[str]:
    lines = ["| mode | Services x endpoints | | limit | measured | |", "|---|---|---|---|---|---|"]
    for each in check(results):
        verdict = f"**{each.verdict}**" if each.verdict == "missed" else each.verdict
        lines.append(
            f"| {_MODES[each.mode]} | {each.shape} | {each.title} | {each.limit} | {each.measured} | {verdict} |"
        )
    return lines


def _cell(found: Summary | None) -> str:
    if found is None:
        return "-"
    return (
        number(found.value)
        if found.runs == 1
        else f"{number(found.value)} ({number(found.low)} to {number(found.high)})"
    )


def plots(results: Results) -> dict[str, str]:
    """Return the SVG files by name, each in a light and a dark form."""
    files: dict[str, str] = {}
    for name, (metric, heading) in _PLOTS.items():
        groups = [
            (f"{_short(shape)}, {_MODES[mode]}", [_bar(results, shape, mode, program, metric) for program in PROGRAMS])
            for shape, mode in sorted({(each.shape, each.mode) for each in results.records}, key=_order)
            if any(summarize(results.of(shape, mode, program), metric) for program in PROGRAMS)
        ]
        if groups:
            files |= {f"bench-{name}-{theme}.svg": plot(heading, groups, theme) for theme in ("light", "dark")}
    return files


def _short(shape: str) -> str:
    return " x ".join(f"{number:,}" for number in Shape.parse(shape))


def _order(case: tuple[str, str]) -> tuple[int, int, int]:
    shape = Shape.parse(case[0])
    return shape.services * shape.endpoints, shape.endpoints, list(_MODES).index(case[1])


def _bar(results: Results, shape: str, mode: str, program: str, metric: Metric) -> Bar:
    records = [each for each in results.records if (each.shape, each.mode, each.program) == (shape, mode, program)]
    found = summarize(records, metric)
    limits = [each.limit for each in records if each.not_done == "start"]
    missing = f"not within {limits[0]:.0f} s" if limits else "not measured"
    return Bar(program, found, _cell(found) if found else missing)


def write(results: Results, folder: Path) -> None:
    """Write all files to a directory."""
    folder.mkdir(parents=True, exist_ok=True)
    results.save(folder / "results.json")
    (folder / "table.md").write_text(markdown(results))
    for name, content in plots(results).items():
        (folder / name).write_text(content)


def write_docs(results: Results, docs: Path) -> None:
    """Write the tables to the page about performance, between its markers, and the plots to the images of the docs."""
    page = docs / "performance.md"
    before, _, rest = page.read_text().partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        message = f"{page}: {BEGIN} and {END} are missing"
        raise ValueError(message)
    page.write_text(f"{before}{BEGIN}\n\n{markdown(results)}\n{END}{after}")
    for name, content in plots(results).items():
        (docs / "images" / name).write_text(content)
