"""The layout of a map: vectors as points in two dimensions, and the places of names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from catalog.errors import UsageError
from catalog.extras import require_extra

Floats = NDArray[np.float64]

# Below this many points t-SNE has no neighbourhoods to keep.
FEWEST = 10
# t-SNE places this many points: seconds, on one core. The others are placed among those.
LANDMARKS = 2000
_PERPLEXITY = 30.0
_NEAREST = 3
_CHUNK = 4096
# Distances in 1/72 inch at which a name may stand from its point, and in how many directions.
_STEPS = (4.5, 8.5, 14.0, 22.0, 32.0, 44.0, 60.0, 80.0, 105.0)
_DIRECTIONS = 16
# The room between a name and the edge, and half the width of a point. Then in 1/72 inch of distance: what
# covering a point costs, up to which cost a place is near, and from which a name is left out.
_EDGE, _MARKER = 2.0, 3.0
_COVERED, _NEAR, _DEAREST = 80.0, 20.0, 160.0
# From this distance a line joins name and point.
LEADER = 7.0


def layout(vectors: NDArray[Any], seed: int = 0) -> Floats:
    """Points (n, 2) for vectors (n, d), so that vectors with a large cosine lie near each other.

    Vectors are scaled to length one first; their squared distance is then 2 - 2 cos. From 10 vectors on this
    is t-SNE (van der Maaten & Hinton, JMLR 9, 2008) that starts from the principal components: neighbours are
    meaningful; distances between groups, their widths, and the directions of the picture are not, and groups
    can appear where there are none. Fewer vectors are projected on their two principal components: there
    distances are meaningful, as far as two dimensions allow. Above 2,000 vectors t-SNE sees a sample drawn by
    `seed`, and every other vector lies between the three of the sample that are nearest to it.

    A vector without a direction (zero, or not finite) has no place: its row is NaN. The same input and seed
    give the same points on one machine, however many threads it has. Raises UsageError if the input is not a
    matrix, or if the extra `plot` is not installed.
    """
    vectors = np.asarray(vectors)
    vectors = vectors.astype(np.result_type(vectors.dtype, np.float32), copy=False)
    if vectors.ndim != 2:
        raise UsageError("A map requires a matrix with one vector per row.")
    return layout_blocks((vectors[at : at + _CHUNK] for at in range(0, len(vectors), _CHUNK)), seed)


def layout_blocks(blocks: Iterable[NDArray[Any]], seed: int = 0) -> Floats:
    """The same for vectors that come in blocks of rows: those that have a direction lie in a temporary file
    meanwhile, so that memory does not grow with them.

    Raises UsageError if the extra `plot` is not installed.
    """
    require_extra("plot", "A map")
    with TemporaryFile(prefix="loradex-") as file:
        placed = [np.zeros(0, bool)]
        size = 0
        for block in blocks:
            units, has_direction = _directions(block)
            file.write(units.tobytes())
            placed.append(has_direction)
            size = block.shape[1]
        is_placed = np.concatenate(placed)
        points = np.full((len(is_placed), 2), np.nan)
        if is_placed.any():
            points[is_placed] = _points(_StoredRows(file, int(is_placed.sum()), size), seed)
    return points


class _StoredRows:
    """The rows of a matrix (count, size) of float32 in a file."""

    def __init__(self, file: IO[bytes], count: int, size: int) -> None:
        self._file, self._count, self._size = file, count, size

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, places: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        if isinstance(places, slice):
            first, end, _ = places.indices(self._count)
            return self._read(first, end - first)
        return np.concatenate([self._read(place, 1) for place in places.tolist()])

    def _read(self, first: int, count: int) -> NDArray[np.float32]:
        self._file.seek(4 * self._size * first)
        rows = np.frombuffer(self._file.read(4 * self._size * count), np.float32)
        return rows.reshape(count, self._size)


def _directions(rows: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The rows that have a direction, scaled to length one, and which those are."""
    rows = np.where(np.isfinite(rows).all(axis=1, keepdims=True), rows, 0)
    # Divided by the largest number first, so that no square overflows or vanishes.
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0)
    rows = rows / np.where(largest > 0, largest, 1)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    units = (rows / np.where(length > 0, length, 1)).astype(np.float32)
    placed = largest[:, 0] > 0
    return units[placed], placed


def _points(units: _StoredRows, seed: int) -> Floats:
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    # Sums made by several threads differ from run to run, and t-SNE amplifies that.
    with threadpool_limits(limits=1):
        sample = np.arange(len(units))
        if len(units) > LANDMARKS:
            sample = np.sort(np.random.default_rng(seed).choice(len(units), LANDMARKS, replace=False))
        landmarks = units[sample]
        start = _principal_components(landmarks)
        points = start if len(landmarks) < FEWEST else _tsne(landmarks, start, seed)
        return points if len(units) == len(sample) else _among(units, landmarks, points)


def _principal_components(units: NDArray[np.float32]) -> Floats:
    """Coordinates (n, 2) along the two directions of largest variance; the largest coordinate is positive."""
    centred = units.astype(np.float64) - units.mean(axis=0, dtype=np.float64)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    scores = np.zeros((len(units), 2))
    # Rounding errors of equal vectors are not variance.
    count = min(2, int((values > 1e-6).sum()))
    scores[:, :count] = left[:, :count] * values[:count]
    signs = np.sign(scores[np.abs(scores).argmax(axis=0), [0, 1]])
    return scores * np.where(signs == 0, 1, signs)


def _tsne(units: NDArray[np.float32], start: Floats, seed: int) -> Floats:
    from sklearn.manifold import TSNE

    spread = start[:, 0].std()
    if spread == 0:
        return start
    embedding = TSNE(
        perplexity=min(_PERPLEXITY, (len(units) - 1) / 3),
        init=(start / spread * 1e-4).astype(np.float32),
        random_state=seed,
    ).fit_transform(units)
    return np.asarray(embedding, dtype=np.float64)


def _among(units: _StoredRows, landmarks: NDArray[np.float32], points: Floats) -> Floats:
    """Each vector between its nearest landmarks, each of which weighs by one over its squared distance."""
    placed = np.empty((len(units), 2))
    for first in range(0, len(units), _CHUNK):
        cosines = units[first : first + _CHUNK] @ landmarks.T
        nearest = np.argpartition(-cosines, _NEAREST, axis=1)[:, :_NEAREST]
        squares = 2 - 2 * np.take_along_axis(cosines, nearest, axis=1).astype(np.float64)
        weights = 1 / np.maximum(squares, 1e-6)
        weights /= weights.sum(axis=1, keepdims=True)
        placed[first : first + _CHUNK] = (points[nearest] * weights[:, :, None]).sum(axis=1)
    return placed


def name_places(
    points: NDArray[Any], sizes: Sequence[tuple[float, float]], box: tuple[float, float]
) -> list[tuple[float, float] | None]:
    """The lower left corner of each name near its point, or None if there is no free place.

    `points` (n, 2), `sizes` (width, height) and the corners are in 1/72 inch, inside a box from (0, 0). Names
    cover neither each other nor the edge, and points only if unavoidable; one that is away from its point has
    a line to it (`leader`) that crosses no name.
    """
    anchors = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    corners: list[tuple[float, float] | None] = [None] * len(anchors)
    owners, taken = np.empty((0, 2)), np.empty((0, 4))
    places = [_candidates(anchor, size, box) for anchor, size in zip(anchors, sizes, strict=True)]
    costs = [_costs(anchors, i, boxes) for i, boxes in enumerate(places)]
    # Names with the fewest places that are near come first.
    for i in sorted(range(len(places)), key=lambda i: (costs[i] <= _NEAR).sum()):
        boxes = places[i]
        covering = ((boxes[:, None, :2] < taken[:, 2:]) & (boxes[:, None, 2:] > taken[:, :2])).all(axis=2)
        cut = _cuts(owners, leader(owners, taken), boxes[:, None])
        cut |= _cuts(anchors[i], leader(anchors[i], boxes)[:, None], taken)
        cost = np.where((covering | cut).any(axis=1), np.inf, costs[i])
        if cost.size and cost.min() <= _DEAREST:
            place = boxes[cost.argmin()]
            owners, taken = np.vstack([owners, anchors[i]]), np.vstack([taken, place])
            corners[i] = (float(place[0]), float(place[1]))
    return corners


def leader(anchors: Floats, boxes: Floats) -> Floats:
    """The points of boxes (n, 4: left, bottom, right, top) that are nearest to anchors (n, 2)."""
    return np.clip(anchors, boxes[..., :2], boxes[..., 2:])


def _candidates(anchor: Floats, size: tuple[float, float], box: tuple[float, float]) -> Floats:
    """Boxes (m, 4) around a point that lie inside the picture, nearest first, beginning at its right."""
    half = np.asarray(size) / 2
    angles = 2 * np.pi * np.arange(_DIRECTIONS) / _DIRECTIONS
    ways = np.column_stack([np.cos(angles), np.sin(angles)])
    # A box touches its anchor's surroundings with the middle of a side, or with a corner on the diagonals.
    touching = np.clip(np.sqrt(2) * ways, -1, 1) * half
    centres = np.concatenate([anchor + step * ways + touching for step in _STEPS])
    boxes = np.column_stack([centres - half, centres + half])
    inside = (boxes[:, :2] >= _EDGE) & (boxes[:, 2:] <= np.asarray(box) - _EDGE)
    return boxes[inside.all(axis=1)]


def _costs(anchors: Floats, which: int, boxes: Floats) -> Floats:
    """The cost of each place (m, 4) of a name: its distance, and the points that it covers."""
    here = anchors[which]
    length = np.sqrt(((leader(here, boxes) - here) ** 2).sum(axis=1))
    tilt = np.abs(boxes[:, 1] + boxes[:, 3] - 2 * here[1]) / (boxes[:, 3] - boxes[:, 1])
    low, high = boxes[:, None, :2] - _MARKER, boxes[:, None, 2:] + _MARKER
    covered = ((anchors > low) & (anchors < high)).all(axis=2).sum(axis=1)
    return np.asarray(length + 0.5 * tilt + _COVERED * covered)


def _cuts(starts: Floats, ends: Floats, boxes: Floats) -> NDArray[np.bool_]:
    """Whether the line from start to end meets the inside of a box, by broadcasting."""
    way = ends - starts
    way = np.where(np.abs(way) < 1e-9, 1e-9, way)
    enter, leave = (boxes[..., :2] - starts) / way, (boxes[..., 2:] - starts) / way
    first = np.minimum(enter, leave).max(axis=-1)
    last = np.maximum(enter, leave).min(axis=-1)
    return np.asarray((first < last) & (last > 0) & (first < 1))
