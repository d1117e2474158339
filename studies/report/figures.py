"""The plots of a study's report, each as an <svg> element: gains, relevance, curves, what the wild uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from catalog.pictures import FAINT, GRID, INK, MARKERS, PALETTE, SMALL, extent, fit_text, inches, number
from studies.report.comparing import LabelRow, Line, Related
from studies.report.drawing import WIDTH, sheet, style, svg
from studies.report.wording import rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The colours that stand out on white first.
_ORDER = (0, 1, 2, 6, 4, 7, 8, 3, 5)
_DASHES = ("-", "--", ":", "-.")
# Inches.
_ROW, _KEY, _LEFT, _RIGHT = 0.21, 0.17, 0.55, 0.15
_PANEL = 2.0
# Values from here on stand on a logarithmic axis, as largest over smallest.
_LOGARITHMIC = 8.0


def gains(rows: Sequence[LabelRow], against: str, title: str) -> str:
    """The mean difference of each row with its interval, and a tick for each task, in points."""
    bars = [(row.label, row.difference) for row in rows if row.difference]
    names = [_in_two(label) for label, _ in bars]
    left = max(extent(line, 8)[0] for name in names for line in name.split("\n")) / 72 + 0.25
    tall = _ROW * (1.5 if any("\n" in name for name in names) else 1) * len(bars)
    height = tall + 0.55
    with style():
        figure = sheet(height)
        axes = figure.add_axes(inches(figure, left, 0.45, WIDTH - left - _RIGHT, tall))
        axes.axvline(0, color=FAINT, linewidth=0.8)
        axes.grid(axis="x")
        for y, (_, difference) in enumerate(bars):
            tasks = [100 * gap for gap in difference.by_task.values()]
            axes.plot(tasks, [y] * len(tasks), "|", color=FAINT, markersize=7, markeredgewidth=0.8)
            if difference.low is not None and difference.high is not None:
                ends = [100 * difference.low, 100 * difference.high]
                axes.plot(ends, [y, y], color=PALETTE[0], linewidth=2.2, solid_capstyle="butt")
            axes.plot([100 * difference.mean], [y], "o", color=PALETTE[0], markersize=5)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlabel(fit_text(f"difference to {against}, points", 72 * (WIDTH - left)))
        return svg(figure, title)


def _in_two(label: str) -> str:
    """A label in two lines, method and pool, where one would be wide."""
    method, _, pool = label.partition(" | ")
    if not pool or extent(fit_text(label, 1e6), 8)[0] <= 1.7 * 72:
        return fit_text(label, 2.3 * 72)
    return f"{fit_text(method, 2.3 * 72)}\n{fit_text(pool, 2.3 * 72)}"


def relevance(points: Sequence[Related], title: str) -> str:
    """Gain in points by relevance, both less the mean, a colour for each pool; diamonds are of own tasks."""
    pools = list(dict.fromkeys(point.pool for point in points))
    with style():
        keys = {pool: _look(i) for i, pool in enumerate(pools)}
        entries = [(pool, {"color": keys[pool][0], "marker": "o", "linestyle": ""}) for pool in pools]
        if any(point.own for point in points):
            own = {"color": FAINT, "marker": "D", "linestyle": ""}
            entries.append(("a member was trained on the task itself", own))
        figure, (axes,) = _panels(1, 2.9, entries)
        axes.axhline(0, color=FAINT, linewidth=0.8)
        axes.axvline(0, color=FAINT, linewidth=0.8)
        axes.grid()
        for pool in pools:
            for own_task, marker in ((False, "o"), (True, "D")):
                these = [point for point in points if point.pool == pool and point.own is own_task]
                places = [point.relevance for point in these], [100 * point.gain for point in these]
                axes.plot(*places, marker, color=keys[pool][0], markersize=5, alpha=0.8, markeredgewidth=0)
        axes.set_xlabel(
            "relevance of the pool: gain in loss of its members alone, nats a token, less the mean"
        )
        axes.set_ylabel("gain, points, less the mean")
        return svg(figure, title)


@dataclass(frozen=True, slots=True)
class Panel:
    """Lines whose y, named `what`, is `factor` times their means; `logarithmic` where far apart."""

    what: str
    lines: Sequence[Line]
    factor: float = 1.0
    logarithmic: bool = False


def curves(panels: Sequence[Panel], key: str, title: str, level: float | None) -> str:
    """Panels side by side against the setting `key`.

    `level` is a value that the first panel shows as a dashed horizontal line, for comparison.
    """
    names = list(dict.fromkeys(line.label for panel in panels for line in panel.lines))
    with style():
        figure, all_axes = _panels(len(panels), _PANEL + 0.3, _entries(names))
        for axes, panel in zip(all_axes, panels, strict=True):
            points = [point for line in panel.lines for point in line.points]
            _draw_lines(axes, panel.lines, names, panel.factor)
            _x_axis(axes, [point.x for point in points], key)
            if panel.logarithmic:
                _spread_y(axes, [panel.factor * point.mean for point in points])
            axes.set_ylabel(panel.what)
        if level is not None:
            all_axes[0].axhline(
                panels[0].factor * level, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1
            )
        return svg(figure, title)


def wild(lines: Sequence[Line], rates: Sequence[float], ranks: Sequence[float], title: str) -> str:
    """Learning rates of model cards below the tuning curve, on the same axis, and ranks beside it."""
    names = [line.label for line in lines]
    height = (_PANEL - 0.1 if lines else 0.0) + 1.75
    with style():
        key = _key_height(_entries(names))
        figure = sheet(height + key)
        wide = 3.75 if ranks else WIDTH - _LEFT - _RIGHT
        tried = [point.x for line in lines for point in line.points]
        if rates or lines:
            low = figure.add_axes(inches(figure, _LEFT, key + 0.45, wide, 1.2))
            _histogram(low, rates, tried)
            low.set_ylabel("adapters")
        if lines:
            top = figure.add_axes(inches(figure, _LEFT, key + 1.9, wide, _PANEL - 0.35), sharex=low)
            _draw_lines(top, lines, names, 100.0)
            top.set_ylabel("value, points")
            top.tick_params(axis="x", labelbottom=False)
        if ranks:
            place = _LEFT + wide + 0.55 if rates or lines else _LEFT
            side = figure.add_axes(inches(figure, place, key + 0.45, WIDTH - place - _RIGHT, height - 0.55))
            _bars(side, ranks)
        _legend(figure, _entries(names))
        return svg(figure, title)


def _panels(
    count: int, height: float, entries: Sequence[tuple[str, Mapping[str, Any]]]
) -> tuple[Figure, list[Axes]]:
    """A figure with panels of equal width side by side, and below them its key."""
    key = _key_height(entries)
    figure = sheet(height + key)
    width = (WIDTH - _RIGHT + 0.05) / count
    axes = [
        figure.add_axes(inches(figure, n * width + _LEFT, key + 0.45, width - _LEFT - 0.05, height - 0.55))
        for n in range(count)
    ]
    _legend(figure, entries)
    return figure, axes


def _entries(names: Sequence[str]) -> list[tuple[str, Mapping[str, Any]]]:
    if len(names) == 0:
        return []
    looks = [_look(i) for i in range(len(names))]
    return [
        (name, {"color": colour, "marker": marker, "linestyle": dash, "markersize": 4, "linewidth": 1.2})
        for name, (colour, marker, dash) in zip(names, looks, strict=True)
    ]


def _look(i: int) -> tuple[str, str, str]:
    """Colour, marker and dash of the i-th line; the first 36 differ."""
    n = len(_ORDER)
    return PALETTE[_ORDER[i % n]], MARKERS[i % n], _DASHES[i // n % len(_DASHES)]


def _columns(entries: Sequence[tuple[str, Mapping[str, Any]]]) -> int:
    widest = max(extent(fit_text(name, 72 * (WIDTH - 1.2)), 8)[0] for name, _ in entries) / 72 + 0.45
    return min(len(entries), max(1, int((WIDTH - 0.3) / widest)))


def _key_height(entries: Sequence[tuple[str, Mapping[str, Any]]]) -> float:
    return _KEY * -(-len(entries) // _columns(entries)) + 0.1 if entries else 0.0


def _legend(figure: Figure, entries: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Names with their looks in rows along the lower edge."""
    from matplotlib.lines import Line2D

    columns = _columns(entries) if entries else 1
    width = (WIDTH - 0.3) / columns
    for n, (name, look) in enumerate(entries):
        x, y = 0.15 + width * (n % columns), _key_height(entries) - _KEY * (n // columns + 0.6)
        line = Line2D(
            [x, x + 0.13, x + 0.26], [y] * 3, markevery=[1], transform=figure.dpi_scale_trans, **look
        )
        figure.add_artist(line)
        figure.text(
            x + 0.34,
            y,
            fit_text(name, 72 * (WIDTH - 1.2)),
            fontsize=8,
            va="center_baseline",
            transform=figure.dpi_scale_trans,
        )


def _draw_lines(axes: Axes, lines: Sequence[Line], names: Sequence[str], factor: float) -> None:
    """Lines with standard errors; hollow points are means of which a cell is not done."""
    axes.grid(axis="y")
    for line in lines:
        colour, marker, dash = _look(names.index(line.label))
        xs, ys = [point.x for point in line.points], [factor * point.mean for point in line.points]
        errors = [factor * (point.error or 0.0) for point in line.points]
        axes.errorbar(xs, ys, errors, fmt="none", ecolor=colour, elinewidth=0.8, alpha=0.5)
        axes.plot(xs, ys, color=colour, linestyle=dash, linewidth=1.2)
        for complete in (True, False):
            these = [n for n, point in enumerate(line.points) if point.whole is complete]
            axes.plot(
                [xs[n] for n in these],
                [ys[n] for n in these],
                marker,
                color=colour,
                markersize=4,
                markerfacecolor=colour if complete else "none",
            )


def _x_axis(axes: Axes, values: Sequence[float], key: str) -> None:
    """An axis with ticks at the values that have room; logarithmic where they are far apart."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    tried = sorted(set(values))
    format_tick: Callable[[float], str] = rate if key == "learning_rate" else number
    spread = bool(tried) and tried[0] > 0 and (key == "learning_rate" or tried[-1] >= _LOGARITHMIC * tried[0])
    if spread:
        axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(FixedLocator(_roomy(tried, axes, spread, format_tick)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value)))
    axes.set_xlabel(fit_text(key.replace("_", " "), 2 * 72))


def _spread_y(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic y where values are positive and far apart, so that small ones are told apart."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if not values or min(values) <= 0 or max(values) < _LOGARITHMIC * min(values):
        return
    axes.set_yscale("log", nonpositive="clip")
    axes.set_ylim(min(values) / 1.3, max(values) * 1.3)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def _roomy(
    tried: Sequence[float], axes: Axes, logarithmic: bool, format_tick: Callable[[float], str]
) -> list[float]:
    """Those of the values whose names keep clear of each other, from the left."""
    if len(tried) < 2:
        return list(tried)
    places = np.log(tried) if logarithmic else np.asarray(tried)
    width = 72 * WIDTH * axes.get_position().width * 0.9
    points = (places - places[0]) / (places[-1] - places[0]) * width
    ticks, end = [], -np.inf
    for value, place in zip(tried, points, strict=True):
        half = extent(format_tick(value), SMALL)[0] / 2
        if place - half >= end:
            ticks.append(value)
            end = place + half + 5
    return ticks


def _histogram(axes: Axes, rates: Sequence[float], tried: Sequence[float]) -> None:
    """Counts of learning rates in four bins a decade, on an axis that also has room for those tried."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    logs = 4 * np.log10(np.array([*rates, *tried]))
    # Round rates such as 1e-4 stand in the middle of a bin.
    middles = np.arange(np.floor(logs.min() + 0.5) - 1, np.ceil(logs.max() - 0.5) + 3)
    edges = 10.0 ** ((middles - 0.5) / 4)
    decades = [10.0**n for n in range(-9, 3) if edges[0] <= 10.0**n <= edges[-1]]
    axes.set_xscale("log")
    axes.hist(list(rates), bins=list(edges), color=PALETTE[3], edgecolor=FAINT, linewidth=0.4)
    axes.grid(axis="y")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(FixedLocator(decades or [min(*rates, *tried), max(*rates, *tried)]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: rate(value)))
    axes.set_xlabel("learning rate in model cards")


def _bars(axes: Axes, ranks: Sequence[float]) -> None:
    """How many adapters have each rank, the smallest at the top."""
    distinct = sorted(set(ranks))
    counts = [sum(value == rank for value in ranks) for rank in distinct]
    axes.barh(range(len(distinct)), counts, color=PALETTE[3], edgecolor=FAINT, linewidth=0.4, height=0.75)
    axes.set_yticks(range(len(distinct)), [number(rank) for rank in distinct])
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    axes.set_ylabel("rank", color=INK)
    axes.set_xlabel("adapters")
    axes.spines["left"].set_color(GRID)
