"""A map of many adapters: one point each, coloured by a category or a number, with names where they fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from catalog.errors import UsageError
from catalog.pictures import canvas
from catalog.pictures.canvas import COLOUR_MAP, FAINT, MARKERS, OTHER, PALETTE, SMALL, UNKNOWN, WIDTH
from catalog.pictures.positions import LEADER, leader, name_places

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Names are written next to at most this many points, and more points than this are pixels in an SVG.
MOST_NAMES = 60
MOST_VECTORS = 2000
# Up to this many points each category has its own marker; above, points cover each other in random order.
MOST_MARKERS = 500
_HUGE = 1e150

# Inches.
_HEIGHT, _LEFT, _BOTTOM, _TOP, _LEGEND = 6.2, 0.4, 0.4, 0.6, 1.7
# 1/72 inch.
_BOX = 72 * (WIDTH - _LEFT - _LEGEND - 0.3), 72 * (_HEIGHT - _BOTTOM - _TOP)
_NAME_WIDTH = 1.4 * 72


@dataclass(frozen=True)
class _Group:
    """Points of the same appearance; `members` are their indices."""

    label: str
    members: NDArray[np.intp]
    colour: str
    marker: str


def map_picture(
    points: NDArray[Any],
    names: Sequence[str],
    colours: Sequence[str | float | None],
    title: str,
    legend_title: str,
    path: Path,
    labels: bool,
) -> None:
    """Writes a map of n adapters: `points` (n, 2) with their names, coloured by `colours`.

    `colours` are all words (the nine most frequent have a colour and a marker, the rest is grey) or all
    numbers (a colour bar); None and numbers that are not finite are unknown, and light grey. With `labels`
    the names stand next to up to 60 points; a name that finds no free place is left out, and the picture
    says how many were. A point that is not finite has no place and is counted below the map. Both axes have
    the same scale and no unit (`catalog.pictures.positions` explains the distances). Above 2,000 points they
    are pixels inside the SVG or PDF. Above 500 all are circles that cover each other in random order, so that
    no colour hides another. In an SVG of vectors each point has the name and value as its title, and a link
    to its repository on the Hub.

    Raises UsageError for a suffix other than .svg, .png or .pdf, for no points, for lengths that differ
    and for a mixture of words and numbers, and StorageError where the file cannot be written.
    """
    canvas.check_suffix(path)
    figure = map_figure(points, names, colours, title, legend_title, labels)
    links = {}
    for name, colour in zip(names, colours, strict=True) if len(points) <= MOST_VECTORS else ():
        value = canvas.number(colour) if isinstance(colour, (int, float)) else colour
        links[address(name)] = name if value is None else f"{name} ({legend_title} {value})"
    canvas.save(figure, path, title, links)


def map_figure(
    points: NDArray[Any],
    names: Sequence[str],
    colours: Sequence[str | float | None],
    title: str,
    legend_title: str,
    labels: bool,
) -> Figure:
    """The figure that `map_picture` writes; raises UsageError as it does."""
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points) == len(names) == len(colours):
        raise UsageError(
            "A map requires one point in two dimensions, one name and one colour for each adapter."
        )
    placed = np.flatnonzero((np.abs(points) < _HUGE).all(axis=1)).tolist()
    if not placed:
        raise UsageError("The map is empty: no adapter has a place on it.")
    kind = _kind(colours)
    with canvas.settings():
        figure = canvas.sheet(_HEIGHT)
        canvas.heading(figure, title, _summary(len(points), len(placed)))
        axes, places = _axes(figure, points[placed])
        point_colours = [colours[i] for i in placed]
        # Pixels lead nowhere.
        vectors = len(placed) <= MOST_VECTORS
        urls = np.array([address(names[i]) if vectors else None for i in placed], dtype=object)
        if kind == "numbers":
            _draw_numbers(figure, axes, places, point_colours, urls, legend_title)
        else:
            _draw_groups(figure, axes, places, point_colours, urls, legend_title if kind == "words" else "")
        if labels and len(placed) <= MOST_NAMES:
            _draw_names(figure, places, [names[i] for i in placed])
    return figure


def address(name: str) -> str:
    """Where an adapter is on the Hub, by its short name."""
    repository, _, folder = name.partition(":")
    place = f"{repository}/tree/main/{folder}" if folder else repository
    return f"https://huggingface.co/{quote(place, errors='replace')}"


def _kind(colours: Sequence[str | float | None]) -> Literal["words", "numbers", "nothing"]:
    values = [colour for colour in colours if colour is not None]
    words = sum(isinstance(colour, str) for colour in values)
    if 0 < words < len(values):
        raise UsageError("A map is coloured by words or by numbers, not by both.")
    return "nothing" if not values else "words" if words else "numbers"


def _summary(count: int, placed: int) -> str:
    text = canvas.count_noun(count, "adapter")
    return text if placed == count else f"{text}, {count - placed:,} of them without a place on the map"


def _axes(figure: Figure, points: NDArray[np.float64]) -> tuple[Axes, NDArray[np.float64]]:
    """Axes in 1/72 inch, and the points on them, with one scale for both directions."""
    box = np.array(_BOX)
    axes = figure.add_axes(canvas.inches(figure, _LEFT, _BOTTOM, box[0] / 72, box[1] / 72))
    axes.set(xlim=(0, box[0]), ylim=(0, box[1]), xticks=[], yticks=[])
    axes.set_xlabel("dimension 1 (no unit)", fontsize=SMALL, color=FAINT, labelpad=5)
    axes.set_ylabel("dimension 2 (no unit)", fontsize=SMALL, color=FAINT, labelpad=5)
    low, high = points.min(axis=0), points.max(axis=0)
    unit = float(((high - low) / box).max()) / 0.9 or 1.0
    return axes, (points - (low / 2 + high / 2)) / unit + box / 2


def _look(count: int) -> dict[str, Any]:
    """Size, edge and transparency for this number of points."""
    size = float(np.clip(34 * (100 / count) ** 0.55, 0.8, 34))
    return {
        "s": size,
        "alpha": 0.9 if count <= 500 else 0.6,
        "linewidths": 0.4 if count <= 500 else 0,
        "rasterized": count > MOST_VECTORS,
    }


def _order(count: int) -> NDArray[np.intp]:
    """The order in which points are drawn: random, but the same each time."""
    return np.random.default_rng(0).permutation(count)


def _draw_numbers(
    figure: Figure,
    axes: Axes,
    points: NDArray[np.float64],
    colours: Sequence[Any],
    urls: NDArray[np.object_],
    legend_title: str,
) -> None:
    values = np.array([np.nan if colour is None else float(colour) for colour in colours])
    finite = np.isfinite(values)
    look = _look(len(points))
    axes.scatter(*points[~finite].T, color=UNKNOWN, edgecolors="white", urls=urls[~finite], **look)
    top = _draw_legend_title(figure, legend_title)
    x = WIDTH - _LEGEND
    if finite.any():
        colour_map, scale, _ = canvas.colour_scale(values[finite])
        order = _order(len(colour_map))
        look |= {"c": colour_map[order], "norm": scale, "cmap": COLOUR_MAP, "edgecolors": "white"}
        axes.scatter(*points[finite][order].T, urls=urls[finite][order], **look)
        canvas.colour_bar(figure, (x, top - 2.6, 0.14, 2.5), values[finite])
    if not finite.all():
        unknown = _Group("unknown", np.flatnonzero(~finite), UNKNOWN, "o")
        _draw_entry(figure, x, top - 3.0, unknown)


def _draw_groups(
    figure: Figure,
    axes: Axes,
    points: NDArray[np.float64],
    colours: Sequence[Any],
    urls: NDArray[np.object_],
    legend_title: str,
) -> None:
    from matplotlib.colors import to_rgba

    groups = _groups(colours)
    look = _look(len(points))
    if len(points) <= MOST_MARKERS:
        for group in reversed(groups):
            axes.scatter(
                *points[group.members].T,
                color=group.colour,
                edgecolors="white",
                marker=group.marker,
                urls=urls[group.members],
                **look,
            )
    else:
        groups = [replace(group, marker="o") for group in groups]
        shade = np.empty((len(points), 4))
        for group in groups:
            shade[group.members] = to_rgba(group.colour)
        order = _order(len(points))
        axes.scatter(*points[order].T, color=shade[order], urls=urls[order], **look)
    if legend_title:
        y = _draw_legend_title(figure, legend_title)
        for group in groups:
            y -= 0.2
            _draw_entry(figure, WIDTH - _LEGEND, y, group)


def _groups(colours: Sequence[str | None]) -> list[_Group]:
    """The most frequent categories, then all others together, then the points without one."""
    counts = Counter(colour for colour in colours if colour is not None)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    coloured = ranked[: len(PALETTE)]
    slots = {word: slot for slot, word in enumerate(coloured)}
    other_group, unknown = len(coloured), len(coloured) + 1
    slot = np.array([unknown if c is None else slots.get(c, other_group) for c in colours], dtype=np.intp)
    looks = [
        *((word, PALETTE[i], MARKERS[i]) for i, word in enumerate(coloured)),
        (f"{len(ranked) - len(coloured):,} others", OTHER, "o"),
        ("unknown" if counts else "", UNKNOWN if counts else PALETTE[0], "o"),
    ]
    return [
        _Group(label, members, colour, marker)
        for i, (label, colour, marker) in enumerate(looks)
        if (members := np.flatnonzero(slot == i)).size
    ]


def _draw_legend_title(figure: Figure, text: str) -> float:
    """Writes the title of the legend; returns the height in inches where its entries begin."""
    y = _HEIGHT - _TOP - 0.11
    canvas.write(figure, WIDTH - _LEGEND, y, canvas.fit_text(text, 72 * (_LEGEND - 0.15)))
    return y


def _draw_entry(figure: Figure, x: float, y: float, group: _Group) -> None:
    from matplotlib.lines import Line2D

    mark = Line2D(
        [x + 0.07],
        [y + 0.035],
        transform=figure.dpi_scale_trans,
        marker=group.marker,
        color=group.colour,
        markersize=5.5,
        markeredgewidth=0,
        linestyle="",
    )
    figure.add_artist(mark)
    count = f" ({len(group.members):,})"
    room = 72 * (_LEGEND - 0.35) - canvas.extent(count, SMALL)[0]
    canvas.write(figure, x + 0.2, y, canvas.fit_text(group.label, room, SMALL) + count, size=SMALL)


def _draw_names(figure: Figure, anchors: NDArray[np.float64], names: Sequence[str]) -> None:
    """Names next to their points, as many as fit."""
    from matplotlib.lines import Line2D

    texts = [canvas.fit_text(name, _NAME_WIDTH, SMALL) for name in names]
    sizes = [canvas.extent(text, SMALL) for text in texts]
    corners = name_places(anchors, [(width + 1, height) for width, height in sizes], _BOX)
    origin = np.array([_LEFT, _BOTTOM])
    for anchor, text, size, corner in zip(anchors, texts, sizes, corners, strict=True):
        if corner is None:
            continue
        place = origin + np.array(corner) / 72
        canvas.write(figure, place[0], place[1] + 0.25 * size[1] / 72, text, size=SMALL)
        end = leader(anchor, np.array([*corner, corner[0] + size[0], corner[1] + size[1]]))
        if np.hypot(*(end - anchor)) > LEADER:
            line = np.array([origin + anchor / 72, origin + end / 72]).T
            style: dict[str, Any] = {"color": FAINT, "linewidth": 0.4, "zorder": 1}
            figure.add_artist(Line2D(*line, transform=figure.dpi_scale_trans, **style))
    missing = sum(corner is None for corner in corners)
    if missing:
        text = f"{canvas.count_noun(missing, 'name')} without room"
        canvas.write(figure, WIDTH - _LEGEND, _BOTTOM, text, size=SMALL, color=FAINT)
