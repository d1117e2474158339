"""Pictures of a report as SVG: text stays text, colours are CSS variables, the same bytes each time.

A colour is written `var(--ink, #222222)`: a page that sets the variable decides, and without one the picture
has the colours of `catalog.pictures.canvas`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from io import StringIO
from typing import TYPE_CHECKING

from catalog.pictures import FAINT, GRID, INK, OTHER, PALETTE, UNKNOWN, plain, settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Inches; a page shows a picture between 0.9 and 1.25 times its size in points.
WIDTH = 6.4
# CSS variables by colour; a page gives each a value for dark surroundings.
VARIABLES = {
    "#ffffff": "paper",
    "#000000": "ink",
    INK.lower(): "ink",
    FAINT.lower(): "faint",
    GRID.lower(): "grid",
    OTHER.lower(): "other",
    UNKNOWN.lower(): "unknown",
    **{colour.lower(): f"c{number}" for number, colour in enumerate(PALETTE, 1)},
}

_TAG = re.compile(r"<[^>]*>")
_HEX = re.compile(r"#[0-9a-f]{6}\b")
_VARIABLE = re.compile(r"var\(--\w+, (#[0-9a-f]{6})\)")
_FAMILY = re.compile(r"font-family: [^;\"]*")
_IDS = re.compile(r"(\bid=\"|url\(#|href=\"#|aria-labelledby=\")")
_TITLE = "picture-title"


@contextmanager
def style() -> Iterator[None]:
    """The settings of `catalog.pictures`, with axes in its colours and open to the right and above."""
    import matplotlib

    with settings():
        matplotlib.rcParams.update(
            {
                "axes.labelcolor": INK,
                "axes.spines.right": False,
                "axes.spines.top": False,
                "figure.facecolor": "none",
                "axes.facecolor": "none",
                "grid.color": GRID,
                "grid.linewidth": 0.6,
                "axes.axisbelow": True,
                "legend.frameon": False,
                "text.parse_math": False,
                "xtick.color": FAINT,
                "xtick.labelcolor": INK,
                "ytick.color": FAINT,
                "ytick.labelcolor": INK,
            }
        )
        yield


def sheet(height: float) -> Figure:
    """An empty figure of WIDTH x height inches without a background; made and filled inside `style`."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), facecolor="none")
    FigureCanvasSVG(figure)
    return figure


def svg(figure: Figure, title: str) -> str:
    """The figure as one <svg> element with a <title>, its text as text in the reader's own font."""
    import matplotlib

    content = StringIO()
    with settings():
        matplotlib.rcParams["svg.fonttype"] = "none"
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(content, format="svg", metadata=metadata)
    text = content.getvalue()
    text = text[text.index("<svg") :].strip()
    text = _TAG.sub(lambda match: _color_by_variable(match[0]), text)
    width, height = (f"{72 * inches:g}" for inches in figure.get_size_inches())
    start = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}pt" '
        f'height="{height}pt" role="img" aria-labelledby="{_TITLE}">\n <title id="{_TITLE}">'
        f"{escape(plain(title))}</title>"
    )
    return start + text[text.index(">") + 1 :]


def standalone(element: str) -> str:
    """The same picture for a file: plain colours on white."""
    text = _TAG.sub(lambda match: _VARIABLE.sub(r"\1", match[0]), element)
    end = text.index("</title>") + len("</title>") if "</title>" in text else text.index(">") + 1
    return f'{text[:end]}\n <rect width="100%" height="100%" fill="#ffffff"/>{text[end:]}\n'


def unique(element: str, prefix: str) -> str:
    """The same picture with `prefix` before every id, so that several can stand in one page."""
    return _TAG.sub(lambda match: _IDS.sub(rf"\g<1>{prefix}", match[0]), element)


def _color_by_variable(tag: str) -> str:
    """A tag with colours as variables, a generic font and links without a namespace."""
    if tag.startswith(("<!", "<?")):
        return ""
    tag = _FAMILY.sub("font-family: var(--font, sans-serif)", tag.replace("xlink:href=", "href="))
    return _HEX.sub(
        lambda match: f"var(--{VARIABLES[match[0]]}, {match[0]})" if match[0] in VARIABLES else match[0], tag
    )
