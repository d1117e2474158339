"""The parts of every picture: text that is safe to draw, colours for all kinds of colour vision, saving.

Pictures are made without a display and without pyplot. matplotlib's global settings are restored after each,
and a user's settings (a matplotlibrc) are ignored. Text from the Hub is never read as TeX.
"""

from __future__ import annotations

import html
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.errors import StorageError, UsageError
from catalog.extras import require_extra
from catalog.files import replace_file

if TYPE_CHECKING:
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties
    from matplotlib.text import Text
    from numpy.typing import NDArray

Place = tuple[float, float, float, float]

SUFFIXES = (".svg", ".png", ".pdf")
# Inches, and the pixels of an inch in a PNG and in the parts of an SVG that are pixels: 1,600 pixels wide.
WIDTH = 8.0
RESOLUTION = 200
# Sizes of text in points.
TITLE, TEXT, SMALL = 10.0, 8.0, 7.0

# Paul Tol, "Colour Schemes", SRON/EPS/TN/09-002, section 2, scheme "muted": distinct for all kinds of colour
# vision. The markers repeat the information, for print without colour.
PALETTE = (
    "#332288",
    "#CC6677",
    "#117733",
    "#88CCEE",
    "#882255",
    "#DDCC77",
    "#44AA99",
    "#AA4499",
    "#999933",
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
# Categories without a separate colour, and points without a value.
OTHER, UNKNOWN = "#8A8A8A", "#CFCFCF"
INK = "#222222"
FAINT = "#767676"
GRID = "#DDDDDD"
# One lightness from end to end, so that it survives a copy in grey.
COLOUR_MAP = "viridis"

_FONT = "DejaVu Sans"
_ELLIPSIS = "…"
_LONGEST = 300
# A ratio of largest to smallest from which colours follow the logarithm.
_LOGARITHMIC = 8.0
_HUGE = 1e150
_LINK = re.compile(r'<a xlink:href="([^"]*)"[^>]*>')


def check_suffix(path: Path) -> str:
    """The suffix of a picture's file in lower case; raises UsageError if it is not a supported format."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(
            f"{path.name!r} does not end in a supported format; use one of {', '.join(SUFFIXES)}."
        )
    return suffix


@contextmanager
def settings() -> Iterator[None]:
    """matplotlib's defaults with a few changes, for the duration of a `with`; not thread-safe.

    Raises UsageError where the extra `plot` is not installed.
    """
    require_extra("plot", "A picture")
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "font.family": [_FONT],
                "font.size": TEXT,
                "axes.linewidth": 0.6,
                "axes.edgecolor": FAINT,
                "hatch.linewidth": 0.7,
                "svg.hashsalt": "loradex",
                "text.color": INK,
                "xtick.labelsize": SMALL,
                "ytick.labelsize": SMALL,
                "xtick.major.width": 0.6,
                "ytick.major.width": 0.6,
                "xtick.major.size": 2.5,
                "ytick.major.size": 2.5,
            }
        )
        yield


def sheet(height: float) -> Figure:
    """An empty white figure of WIDTH x height inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def inches(
    figure: Figure, x: float, y: float, width: float, height: float
) -> tuple[float, float, float, float]:
    """A position in inches from the lower left corner in matplotlib's coordinates."""
    size = figure.get_figwidth(), figure.get_figheight()
    return x / size[0], y / size[1], width / size[0], height / size[1]


def heading(figure: Figure, title: str, subtitle: str) -> None:
    """Title and subtitle along the top left edge, in the uppermost half inch."""
    height = figure.get_figheight()
    write(figure, 0.15, height - 0.27, fit_text(title, 72 * (WIDTH - 0.4), TITLE), size=TITLE)
    write(figure, 0.15, height - 0.47, fit_text(subtitle, 72 * (WIDTH - 0.4), TEXT), color=FAINT)


def write(figure: Figure, x: float, y: float, text: str, size: float = TEXT, **style: Any) -> Text:
    """Text at a place in inches from the lower left corner, drawn as it is: no mathematics, no TeX."""
    return figure.text(x, y, text, fontsize=size, parse_math=False, transform=figure.dpi_scale_trans, **style)


def plain(text: str) -> str:
    r"""The same text with an escape (\x07, \u4e2d) for each character that cannot or must not be drawn.

    Those are controls, line breaks, spaces other than the usual one, marks that change the reading direction
    or combine with a letter, halves of surrogate pairs, and characters that the font of the pictures lacks.
    """
    drawable = _drawn_characters()
    return "".join(
        c if ord(c) in drawable else c.encode("unicode_escape").decode("ascii")
        for c in unicodedata.normalize("NFC", text)
    )


@cache
def _drawn_characters() -> frozenset[int]:
    from matplotlib.font_manager import get_font

    font = get_font(_properties(TEXT)[1])
    codes = (code for code in font.get_charmap() if chr(code).isprintable())
    return frozenset(code for code in codes if unicodedata.category(chr(code)) not in ("Mn", "Me"))


@cache
def _properties(size: float) -> tuple[FontProperties, str]:
    from matplotlib.font_manager import FontProperties, findfont

    properties = FontProperties(family=_FONT, size=size)
    return properties, findfont(properties, fallback_to_default=False)


def extent(text: str, size: float) -> tuple[float, float]:
    """Width and height of drawn text in points."""
    from matplotlib.textpath import text_to_path

    width, _, _ = text_to_path.get_text_width_height_descent(text, _properties(size)[0], False)
    return float(width), 1.2 * size


def fit_text(text: str, width: float, size: float = TEXT) -> str:
    """The text as `plain` gives it, its middle left out if it is wider than `width` points."""
    if len(text) > _LONGEST:
        text = text[: _LONGEST // 2] + _ELLIPSIS + text[-_LONGEST // 2 :]
    text = plain(text)
    if extent(text, size)[0] <= width:
        return text
    lengths = range(1, len(text))
    return _cut(text, bisect_right(lengths, width, key=lambda keep: extent(_cut(text, keep), size)[0]))


def _cut(text: str, keep: int) -> str:
    tail = keep * 2 // 5
    return text[: keep - tail] + _ELLIPSIS + (text[-tail:] if tail else "")


def colour_scale(values: NDArray[Any]) -> tuple[NDArray[Any], Normalize, str]:
    """(values to colour, scale, which end has an arrow) for finite values of any size; at least one.

    Logarithmic where the positive values differ by a factor of 8 or more and none is negative; zeros are then
    coloured as the smallest positive value, marked by the arrow at the lower end. Else it begins at 0, so
    that values which are nearly equal look so.
    """
    import numpy as np
    from matplotlib.colors import LogNorm, Normalize

    values = np.clip(np.asarray(values, dtype=np.float64), -_HUGE, _HUGE)
    low, high = float(values.min()), float(values.max())
    positive = values[values > 0]
    if low >= 0 and positive.size and high >= _LOGARITHMIC * float(positive.min()):
        smallest = max(float(positive.min()), 1 / _HUGE)
        arrow = "min" if low < smallest else "neither"
        return np.maximum(values, smallest), LogNorm(smallest, high), arrow
    low, high = min(low, 0.0), max(high, 0.0)
    return values, Normalize(low, high if high > low else low + 1.0), "neither"


def colour_bar(figure: Figure, place: Place, values: NDArray[Any]) -> None:
    """A colour bar of `colour_scale(values)`; place is (x, y, width, height) in inches.

    It stands upright where it is higher than wide. Up to seven distinct values are its ticks where
    there is room; a single one is a patch of its colour.
    """
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    colour_map, scale, arrow = colour_scale(values)
    distinct = np.unique(colour_map)
    upright = place[3] > place[2]
    if distinct.size == 1:
        x, y, width, height = place
        y, side = y + max(0.0, height - 0.16), min(width, height, 0.16)
        axes = figure.add_axes(inches(figure, x, y, 0.16, side), xticks=[], yticks=[])
        axes.set_facecolor(colormaps[COLOUR_MAP](scale(distinct))[0])
        write(figure, x + 0.22, y + side / 2, number(float(values.max())), size=SMALL, va="center")
        return
    axes = figure.add_axes(inches(figure, *place))
    bar = figure.colorbar(
        ScalarMappable(scale, COLOUR_MAP),
        cax=axes,
        extend=arrow,
        orientation="vertical" if upright else "horizontal",
    )
    axis = axes.yaxis if upright else axes.xaxis
    axis.set_minor_locator(NullLocator())
    axis.set_major_locator(FixedLocator(_ticks(distinct, scale, 72 * max(place[2:]), upright)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    bar.outline.set_linewidth(0.5)
    if bar.solids is not None:
        # Otherwise viewers show hairlines between the patches of the bar.
        bar.solids.set_edgecolor("face")


def _ticks(distinct: NDArray[Any], scale: Normalize, length: float, upright: bool) -> list[float]:
    """The values themselves if they are few and do not overlap, else the roundest ones that fit.

    `length` is that of the bar in points.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import LogLocator, MaxNLocator

    low, high = scale.vmin or 0.0, scale.vmax or 0.0
    choices: list[Any] = [distinct] if distinct.size <= 7 else []
    if isinstance(scale, LogNorm):
        choices += [LogLocator(subs=subs, numticks=99).tick_values(low, high) for subs in ((1, 2, 5), (1, 3))]
        choices += [LogLocator(numticks=count).tick_values(low, high) for count in (9, 7, 5, 4, 3)]
    else:
        choices += [MaxNLocator(count).tick_values(low, high) for count in (6, 5, 4, 3, 2)]
    for choice in choices:
        ticks = [float(value) for value in choice if low <= value <= high]
        if len(ticks) > 1 and _have_room(ticks, scale, length, upright):
            return ticks
    return [low, high]


def _have_room(ticks: list[float], scale: Normalize, length: float, upright: bool) -> bool:
    """Whether the numbers at these ticks do not overlap."""
    end = -length
    for tick in ticks:
        half = extent(number(tick), SMALL)[upright] / 2
        centre = float(scale(tick)) * length
        if centre - half < end + (0 if upright else 5):
            return False
        end = centre + half
    return True


def count_noun(count: int, noun: str) -> str:
    """1 module, 2 modules, 1,000 modules."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def number(value: float) -> str:
    """A number in three significant figures: 0.0312, 4.5, 12,300, 1.2×10⁹, −7."""
    digits = f"{abs(value):.2e}"
    exponent = int(digits[digits.index("e") + 1 :])
    if value == 0 or -4 < exponent < 6:
        text = f"{round(abs(value), 2 - exponent if value else 0):,.{max(0, 2 - exponent)}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        mantissa = f"{float(digits[: digits.index('e')]):g}"
        raised = str(exponent).translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))
        text = f"10{raised}" if mantissa == "1" else f"{mantissa}×10{raised}"
    return f"−{text}" if value < 0 else text


def save(figure: Figure, path: Path, title: str, links: Mapping[str, str] | None = None) -> None:
    """Writes the figure in the format of the file's suffix, atomically; the same bytes each time.

    In an SVG each link of the figure to an address in `links` gets its text as the title that viewers show.

    Raises StorageError if the file cannot be written.
    """
    suffix = check_suffix(path)
    safe_title = plain(title[:_LONGEST])
    # Without the time of writing and the version of the program that wrote.
    metadata: dict[str, dict[str, Any]] = {
        ".svg": {"Date": None, "Creator": None, "Title": safe_title},
        ".png": {"Software": None, "Title": safe_title},
        ".pdf": {"CreationDate": None, "Creator": None, "Producer": None, "Title": safe_title},
    }
    content = BytesIO()
    with settings():
        figure.savefig(content, format=suffix[1:], dpi=RESOLUTION, metadata=metadata[suffix])
    data = content.getvalue()
    if suffix == ".svg" and links:
        titles = {html.escape(address): html.escape(plain(text)) for address, text in links.items()}
        data = _LINK.sub(lambda link: _with_title(link, titles), data.decode()).encode()
    try:
        with replace_file(path) as new:
            new.write_bytes(data)
    except OSError as error:
        raise StorageError(f"The picture {path} cannot be written: {error.strerror}.") from error


def _with_title(link: re.Match[str], titles: Mapping[str, str]) -> str:
    return f"{link[0]}<title>{titles[link[1]]}</title>" if link[1] in titles else link[0]
