"""The plots of a study's report, each as an <svg> element: gains, relevance, curves, what the wild uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from catalog.pictures import FAINT, GRID, INK, MARKERS, PALETTE, SMALL, extent, fit_text, number
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
_ROW, _KEY = 0.21, 0.19
_PANEL = 2.0
# Ranks that have a bar of their own in the room of a picture.
_BARS = 12
# Values from here on stand on a logarithmic axis, as largest over smallest.
_LOGARITHMIC = 8.0


def gains(rows: Sequence[LabelRow], against: str, title: str) -> str:
    """The mean difference of each row with its interval, and a tick for each task, in points."""
    bars = [(row.label, row.difference) for row in rows if row.difference]
    names = [_in_two(label) for label, _ in bars]
    tall = _ROW * (1.5 if any("\n" in name for name in names) else 1) * len(bars)
    with style():
        figure = _keyed_sheet(tall + 0.55, ())
        axes = figure.subplots()
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
        axes.set_xlabel(fit_text(f"difference to {against}, points", 72 * (WIDTH - 2.7)))
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
        figure = _keyed_sheet(2.9, entries)
        axes = figure.subplots()
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
        figure = _keyed_sheet(_PANEL + 0.3, _entries(names))
        all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, panel in zip(all_axes, panels, strict=True):
            points = [point for line in panel.lines for point in line.points]
            _draw_lines(axes, panel.lines, names, panel.factor)
            _x_axis(axes, [point.x for point in points], key, WIDTH / len(panels))
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
    rows = [*([["top"]] if lines else []), *([["low"]] if rates or lines else [])]
    mosaic: list[Any] = [[*row, "side"] for row in rows or [[]]] if ranks else rows
    widths = [3.75, 1.7] if ranks and rows else [1]
    heights = [_PANEL, 1.65][-len(mosaic) :]
    with style():
        figure = _keyed_sheet((_PANEL - 0.1 if lines else 0.0) + 1.75, _entries(names))
        axes = figure.subplot_mosaic(mosaic, width_ratios=widths, height_ratios=heights)
        tried = [point.x for line in lines for point in line.points]
        if "top" in axes:
            axes["top"].sharex(axes["low"])
        if "low" in axes:
            _histogram(axes["low"], rates, tried)
            axes["low"].set_ylabel("adapters")
        if "top" in axes:
            _draw_lines(axes["top"], lines, names, 100.0)
            axes["top"].set_ylabel("value, points")
            axes["top"].tick_params(axis="x", labelbottom=False)
        if "side" in axes:
            _bars(axes["side"], ranks)
        return svg(figure, title)


def _keyed_sheet(height: float, entries: Sequence[tuple[str, Mapping[str, Any]]]) -> Figure:
    """A sheet that matplotlib lays out, of this height and that of its key: names with their looks below."""
    from matplotlib.lines import Line2D

    room = 72 * (WIDTH - 1.2)
    names = [fit_text(name, room) for name, _ in entries]
    widest = max((extent(name, 8)[0] for name in names), default=room) / 72 + 0.45
    columns = max(1, int((WIDTH - 0.3) / widest))
    figure = sheet(height + _KEY * -(-len(names) // columns))
    figure.set_layout_engine("constrained")
    if names:
        looks = [Line2D([], [], label=name, **look) for name, (_, look) in zip(names, entries, strict=True)]
        figure.legend(
            handles=looks,
            loc="outside lower left",
            ncols=columns,
            fontsize=8,
            handlelength=1.5,
            columnspacing=1.2,
        )
    return figure


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


def _x_axis(axes: Axes, values: Sequence[float], key: str, width: float) -> None:
    """An axis with ticks at the values that have room; logarithmic where they are far apart."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    tried = sorted(set(values))
    format_tick: Callable[[float], str] = rate if key == "learning_rate" else number
    spread = bool(tried) and tried[0] > 0 and (key == "learning_rate" or tried[-1] >= _LOGARITHMIC * tried[0])
    if spread:
        axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(FixedLocator(_roomy(tried, width, spread, format_tick)))
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
    tried: Sequence[float], width: float, logarithmic: bool, format_tick: Callable[[float], str]
) -> list[float]:
    """Those of the values whose names keep clear of each other, from the left."""
    if len(tried) < 2:
        return list(tried)
    places = np.log(tried) if logarithmic else np.asarray(tried)
    points = (places - places[0]) / (places[-1] - places[0]) * 72 * (width - 0.7) * 0.9
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
    """How many adapters have each rank, the smallest at the top; of many ranks the rarest have one bar."""
    times = Counter(ranks)
    distinct = sorted(times)
    if len(distinct) > _BARS:
        distinct = sorted(sorted(times, key=lambda rank: (-times[rank], rank))[: _BARS - 1])
    counts, names = [times[rank] for rank in distinct], [number(rank) for rank in distinct]
    if len(distinct) < len(times):
        counts.append(len(ranks) - sum(counts))
        names.append(f"{len(times) - len(distinct)} others")
    axes.barh(range(len(names)), counts, color=PALETTE[3], edgecolor=FAINT, linewidth=0.4, height=0.75)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    axes.set_ylabel("rank", color=INK)
    axes.set_xlabel("adapters")
    axes.spines["left"].set_color(GRID)
