"""A picture of one adapter: the strength and rank of its changes by layer and module of the base model.

It is one SVG, PNG or PDF file, made without a display and reproducible byte for byte. Names from the Hub are
drawn as they are, with escapes for characters that cannot be drawn. A map of many is in `catalog.pictures`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from catalog.adapters import layer_of
from catalog.errors import UsageError
from catalog.pictures import canvas
from catalog.pictures.canvas import COLOUR_MAP, FAINT, GRID, PALETTE, SMALL, TEXT, WIDTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The order in which a layer of a transformer applies its projections; everything else by name below them.
_ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_LAST = ("embed_tokens", "lm_head")
MOST_ROWS = 10
# Layers from first to last are drawn one column each, including unchanged ones, up to this many columns.
_MOST_GAPS = 300
# A singular value below this part of the largest is zero up to rounding.
_NOISE = 1e-6
_HUGE = 1e150
# Inches.
_MARGIN, _BOTTOM, _TOP = 0.15, 1.05, 0.85
_SPECTRUM, _STABLE, _GAP = 1.75, 1.15, 0.16
_NO_LAYER = 0.32
_NO_MODULE = "#EEEEEE"
_HATCHED: dict[str, Any] = {"facecolor": "white", "edgecolor": "#D55E00", "hatch": "//////", "linewidth": 0.5}


@dataclass(frozen=True)
class _ModuleGrid:
    """Modules by row (module type) and column (layer, -1 for none).

    `norm` is ||s B A|| and `ratios` the singular values over the largest, NaN where not finite or zero.
    """

    types: tuple[str, ...]
    layers: tuple[int, ...]
    row: NDArray[np.int64]
    column: NDArray[np.int64]
    norm: NDArray[np.float64]
    ratios: NDArray[np.float64]
    stable_rank: NDArray[np.float64]

    @property
    def has_no_layer(self) -> bool:
        """Whether a module belongs to no layer."""
        return bool((self.column < 0).any())

    def cells(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Norms (rows, 1 + layers) with the modules of no layer first, NaN without module; and the cells
        that hold a module that is not finite.
        """
        shape = len(self.types), 1 + len(self.layers)
        squares, broken, filled = np.zeros(shape), np.zeros(shape, bool), np.zeros(shape, bool)
        finite = np.isfinite(self.norm)
        where = self.row, self.column + 1
        np.add.at(squares, (where[0][finite], where[1][finite]), self.norm[finite] ** 2)
        broken[where[0][~finite], where[1][~finite]] = True
        filled[where] = True
        return np.where(filled & ~broken, np.sqrt(squares), np.nan), broken


def adapter_picture(
    name: str, modules: Sequence[str], spectrum: NDArray[Any], scalings: Sequence[float], path: Path
) -> None:
    """Writes a picture of one adapter: the norm of its update by layer and module type, and its spectrum.

    `modules` are the n names in the base model, `spectrum` (n, 1 + k) holds ||B A|| (Frobenius) and the k
    leading singular values of B A of each, `scalings` the n factors s. Left, ||s B A|| of each layer (the
    first number in a module's name) and module type (the last part of it): one cell a module, or the root of
    the sum of squares where several share a cell. Right, the singular values over the largest, median and
    range over the modules of a type, and the stable rank ||B A||^2 / sigma_1^2. A module that is not finite
    is hatched and counts nowhere else; a module that is zero has no spectrum. Above 10 module types the
    rarer ones share a row.

    Raises UsageError for a suffix other than .svg, .png or .pdf, for no modules and for lengths that
    differ, and StorageError where the file cannot be written.
    """
    canvas.check_suffix(path)
    figure = adapter_figure(name, modules, spectrum, scalings)
    canvas.save(figure, path, f"{name}: norm by layer and module type, spectrum")


def adapter_figure(
    name: str, modules: Sequence[str], spectrum: NDArray[Any], scalings: Sequence[float]
) -> Figure:
    """The figure that `adapter_picture` writes; raises UsageError as it does."""
    spectrum = np.asarray(spectrum, dtype=np.float64)
    if not modules:
        raise UsageError(f"{name} cannot be drawn: it contains no complete LoRA module.")
    if spectrum.ndim != 2 or spectrum.shape[1] < 2 or not len(spectrum) == len(scalings) == len(modules):
        raise UsageError(
            "A picture requires a row of norm and singular values and a scaling for each module."
        )
    grid = _grid(modules, spectrum, np.asarray(scalings, dtype=np.float64))
    row = float(np.clip(3.3 / len(grid.types), 0.36, 0.7))
    height = row * len(grid.types)
    with canvas.settings():
        figure = canvas.sheet(_BOTTOM + height + _TOP)
        canvas.heading(figure, name, _summary(grid, scalings))
        labels = [canvas.fit_text(kind, 72 * 1.5) for kind in grid.types]
        left = _MARGIN + max(canvas.extent(label, TEXT)[0] for label in labels) / 72 + 0.1
        for i, label in enumerate(labels):
            canvas.write(
                figure, left - 0.08, _BOTTOM + height - (i + 0.5) * row, label, ha="right", va="center"
            )
        right = WIDTH - _MARGIN - _STABLE - _SPECTRUM
        _draw_norms(figure, grid, (left, _BOTTOM, right - _GAP - left, height))
        _draw_spectra(figure, grid, right, row)
    return figure


def _grid(
    modules: Sequence[str], spectrum: NDArray[np.float64], scalings: NDArray[np.float64]
) -> _ModuleGrid:
    kinds = [_module_type(module) for module in modules]
    types = _rows(Counter(kinds))
    rows = {kind: row for row, kind in enumerate(types)}
    numbers = [layer_of(module) for module in modules]
    layers = _columns({number for number in numbers if number is not None})
    columns = {layer: column for column, layer in enumerate(layers)}
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        norm = np.abs(scalings) * spectrum[:, 0]
        finite = np.isfinite(spectrum).all(axis=1) & (norm < _HUGE)
        ratios = spectrum[:, 1:] / spectrum[:, 1:2]
        stable_rank = (spectrum[:, 0] / spectrum[:, 1]) ** 2
    ratios = np.where(ratios > _NOISE, np.minimum(ratios, 1), 0)
    zero = ~(finite & (spectrum[:, 1] > 0))
    ratios[zero], stable_rank[zero] = np.nan, np.nan
    other = len(types) - 1
    return _ModuleGrid(
        types=types,
        layers=layers,
        row=np.array([rows.get(kind, other) for kind in kinds]),
        column=np.array([-1 if number is None else columns[number] for number in numbers]),
        norm=np.where(finite, norm, np.nan),
        ratios=ratios,
        stable_rank=stable_rank,
    )


def _module_type(module: str) -> str:
    """The last part of a module's name that is not a number, with the numbers after it: q_proj, net.0."""
    parts = module.split(".")
    last = max((i for i, part in enumerate(parts) if not part.isdigit()), default=0)
    return ".".join(parts[last:])


def _rows(counts: Counter[str]) -> tuple[str, ...]:
    """The module types that have a row, in the order of the picture."""

    def place(kind: str) -> tuple[int, str]:
        if kind in _ORDER:
            return _ORDER.index(kind), kind
        return len(_ORDER) + (1 + _LAST.index(kind) if kind in _LAST else 0), kind

    if len(counts) <= MOST_ROWS:
        return tuple(sorted(counts, key=place))
    known_kinds = set(_ORDER) | set(_LAST)
    kinds = sorted(counts, key=lambda kind: (kind not in known_kinds, -counts[kind], kind))[: MOST_ROWS - 1]
    return (*sorted(kinds, key=place), f"{len(counts) - len(kinds)} other types")


def _columns(layers: set[int]) -> tuple[int, ...]:
    """All layers from the first to the last, or only the existing ones if most would be missing."""
    if layers and max(layers) - min(layers) < _MOST_GAPS:
        return tuple(range(min(layers), max(layers) + 1))
    return tuple(sorted(layers))


def _summary(grid: _ModuleGrid, scalings: Sequence[float]) -> str:
    """A summary of the picture, in one line."""
    finite = grid.norm[np.isfinite(grid.norm)]
    parts = [canvas.count_noun(len(grid.norm), "module")]
    touched = len({int(column) for column in grid.column if column >= 0})
    if touched:
        parts.append(canvas.count_noun(touched, "layer"))
    numbers = [float(s) for s in scalings if math.isfinite(s)]
    if numbers and min(numbers) == max(numbers):
        parts.append(f"scaling s = {canvas.number(numbers[0])}")
    elif numbers:
        parts.append(f"scaling s from {canvas.number(min(numbers))} to {canvas.number(max(numbers))}")
    if len(finite):
        parts.append(f"norm of the whole update {canvas.number(math.hypot(*finite))}")
    if len(finite) < len(grid.norm):
        parts.append(f"{len(grid.norm) - len(finite)} not finite")
    if zero := int((finite == 0).sum()):
        parts.append(f"{zero} zero")
    return "  ·  ".join(parts)


def _draw_norms(figure: Figure, grid: _ModuleGrid, place: canvas.Place) -> None:
    x, y, width, height = place
    canvas.write(figure, x, y + height + 0.09, "Norm ‖s·B·A‖ of the update", va="baseline")
    norms, broken = grid.cells()
    # The column of no layer stands apart, alone where there are no layers, and only where it holds something.
    first = 0 if grid.has_no_layer else 1
    norms, broken = norms[:, first:], broken[:, first:]
    finite = norms[np.isfinite(norms)]
    strip = 0.0
    if grid.has_no_layer:
        strip = _NO_LAYER if grid.layers else width
        axes = _cells(figure, (x, y, strip, height), norms[:, :1], broken[:, :1], finite)
        axes.set_xticks([0], labels=["none"])
        strip += 0.06
    if grid.layers:
        layers = slice(1 - first, None)
        place = x + strip, y, width - strip, height
        axes = _cells(figure, place, norms[:, layers], broken[:, layers], finite)
        _layer_ticks(axes, grid.layers)
    canvas.write(figure, x + width / 2, y - 0.36, "layer", ha="center", va="baseline")
    if finite.size:
        canvas.colour_bar(figure, (x, y - 0.62, width * 0.62, 0.1), finite)
        shared = len(set(zip(grid.row.tolist(), grid.column.tolist(), strict=True))) < len(grid.row)
        text = "Frobenius norm (no unit)" + (", of the modules of a cell together" if shared else "")
        canvas.write(figure, x, y - 0.97, text, size=SMALL, va="baseline", color=FAINT)
    empty = bool(np.isnan(norms[~broken]).any())
    _draw_key(figure, x + width * 0.68, y - 0.62, empty, bool(broken.any()))


def _cells(
    figure: Figure,
    place: canvas.Place,
    norms: NDArray[np.float64],
    broken: NDArray[np.bool_],
    scale_of: NDArray[np.float64],
) -> Axes:
    """A heat map of (rows, columns), the first row on top, coloured as `scale_of` says."""
    from matplotlib.patches import Rectangle

    axes = figure.add_axes(canvas.inches(figure, *place), facecolor=_NO_MODULE)
    rows, columns = norms.shape
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), xticks=[], yticks=[])
    if scale_of.size:
        colour_map, scale, _ = canvas.colour_scale(scale_of)
        mesh = axes.pcolormesh(
            np.arange(columns + 1) - 0.5,
            np.arange(rows + 1) - 0.5,
            np.ma.masked_invalid(np.maximum(norms, colour_map.min())),
            norm=scale,
            cmap=COLOUR_MAP,
            # White lines between cells if they are wide enough, else no gaps.
            edgecolors="white" if columns <= 64 else "face",
            linewidth=0.4 if columns <= 64 else 0.1,
        )
        mesh.set_rasterized(norms.size > 4000)
    for row, column in np.argwhere(broken):
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **_HATCHED))
    for row in range(1, rows):
        axes.axhline(row - 0.5, color="white", linewidth=1)
    return axes


def _layer_ticks(axes: Axes, layers: tuple[int, ...]) -> None:
    """Layer numbers at most every tenth of the width, the first and round ones."""
    step = next(s for s in (1, 2, 4, 5, 8, 10, 20, 40, 50, 100, 10**6) if len(layers) <= 12 * s)
    if layers[-1] - layers[0] == len(layers) - 1:
        at = [i for i, layer in enumerate(layers) if layer % step == 0]
    else:
        at = list(range(0, len(layers), step))
    axes.set_xticks(at, labels=[str(layers[i]) for i in at])


def _draw_key(figure: Figure, x: float, y: float, empty: bool, broken: bool) -> None:
    """The legend of cells without a colour, if there are any."""
    from matplotlib.patches import Rectangle

    entries = [("no module", empty), ("not finite", broken)]
    for text in [text for text, present in entries if present]:
        look: dict[str, Any] = {"facecolor": _NO_MODULE, "edgecolor": FAINT, "linewidth": 0.4}
        if text == "not finite":
            look = _HATCHED
        patch = Rectangle((x, y), 0.16, 0.1, transform=figure.dpi_scale_trans, **look)
        figure.add_artist(patch)
        canvas.write(figure, x + 0.22, y + 0.01, text, size=SMALL, va="baseline")
        y -= 0.2


def _draw_spectra(figure: Figure, grid: _ModuleGrid, x: float, row: float) -> None:
    """One small picture a module type: median and range of the singular values over the largest."""
    top = _BOTTOM + row * len(grid.types)
    canvas.write(figure, x, top + 0.09, "Spectrum σᵢ / σ₁ of B·A", va="baseline")
    canvas.write(figure, x + _SPECTRUM + 0.22, top + 0.09, "Stable rank", va="baseline")
    measured = np.isfinite(grid.stable_rank)
    count = 1 + int(np.flatnonzero((grid.ratios[measured] > 0).any(axis=0)).max(initial=0))
    for i in range(len(grid.types)):
        y = top - (i + 1) * row
        axes = _spectrum_axes(figure, (x, y + 0.05, _SPECTRUM, row - 0.1), count, i == len(grid.types) - 1)
        in_row = measured & (grid.row == i)
        if in_row.any() and len(grid.types) > 1:
            everywhere = np.median(grid.ratios[measured, :count], axis=0)
            axes.plot(range(1, count + 1), everywhere, color=FAINT, linewidth=0.8, linestyle=":")
        if in_row.any():
            _draw_spectrum(axes, grid.ratios[in_row, :count])
        text = _range(grid.stable_rank[in_row]) if in_row.any() else "–"
        canvas.write(figure, x + _SPECTRUM + 0.22, y + row / 2, text, size=SMALL, va="center")
    canvas.write(figure, x + _SPECTRUM / 2, _BOTTOM - 0.36, "index i of the singular value", ha="center")
    notes = ("● median and ▮ range of a module type", "‧‧‧ median of all modules")
    for line, note in enumerate(notes[: 2 if len(grid.types) > 1 else 1]):
        canvas.write(figure, x, _BOTTOM - 0.62 - 0.175 * line, note, size=SMALL, color=FAINT)
    canvas.write(
        figure, x, _BOTTOM - 0.97, "stable rank ‖B·A‖² / σ₁²: median (range)", size=SMALL, color=FAINT
    )


def _spectrum_axes(figure: Figure, place: canvas.Place, count: int, lowest: bool) -> Axes:
    """Axes for ratios from 0 to 1 by index; the lowest of the column has the numbers."""
    axes = figure.add_axes(canvas.inches(figure, *place))
    axes.set(xlim=(0.5, count + 0.5), ylim=(-0.06, 1.06), xticks=range(1, count + 1), yticks=[0, 1])
    axes.tick_params(
        labelbottom=lowest, bottom=False, labelright=lowest, labelleft=False, left=False, pad=2.5
    )
    axes.spines[["top", "left", "right", "bottom"]].set_visible(False)
    for level in (0, 0.5, 1):
        axes.axhline(level, color=GRID, linewidth=0.5, zorder=0)
    return axes


def _draw_spectrum(axes: Axes, ratios: NDArray[np.float64]) -> None:
    index = np.arange(1, ratios.shape[1] + 1)
    axes.vlines(index, ratios.min(axis=0), ratios.max(axis=0), color=PALETTE[3], linewidth=4)
    axes.plot(index, np.median(ratios, axis=0), color=PALETTE[0], linewidth=0.8, marker="o", markersize=2.6)


def _range(values: NDArray[np.float64]) -> str:
    """Median and range: 1.52 (1.20–2.13)."""
    low, middle, high = float(values.min()), float(np.median(values)), float(values.max())
    digits = 2 if high < 10 else 1
    text = f"{middle:.{digits}f}"
    return text if len(values) == 1 else f"{text} ({low:.{digits}f}–{high:.{digits}f})"
