"""The adapters most similar to one by their weights, or along a direction, by sketches and exact cosines.

Writes no rows; the index writes its cache. Adapters of different base models are never compared: their
modules have the same names but other meanings.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import Session

from catalog.adapters import AdapterFolder, StoredAdapter, adapter_name, vector_key
from catalog.database import Adapter, WeightsFile
from catalog.errors import NotFoundError
from catalog.files import BlobStore
from catalog.fingerprints import Cosine, Fingerprint, cosines, partial_reasons
from catalog.index import VectorHit, VectorIndex
from catalog.query import Query, asks_for
from catalog.search.likeness import (
    Files,
    adapters_by_key,
    compare,
    fingerprint_row,
    kept_files,
    measured_keys,
)
from catalog.search.rows import Among
from catalog.search.vectors import SPACES, Fingerprints, Kind, measured_bases, open_base_index

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The maximum number of the sketch's best for which exact cosines are computed.
MOST_EXACT = 200
# How many more of the nearest are looked at than are asked for, at least and at most: others are no
# candidates.
_AHEAD, _LEAST_AHEAD, _MOST_AHEAD = 8, 64, 20_000
# Vectors that a search keeps, of some kilobytes each.
_MOST_VECTORS = 20_000
# Cosines that differ by less are equal, up to rounding.
_NO_SPREAD = 1e-12


@dataclass(frozen=True)
class Subject:
    """The subject of a search for neighbours: vectors by kind, its files if available, and the reasons why
    its B A is not its whole update.
    """

    name: str
    base: str | None
    vectors: dict[Kind, NDArray[np.float32]] = field(repr=False)
    files: Files | None = None
    tensor_digest: str | None = None
    adapter_id: int | None = None
    partial: tuple[str, ...] = ()


@dataclass(frozen=True)
class Neighbour:
    """One neighbour of the subject.

    `score` is the exact cosine if it was computed, else that of the sketches; `delta` and `output` are
    the sketched cosines of both kinds. All of them are of the products B A: `partial` and `subject_partial`
    are the reasons for which these are not the whole update, its own and those of the subject. `norm_ratio`
    is known if weights were compared; `why` describes the basis of the score.
    """

    adapter: str
    score: float
    exact: bool
    delta: float
    output: float
    norm_ratio: float | None
    same_tensors: bool
    rank: int | None
    license: str | None
    verdict: str = "accepted"
    partial: tuple[str, ...] = ()
    subject_partial: tuple[str, ...] = ()
    why: str = ""


def subject_of(session: Session, adapter: Adapter, blobs: BlobStore) -> Subject:
    """An adapter of the catalog as the subject; raises NotFoundError if its weights were never read."""
    name = adapter_name(adapter.repository.name, adapter.subfolder)
    row = fingerprint_row(session, adapter)
    key = vector_key(row.weights_digest, row.scaling_pattern)
    return Subject(
        name=name,
        base=adapter.base_model.canonical if adapter.base_model else None,
        vectors={kind: Fingerprints(session, kind).by_key([key])[key] for kind in SPACES},
        files=kept_files(session, blobs, row.weights_digest, adapter.config_digest),
        tensor_digest=session.get_one(WeightsFile, row.weights_digest).tensor_digest,
        adapter_id=adapter.id,
        partial=tuple(adapter.partial or ()),
    )


def subject_of_folder(folder: AdapterFolder, fingerprint: Fingerprint, base: str | None) -> Subject:
    """A local adapter and its fingerprint as the subject; `base` is the canonical name of its base model."""
    return Subject(
        name=str(folder.path),
        base=base,
        vectors={"delta": fingerprint.delta, "output": fingerprint.output},
        files=(folder.weights, folder.config),
        tensor_digest=fingerprint.tensor_digest,
        partial=partial_reasons(folder, fingerprint),
    )


def neighbours(
    session: Session,
    subject: Subject,
    index: Path,
    blobs: BlobStore,
    refusing: Collection[str],
    *,
    by: Kind = "output",
    count: int = 10,
    exact: bool = False,
    among: Among | None = None,
    every: bool = False,
) -> list[Neighbour]:
    """The `count` adapters of the same base model that are most similar to the subject, best first.

    Among all adapters of the catalog with a fingerprint, or those of the rows that `among` gives, to which
    `refusing` does not apply. With `every` the refused ones are included, marked.

    With `exact`, the sketch's best (four times as many, 50 to 200) are compared by the trace identity, as far
    as their files are kept, and ranked by that. Raises NotFoundError if there is no adapter to compare with.
    """
    search = NeighbourSearch(session, index, blobs, refusing, among=among, every=every)
    return search.neighbours(subject, by=by, count=count, exact=exact)


class NeighbourSearch:
    """Neighbours of many subjects among the same adapters: each index is opened, and each row read, once.

    Args:
        session: A session on the catalog, which does not change meanwhile.
        index: The folder of indexes.
        blobs: The kept files.
        refusing: The reasons for which rules refuse.
        among: Gives those of some rows to which neighbours are limited; `refusing` does not apply to them.
        where: The filter that `among` is of, which may ask for those that the user hid.
        every: Whether refused ones are included, marked.
    """

    def __init__(
        self,
        session: Session,
        index: Path,
        blobs: BlobStore,
        refusing: Collection[str],
        *,
        among: Among | None = None,
        where: Query | None = None,
        every: bool = False,
    ) -> None:
        self._session, self._index, self._blobs, self._refusing = session, index, blobs, refusing
        self._among, self._every = among, every or among is not None
        self._where, self._with_refused = where, every
        self._indexes: dict[tuple[Kind, str | None], VectorIndex] = {}
        self._rows: dict[str | None, dict[str, list[StoredAdapter]]] = {}
        self._vectors: dict[Kind, dict[str, NDArray[np.float32]]] = {kind: {} for kind in SPACES}
        self._hidden: dict[str | None, list[tuple[int, str]]] = {}
        self._keys: dict[str | None, list[tuple[int, str]]] = {}

    def neighbours(
        self, subject: Subject, *, by: Kind = "output", count: int = 10, exact: bool = False
    ) -> list[Neighbour]:
        """The neighbours of one subject, as the function `neighbours` gives them.

        Raises NotFoundError if there is no adapter to compare with.
        """
        candidate_count = min(max(4 * count, 50), MOST_EXACT) if exact else count
        hits, by_key = self._nearest_candidates(subject, by, candidate_count)
        if not hits and not self._candidate_keys(subject):
            of = f" of {subject.base}" if subject.base else ""
            raise NotFoundError(f"The catalog has no other adapter{of} with a fingerprint; crawl some first.")
        scores: dict[Kind, dict[str, float]] = {by: {hit.key: hit.score for hit in hits}}
        for kind in SPACES:
            if kind != by:
                scores[kind] = self._sketch_cosines(subject.vectors[kind], kind, list(scores[by]))
        compared = {
            key: _compare(self._session, subject, by_key[key][0], self._blobs) if exact else None
            for key in scores[by]
        }
        near = [
            _neighbour(subject, row, by, {kind: scores[kind].get(key, 0.0) for kind in SPACES}, compared[key])
            for key in scores[by]
            for row in by_key[key]
        ]
        return sorted(near, key=lambda row: (-row.score, row.adapter))[:count]

    def hidden_notes(
        self,
        subject: Subject,
        near: Sequence[Neighbour],
        *,
        by: Kind = "output",
        count: int = 10,
    ) -> list[str]:
        """A sentence on how many of the `count` nearest are not in `near` as the user hid them; empty where
        there are none, or the filter asks for `hidden`.
        """
        hidden = self.hidden_count(subject, near, by=by, count=count)
        if not hidden:
            return []
        verb, them = ("is", "it") if hidden == 1 else ("are", "them")
        among = f"{hidden:,} of the {min(count, hidden + len(near)):,} nearest {verb} hidden by you"
        return [f"{among} and left out; the filter hidden:yes lists {them}."]

    def hidden_count(
        self,
        subject: Subject,
        near: Sequence[Neighbour],
        *,
        by: Kind = "output",
        count: int = 10,
    ) -> int:
        """How many of the `count` nearest, by sketches, the user hid; `near` are the others."""
        if self._where is not None and asks_for(self._where, "hidden"):
            return 0
        if subject.base not in self._hidden:
            self._hidden[subject.base] = measured_keys(
                *(self._session, self._refusing, subject.base),
                every=self._with_refused,
                hidden=True,
                where=self._where,
            )
        keys = [key for id_, key in self._hidden[subject.base] if id_ != subject.adapter_id]
        if not keys:
            return 0
        scores = self._sketch_cosines(subject.vectors[by], by, keys)
        shown = sorted((getattr(row, by) for row in near), reverse=True)
        # A zero vector has no neighbours.
        hidden = sorted((scores[key] for key in keys if self._vectors[by][key].any()), reverse=True)
        return sum(
            place + sum(score > value for score in shown) < count for place, value in enumerate(hidden)
        )

    def _nearest_candidates(
        self, subject: Subject, by: Kind, count: int
    ) -> tuple[list[VectorHit], dict[str, list[StoredAdapter]]]:
        """The `count` fingerprints of candidates that are nearest to the subject, best first, and the
        candidates by key.

        The index is asked for more, of which those of candidates are left; for ever more while these are too
        few; and in the end for the fingerprints of all candidates.
        """
        bases = [subject.base] if subject.base is not None else measured_bases(self._session)
        indexes = [self._open(by, base) for base in bases]
        depth = max(_AHEAD * count, _LEAST_AHEAD)
        while True:
            hits = _search_all(indexes, subject.vectors[by], depth, None)
            among = self._candidates(subject, [hit.key for hit in hits])
            left = [hit for hit in hits if hit.key in among]
            if len(left) >= count or len(hits) < depth:
                return left[:count], among
            depth *= _AHEAD
            if depth > _MOST_AHEAD:
                hits = _search_all(indexes, subject.vectors[by], count, self._candidate_keys(subject))
                return hits, self._candidates(subject, [hit.key for hit in hits])

    def _open(self, kind: Kind, base: str | None) -> VectorIndex:
        place = kind, base
        if place not in self._indexes:
            self._indexes[place] = open_base_index(self._session, self._index, kind, base)
        return self._indexes[place]

    def _candidates(self, subject: Subject, keys: Sequence[str]) -> dict[str, list[StoredAdapter]]:
        """The adapters with one of these fingerprints that can be neighbours, by key."""
        known = self._rows.setdefault(subject.base, {})
        new = [key for key in keys if key not in known]
        if new:
            rows = adapters_by_key(
                self._session, new, self._refusing, subject.base, every=self._every, where=self._where
            )
            among = self._limit([row.id for group in rows.values() for row in group])
            known.update((key, [row for row in rows.get(key, []) if row.id in among]) for key in new)
        left = {key: [row for row in known[key] if row.id != subject.adapter_id] for key in keys}
        return {key: rows for key, rows in left.items() if rows}

    def _candidate_keys(self, subject: Subject) -> set[str]:
        """The fingerprints of all adapters that can be neighbours."""
        if subject.base not in self._keys:
            rows = measured_keys(
                self._session, self._refusing, subject.base, every=self._every, where=self._where
            )
            among = self._limit([id_ for id_, _ in rows])
            self._keys[subject.base] = [(id_, key) for id_, key in rows if id_ in among]
        return {key for id_, key in self._keys[subject.base] if id_ != subject.adapter_id}

    def _limit(self, ids: Sequence[int]) -> set[int]:
        """Those of these rows that can be neighbours."""
        return set(ids) if self._among is None else self._among(ids)

    def _sketch_cosines(self, query: NDArray[np.float32], kind: Kind, keys: list[str]) -> dict[str, float]:
        """The sketched cosines of these keys with a vector of one kind; zero vectors have none."""
        if not query.any():
            return {}
        known = self._vectors[kind]
        if len(known) > _MOST_VECTORS:
            known.clear()
        new = [key for key in keys if key not in known]
        if new:
            known.update(Fingerprints(self._session, kind).by_key(new))
        return {key: sketch_cosine(query, known[key]) for key in keys if key in known}


def _search_all(
    indexes: Sequence[VectorIndex], query: NDArray[np.float32], k: int, among: Collection[str] | None
) -> list[VectorHit]:
    """The k nearest of several indexes; a key that stands in two counts once."""
    hits = {hit.key: hit for index in indexes for hit in index.search(query, k, among)}
    return sorted(hits.values(), key=lambda hit: (-hit.score, hit.key))[:k]


def downhill(
    session: Session,
    index: Path,
    keys: Collection[str],
    direction: NDArray[Any],
    backgrounds: Collection[NDArray[Any]] = (),
    kind: Kind = "delta",
    base: str | None = None,
) -> dict[str, float]:
    """The cosine of the fingerprints of these keys, of adapters of a base model, with a direction, by key;
    zero vectors are left out.

    With `direction` the delta sketch (size,) of minus the gradient of a task's loss by the base model's
    weights, <direction, sketch> is to first order how much an adapter lowers that loss. It is divided by both
    norms, else the largest updates win on every task. With `kind` "output" it is the output sketch of the
    adapter that one step down the slope makes. With `backgrounds`, the same of other tasks, the cosines are
    centred (`center_scores`). Raises UsageError for a vector of another size, not finite, or zero, and
    NotFoundError if no key has a fingerprint.
    """
    import numpy as np

    vector_index = open_base_index(session, index, kind, base)
    indexed_keys = sorted(set(keys) & set(vector_index.keys))
    if not indexed_keys:
        raise NotFoundError(
            'None of the adapters has a fingerprint; read their weights by `crawl(weights="stream")`.'
        )
    scores = []
    for vector in (direction, *backgrounds):
        scored = {
            hit.key: hit.score for hit in vector_index.search(vector, len(indexed_keys), among=indexed_keys)
        }
        scores.append([scored[key] for key in indexed_keys])
    z_scores = center_scores(np.array(scores)) if len(scores) > 1 else np.array(scores[0])
    return dict(zip(indexed_keys, z_scores.tolist(), strict=True))


def center_scores(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The first row of (1 + backgrounds, adapters) as z-scores, less the mean of the z-scores below it.

    z-scores are over the adapters, 0 where all are equal. Some adapters point down the slope of any task
    (they teach a short answer); the remainder is specific to this task.
    """
    import numpy as np

    spread = scores.std(axis=1, keepdims=True)
    away = scores - scores.mean(axis=1, keepdims=True)
    z = np.where(spread > _NO_SPREAD, away / np.maximum(spread, _NO_SPREAD), 0.0)
    result: NDArray[np.float64] = z[0] - z[1:].mean(axis=0)
    return result


def _neighbour(
    subject: Subject, row: StoredAdapter, by: Kind, sketched: dict[Kind, float], compared: Cosine | None
) -> Neighbour:
    exact = None if compared is None else (compared.delta if by == "delta" else compared.output)
    same_tensors = subject.tensor_digest is not None and subject.tensor_digest == row.tensor_digest
    partial = tuple(row.partial or ())
    beside = ", ".join(sorted({*partial, *subject.partial}))
    values = f"delta {sketched['delta']:+z.2f}, output {sketched['output']:+z.2f}"
    of_product = f"; of B A alone, without {beside}" if beside else ""
    method = "sketched" if exact is None else "exact"
    return Neighbour(
        adapter=row.adapter,
        score=sketched[by] if exact is None else exact,
        exact=exact is not None,
        delta=sketched["delta"],
        output=sketched["output"],
        norm_ratio=compared.norm_ratio if compared else None,
        same_tensors=same_tensors,
        rank=row.rank,
        license=row.license,
        verdict="skipped" if row.is_refused else "accepted",
        partial=partial,
        subject_partial=subject.partial,
        why="the same tensors" if same_tensors else f"{method}; {values}{of_product}",
    )


def sketch_cosine(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    """The cosine of two sketches, 0 if one of them is zero; not by BLAS, whose sums differ by processor."""
    return float(cosines(left, right)) if left.any() and right.any() else 0.0


def _compare(session: Session, subject: Subject, row: StoredAdapter, blobs: BlobStore) -> Cosine | None:
    """The exact cosine with one adapter, None if a file is not available."""
    files = kept_files(session, blobs, row.weights_digest, row.config_digest)
    return compare(subject.files, files) if subject.files and files else None
