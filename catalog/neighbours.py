"""The adapters most like one by their weights: sketches find them, exact cosines put them in order.

Writes no rows; the index writes its cache. Adapters of other base models are never compared: their modules
have the same names and other meanings.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.orm import Session

from catalog.blobs import BlobStore
from catalog.errors import NotFoundError
from catalog.exact import Cosine
from catalog.fingerprint import Fingerprint
from catalog.folder import AdapterFolder
from catalog.index import open_index
from catalog.likeness import Files, Fingerprinted, compare, fingerprint_row, fingerprinted, kept_files
from catalog.reference import adapter_name
from catalog.schema import Adapter, WeightsFile
from catalog.vectors import SPACES, Fingerprints, Kind, vector_key

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Exact cosines are worked out for so many of the sketch's best at most.
MOST_EXACT = 200


@dataclass(frozen=True)
class Subject:
    """What neighbours are sought of: vectors by kind, and its files where they are at hand."""

    name: str
    base: str | None
    vectors: dict[Kind, NDArray[np.float32]] = field(repr=False)
    files: Files | None = None
    tensor_digest: str | None = None
    adapter_id: int | None = None


@dataclass(frozen=True)
class Neighbour:
    """One adapter like the subject.

    `score` is the exact cosine where it was worked out, else that of the sketches; `delta` and `output` are
    the sketched cosines of both kinds.
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

    @property
    def why(self) -> str:
        """What the score rests on, in words."""
        if self.same_tensors:
            return "the same tensors"
        how = "exact" if self.exact else "sketched"
        return f"{how}; delta {self.delta:+.2f}, output {self.output:+.2f}"


def subject_of(session: Session, adapter: Adapter, blobs: BlobStore) -> Subject:
    """An adapter of the catalog as the subject; raises NotFoundError where its weights were never read."""
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
    )


def subject_of_folder(folder: AdapterFolder, made: Fingerprint, base: str | None) -> Subject:
    """A local adapter and its fingerprint as the subject; `base` is the canonical name of its base model."""
    return Subject(
        name=str(folder.path),
        base=base,
        vectors={"delta": made.delta, "output": made.output},
        files=(folder.weights, folder.config),
        tensor_digest=made.tensor_digest,
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
) -> list[Neighbour]:
    """The `count` adapters of the same base model that are most like the subject, best first.

    With `exact`, the sketch's best (four times as many, 50 to 200) are compared by the trace identity, as far
    as their files are kept, and ranked by that. Raises NotFoundError where there is nothing to compare with.
    """
    found = [row for row in fingerprinted(session, refusing, subject.base) if row.id != subject.adapter_id]
    if not found:
        of = f" of {subject.base}" if subject.base else ""
        raise NotFoundError(f"The catalog has no other adapter{of} with a fingerprint; crawl some first.")
    by_key: dict[str, list[Fingerprinted]] = {}
    for row in found:
        by_key.setdefault(row.key, []).append(row)
    wanted = min(max(4 * count, 50), MOST_EXACT) if exact else count
    source = Fingerprints(session, by)
    hits = open_index(index, SPACES[by], source).search(subject.vectors[by], wanted, among=by_key)
    others: dict[Kind, dict[str, float]] = {by: {hit.key: hit.score for hit in hits}}
    for kind in SPACES:
        if kind != by:
            vectors = Fingerprints(session, kind).by_key([hit.key for hit in hits])
            others[kind] = {key: _cosine(subject.vectors[kind], vector) for key, vector in vectors.items()}
    compared = {
        key: _compare(session, subject, by_key[key][0], blobs) if exact else None for key in others[by]
    }
    rows = [
        _neighbour(subject, row, by, {kind: others[kind][key] for kind in SPACES}, compared[key])
        for key in others[by]
        for row in by_key[key]
    ]
    return sorted(rows, key=lambda row: (-row.score, row.adapter))[:count]


def _neighbour(
    subject: Subject, row: Fingerprinted, by: Kind, sketched: dict[Kind, float], compared: Cosine | None
) -> Neighbour:
    exact = None if compared is None else (compared.delta if by == "delta" else compared.output)
    return Neighbour(
        adapter=row.adapter,
        score=sketched[by] if exact is None else exact,
        exact=exact is not None,
        delta=sketched["delta"],
        output=sketched["output"],
        norm_ratio=compared.norm_ratio if compared else None,
        same_tensors=subject.tensor_digest is not None and subject.tensor_digest == row.tensor_digest,
        rank=row.rank,
        license=row.license,
    )


def _cosine(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    import numpy as np

    a, b = left.astype(np.float64), right.astype(np.float64)
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length > 0 else 0.0


def _compare(session: Session, subject: Subject, row: Fingerprinted, blobs: BlobStore) -> Cosine | None:
    """The exact cosine with one adapter, None where a file is not at hand."""
    files = kept_files(session, blobs, row.weights_digest, row.config_digest)
    return compare(subject.files, files) if subject.files and files else None
