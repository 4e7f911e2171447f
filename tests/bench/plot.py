"""Plots as SVG: horizontal bars on a logarithmic axis, with the spread of the runs as a line."""

import math
from collections.abc import Sequence
from html import escape
from typing import Literal, NamedTuple, TypeAlias

from .results import Summary

Theme: TypeAlias = Literal["light", "dark"]
_WIDTH, _LEFT, _RIGHT, _TOP = 920, 210, 190, 56
_BAR, _GROUP_GAP = 16, 12
_COLOURS = {
    "light": {"back": "#ffffff", "text": "#1f2328", "faint": "#d0d7de", "kube-proxy": "#8c959f", "pyproxy": "#0969da"},
    "dark": {"back": "#0d1117", "text": "#e6edf3", "faint": "#30363d", "kube-proxy": "#8b949e", "pyproxy": "#58a6ff"},
}


class Bar(NamedTuple):
    """One bar."""

    series: str
    found: Summary | None
    text: str


def plot(heading: str, groups: Sequence[tuple[str, Sequence[Bar]]], theme: Theme) -> str:
    """Return a plot of groups of bars."""
    colours = _COLOURS[theme]
    spreads = [bar.found for _, bars in groups for bar in bars if bar.found]
    first = math.floor(math.log10(max(1e-6, min(found.low for found in spreads))))
    last = max(first + 1, math.ceil(math.log10(max(found.high for found in spreads))))

    def x(value: float) -> float:
        part = (math.log10(max(value, 10**first)) - first) / (last - first)
        return _LEFT + part * (_WIDTH - _LEFT - _RIGHT)

    rows: list[str] = []
    y = _TOP
    for label, bars in groups:
        middle = y + len(bars) * _BAR / 2 + 4
        rows.append(_text((_LEFT - 10, middle), label, colours["text"], anchor="end"))
        for bar in bars:
            right = float(_LEFT)
            if bar.found:
                right = x(bar.found.high)
                rows.append(
                    f'<rect x="{_LEFT}" y="{y + 2}" width="{max(1.0, x(bar.found.value) - _LEFT):.1f}" height="{_BAR - 4}" fill="{colours[bar.series]}"/>'
                )
                rows.append(
                    f'<path d="M{x(bar.found.low):.1f} {y + _BAR / 2}H{right:.1f}" stroke="{colours["text"]}"/>'
                )
            rows.append(_text((right + 6, y + _BAR - 4), bar.text, colours["text"]))
            y += _BAR
        y += _GROUP_GAP
    axis = [
        f'<path d="M{x(10**power):.1f} {_TOP - 6}V{y - _GROUP_GAP + 4}" stroke="{colours["faint"]}"/>'
        + _text((x(10**power), y + 6), f"{10.0**power:g}", colours["text"], anchor="middle")
        for power in range(first, last + 1)
    ]
    legend = [
        f'<rect x="{_LEFT + 120 * place}" y="32" width="12" height="12" fill="{colours[series]}"/>'
        + _text((_LEFT + 120 * place + 18, 42), series, colours["text"])
        for place, series in enumerate(dict.fromkeys(bar.series for _, bars in groups for bar in bars))
    ]
    height = y + 16
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" font-family="system-ui, sans-serif" role="img" aria-label="{escape(heading)}">',
            f'<rect width="{_WIDTH}" height="{height}" fill="{colours["back"]}"/>',
            _text((14, 22), heading, colours["text"], size=15),
            *legend,
            *axis,
            *rows,
            "</svg>\n",
        ]
    )


def _text(at: tuple[float, float], text: str, colour: str, *, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{at[0]:.1f}" y="{at[1]:.1f}" fill="{colour}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'
