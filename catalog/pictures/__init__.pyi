from .adapter import adapter_picture
from .canvas import (
    FAINT,
    GRID,
    INK,
    MARKERS,
    OTHER,
    PALETTE,
    SMALL,
    UNKNOWN,
    count_noun,
    extent,
    fit_text,
    inches,
    number,
    plain,
    settings,
)
from .map import map_picture
from .merge import merge_picture
from .positions import layout, layout_blocks

__all__ = [
    "FAINT",
    "GRID",
    "INK",
    "MARKERS",
    "OTHER",
    "PALETTE",
    "SMALL",
    "UNKNOWN",
    "adapter_picture",
    "count_noun",
    "extent",
    "fit_text",
    "inches",
    "layout",
    "layout_blocks",
    "map_picture",
    "merge_picture",
    "number",
    "plain",
    "settings",
]
