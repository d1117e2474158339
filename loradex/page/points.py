"""The points of the map: two numbers for each adapter of the list, kept in the folder of indexes.

The layout of 100,000 adapters takes half a minute, so that the newest one of each base model is kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from catalog.files import replace_file
from catalog.pictures import layout_blocks
from catalog.search import Fingerprints

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from catalog.database import Session
    from catalog.search import CopyRow

# The place of an adapter that has none; coordinates are within -EXTENT and EXTENT.
NOWHERE = -32768
EXTENT = 32000
# Counts up when `catalog.pictures.layout` gives other points.
_REVISION = 1


def points_document(
    session: Session,
    rows: Sequence[CopyRow],
    places: Mapping[str, int],
    kind: Literal["delta", "output"],
    index: Path,
    hidden: Sequence[int] = (),
) -> bytes:
    """x and y of each adapter of the list as little-endian int16, NOWHERE for those that are not on the map.

    Args:
        session: A session on the catalog.
        rows: The adapters to lay out, of one base model.
        places: The place of each adapter of the list.
        kind: The vectors, "output" or "delta".
        index: The folder in which the layout is kept, in place of an older one of the base model.
        hidden: Places of the list that the map leaves out, although they are laid out.

    Raises:
        UsageError: The extra "plot" is not installed.
    """
    import numpy as np

    points = _kept_layout(session, rows, kind, index)
    table = np.full((len(places), 2), NOWHERE, "<i2")
    finite = np.isfinite(points).all(axis=1)
    if finite.any():
        low, high = points[finite].min(axis=0), points[finite].max(axis=0)
        span = float((high - low).max()) or 1.0
        scaled = (points[finite] - (low + high) / 2) / span * 2 * EXTENT
        on_map = [places[rows[row].adapter] for row in np.flatnonzero(finite).tolist()]
        table[on_map] = np.round(scaled)
    table[list(hidden)] = NOWHERE
    return table.tobytes()


def _kept_layout(
    session: Session, rows: Sequence[CopyRow], kind: Literal["delta", "output"], index: Path
) -> NDArray[np.float32]:
    """The points (n, 2) of these adapters, read from the folder or made and kept there."""
    import numpy as np

    if not rows:
        return np.empty((0, 2), np.float32)
    keys = [row.key for row in rows]
    of_base = f"points-{kind}-{_digest_of([str(rows[0].base)])}"
    file = index / f"{of_base}-{_digest_of([f'{_REVISION} {kind}', *keys])}.bin"
    with suppress(OSError):
        kept = np.frombuffer(file.read_bytes(), "<f4")
        if kept.size == 2 * len(rows):
            return kept.reshape(-1, 2)
    points = layout_blocks(Fingerprints(session, kind).vectors(keys)).astype("<f4")
    with suppress(OSError):
        index.mkdir(parents=True, exist_ok=True)
        with replace_file(file) as new:
            new.write_bytes(points.tobytes())
        # Names without a base model are of earlier versions.
        for older in index.glob(f"points-{kind}-*.bin"):
            if older != file and (older.name.startswith(of_base) or older.name.count("-") == 2):
                older.unlink(missing_ok=True)
    return points.astype(np.float32)


def _digest_of(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
