"""A picture of how members fit together: cosines between them, and the energy that a rank keeps.

In the style of the picture of one adapter (`catalog.pictures.adapter`): one SVG, PNG or PDF file, the same
bytes each time. Colours of cosines span -1 to 1 whatever the members are, so that 0.20 looks like 0.20.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from catalog.errors import UsageError
from catalog.pictures import canvas
from catalog.pictures.canvas import FAINT, GRID, PALETTE, SMALL, TEXT, WIDTH

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

# Names beside the matrix, members whose cosines are written out, and those of which each point is marked.
MOST_NAMES = 40
MOST_NUMBERS = 12
MOST_POINTS = 64
# Below zero and above it; white is 0, and both ends are as far from it.
COSINES = "RdBu_r"
# Inches.
_MARGIN, _BOTTOM, _TOP = 0.15, 0.75, 0.85
_MATRIX, _GAP, _NAME_WIDTH = 3.3, 0.75, 1.35


def merge_picture(
    names: Sequence[str],
    cosines: NDArray[Any],
    energy: Sequence[float],
    ranks: Mapping[float, int],
    path: Path,
) -> None:
    """Writes a picture of a pool: the cosines between its members, and the energy that each rank keeps.

    `cosines` (n, n) are between the n members in the order of `names`; `energy` is the share of the weighted
    sum's energy that rank 1, 2, … keeps, and `ranks` the smallest rank for each share that is marked. Up to
    12 members have their cosines written out, up to 40 a name.

    Raises UsageError for a suffix other than .svg, .png or .pdf and where the extra `plot` is not installed,
    and StorageError where the file cannot be written.
    """
    canvas.check_suffix(path)
    figure = merge_figure(names, cosines, energy, ranks)
    canvas.save(figure, path, "Cosines between members, energy by rank")


def merge_figure(
    names: Sequence[str], cosines: NDArray[Any], energy: Sequence[float], ranks: Mapping[float, int]
) -> Figure:
    """The figure that `merge_picture` writes; raises UsageError as it does."""
    cosines = np.asarray(cosines, dtype=np.float64)
    if cosines.shape != (len(names), len(names)) or not len(names):
        raise UsageError("A picture of a merge requires a name and a row of cosines for each member.")
    with canvas.settings():
        figure = canvas.sheet(_BOTTOM + _MATRIX + _TOP)
        canvas.heading(figure, "How the members fit together", _summary(cosines, ranks))
        left = _draw_cosines(figure, names, cosines)
        _draw_energy(figure, energy, ranks, left + _MATRIX + _GAP)
    return figure


def _summary(cosines: NDArray[np.float64], ranks: Mapping[float, int]) -> str:
    parts = [canvas.count_noun(len(cosines), "member")]
    others = cosines[~np.eye(len(cosines), dtype=bool)]
    if others.size:
        parts.append(f"cosines from {canvas.number(others.min())} to {canvas.number(others.max())}")
    parts += [f"rank {rank} keeps {share:.0%}" for share, rank in ranks.items()]
    return "  ·  ".join(parts)


def _draw_cosines(figure: Figure, names: Sequence[str], cosines: NDArray[np.float64]) -> float:
    """Draws the matrix; returns its left edge in inches."""
    count = len(names)
    step = -(-count // MOST_NAMES)
    size = TEXT if count <= 20 else SMALL - 1.5
    shown = {n: canvas.fit_text(names[n], 72 * _NAME_WIDTH, size) for n in range(0, count, step)}
    labels = {n: f"{name}  {n + 1}" for n, name in shown.items()}
    left = _MARGIN + max(canvas.extent(label, size)[0] for label in labels.values()) / 72 + 0.1
    top = _BOTTOM + _MATRIX
    canvas.write(figure, left, top + 0.09, "Cosine of the updates", va="baseline")
    axes = figure.add_axes(canvas.inches(figure, left, _BOTTOM, _MATRIX, _MATRIX), xticks=[], yticks=[])
    image = axes.imshow(cosines, vmin=-1, vmax=1, cmap=COSINES, aspect="auto")
    cell = _MATRIX / count
    for n, label in labels.items():
        y = top - (n + 0.5) * cell
        canvas.write(figure, left - 0.06, y, label, size=size, ha="right", va="center")
        x = left + (n + 0.5) * cell
        canvas.write(figure, x, _BOTTOM - 0.06, str(n + 1), size=size, ha="center", va="top")
    if count <= MOST_NUMBERS:
        for i, j in np.ndindex(count, count):
            colour = "white" if abs(cosines[i, j]) > 0.6 else canvas.INK
            style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": SMALL, "color": colour}
            axes.text(j, i, f"{cosines[i, j]:z.2f}".replace("-", "−"), parse_math=False, **style)
    place = canvas.inches(figure, left, 0.36, _MATRIX, 0.09)
    bar_axes, ticks = figure.add_axes(place), [-1, -0.5, 0, 0.5, 1]
    bar = figure.colorbar(image, cax=bar_axes, orientation="horizontal", ticks=ticks)
    bar.outline.set_linewidth(0.5)
    return left


def _draw_energy(figure: Figure, energy: Sequence[float], ranks: Mapping[float, int], left: float) -> None:
    """The curve of the energy by rank, with the ranks that keep the marked shares."""
    from matplotlib.ticker import MaxNLocator

    top = _BOTTOM + _MATRIX
    title = canvas.fit_text("Energy of the sum by rank", 72 * (WIDTH - _MARGIN - left))
    canvas.write(figure, left, top + 0.09, title, va="baseline")
    place = canvas.inches(figure, left, _BOTTOM, WIDTH - _MARGIN - left, _MATRIX)
    axes = figure.add_axes(place, ylim=(0, 1.03), xlim=(0, max(len(energy), 1) * 1.02))
    axes.grid(color=GRID, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    marker = "o" if len(energy) <= MOST_POINTS else ""
    axes.plot(range(1, len(energy) + 1), energy, color=PALETTE[0], marker=marker, markersize=3, linewidth=1.2)
    for share, rank in ranks.items() if energy else ():
        axes.plot([0, rank, rank], [share, share, 0], color=FAINT, linewidth=0.8, linestyle=":")
        right = rank > 0.6 * len(energy)
        axes.annotate(
            f"{share:.0%}: rank {rank}",
            (rank, share),
            (-5 if right else 5, -10),
            textcoords="offset points",
            fontsize=SMALL,
            ha="right" if right else "left",
            parse_math=False,
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("rank", fontsize=SMALL, color=FAINT, labelpad=3)
