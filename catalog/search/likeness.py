"""The adapters whose weights were read, with the data for comparing and drawing them. Writes nothing."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from sqlalchemy import Select, case, exists, func, null, or_, select
from sqlalchemy.orm import Session

from catalog.adapters import (
    AdapterConfig,
    ScalingRule,
    StoredAdapter,
    adapter_name,
    header_modules,
    parse_config,
    parse_header,
    vector_key,
)
from catalog.database import Adapter, BaseModelRow, DocumentRow, WeightsFile, has_reason, is_hidden
from catalog.database import FingerprintRow as FingerprintRow
from catalog.errors import ConfigError, NotFoundError, UsageError, WeightsError
from catalog.files import BlobStore
from catalog.fingerprints import FINGERPRINT_VERSION, Cosine, exact_cosine, spectrum_of
from catalog.query import Query
from catalog.search.rows import (
    ALL_COLUMNS,
    BY_NAME,
    COLUMNS,
    SHOWN_COLUMNS,
    from_current,
    from_visible,
    is_of_base,
    of_base,
)
from catalog.search.vectors import SPACES, Fingerprints, Kind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Files = tuple[Path, AdapterConfig]


class MeasuredAdapter(Protocol):
    """What reading the vectors and files of an adapter takes: a `CopyRow` or a row of any selection."""

    @property
    def id(self) -> int: ...
    @property
    def adapter(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def weights_digest(self) -> str: ...


_BLOCK = 5000
# The weights of an adapter folder, the one that is read first.
_WEIGHTS_NAMES = ("adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt", "adapter_model.pth")


def kind(name: str) -> Kind:
    """The kind of vector of that name; raises UsageError."""
    if name not in SPACES:
        raise UsageError(f"{name!r} is not a kind of vector; use one of {', '.join(SPACES)}.")
    return "delta" if name == "delta" else "output"


def adapters_with_fingerprint(
    session: Session,
    refusing: Collection[str],
    base: str | None = None,
    *,
    every: bool = False,
    where: Query | None = None,
) -> Iterator[StoredAdapter]:
    """The current adapters with a fingerprint that these reasons do not refuse, sorted by name.

    With `every` the refused ones are included, marked. `where` is a filter on them.
    """
    query = _with_fingerprint(_adapters(refusing, every=every, where=where))
    if base is not None:
        query = of_base(session, query, base)
    if where is not None:
        query = query.where(where.clause(refusing))
    for row in session.execute(query):
        yield StoredAdapter(*row)


def adapters_by_key(
    session: Session,
    keys: Collection[str],
    refusing: Collection[str],
    base: str | None = None,
    *,
    every: bool = False,
    where: Query | None = None,
) -> dict[str, list[StoredAdapter]]:
    """Of the same adapters those with one of these fingerprints, by its key, each list sorted by name; those
    that the user hid too where the filter asks for `hidden`.
    """
    query = _with_fingerprint(_adapters(refusing, every=every, where=where))
    if base is not None:
        query = query.where(BaseModelRow.canonical == base)
    digests, rows = sorted({key.partition("+")[0] for key in keys}), dict[str, list[StoredAdapter]]()
    for start in range(0, len(digests), _BLOCK):
        block = digests[start : start + _BLOCK]
        for values in session.execute(query.where(Adapter.weights_digest.in_(block))):
            row = StoredAdapter(*values)
            if row.key in keys:
                rows.setdefault(row.key, []).append(row)
    return rows


def measured_keys(
    session: Session,
    refusing: Collection[str],
    base: str | None = None,
    *,
    every: bool = False,
    hidden: bool = False,
    where: Query | None = None,
) -> list[tuple[int, str]]:
    """(row, key of its fingerprint) of the same adapters, in no order; with `hidden` of those that the user
    hid instead. `where` is a filter on them.
    """
    columns = select(Adapter.id, Adapter.weights_digest, Adapter.scaling_pattern)
    query = from_current(columns).where(is_hidden()) if hidden else from_visible(columns, where)
    query = query if every else query.where(~has_reason(refusing))
    query = query if where is None else query.where(where.clause(refusing))
    if base is not None:
        # Few are hidden, and found by their repositories.
        query = query.where(is_of_base(base)) if hidden else of_base(session, query, base)
    rows = session.execute(_with_fingerprint(query))
    return [(id_, vector_key(digest, pattern)) for id_, digest, pattern in rows]


def frequent_base(session: Session, refusing: Collection[str], *, every: bool = False) -> str | None:
    """The most frequent base model of adapters with a fingerprint, the first by name on a tie."""
    count = func.count().label("count")
    query = from_visible(select(BaseModelRow.canonical, count)).where(BaseModelRow.canonical.is_not(None))
    query = query if every else query.where(~has_reason(refusing))
    counts: dict[str, int] = dict(
        session.execute(_with_fingerprint(query).group_by(BaseModelRow.canonical)).all()
    )
    return min(counts, key=lambda base: (-counts[base], base), default=None)


def _with_fingerprint(query: Select[Any]) -> Select[Any]:
    """The statement over those with a fingerprint."""
    return query.where(
        exists()
        .where(
            FingerprintRow.weights_digest == Adapter.weights_digest,
            FingerprintRow.scaling_pattern == Adapter.scaling_pattern,
            FingerprintRow.version == FINGERPRINT_VERSION,
        )
        .correlate(Adapter)
    )


class CopyRow(NamedTuple):
    """The columns of an adapter that are compared with all others: a `catalog.fingerprints.copies.Copy`."""

    id: int
    repository: str
    owner: str
    subfolder: str
    base: str | None
    scaling: float | None
    norm: float | None
    partial: Any
    scaling_pattern: str | None
    weights_digest: str
    tensor_digest: str | None
    is_refused: bool

    @property
    def adapter(self) -> str:
        """Its short name."""
        return adapter_name(self.repository, self.subfolder)

    @property
    def key(self) -> str:
        """The key of its vectors."""
        return vector_key(self.weights_digest, self.scaling_pattern or "")


def with_weights(
    session: Session,
    refusing: Collection[str],
    *,
    every: bool = False,
    hidden: bool = False,
    ids: Sequence[int] | None = None,
) -> Iterator[CopyRow]:
    """The current adapters whose weights file has a digest on the Hub, read or not, sorted by name.

    Pickles are included: the digest of a file can be compared without opening it. `every` as for
    `adapters_with_fingerprint`; with `hidden` those that the user hid are among them, and with `ids` no
    others than these rows, sorted in blocks.
    """
    files = case((Adapter.weights_digest.is_(None), Adapter.files), else_=null())
    query = _copies(refusing, every=every, hidden=hidden).add_columns(files)
    for *values, listed in _execute(session, query, ids):
        row = CopyRow._make(values)
        if row.weights_digest is None:
            digests = {file["name"]: file["digest"] for file in listed or ()}
            digest = next(filter(None, map(digests.get, _WEIGHTS_NAMES)), None)
            if digest is None:
                continue
            row = row._replace(weights_digest=digest)
        yield row


def measured_copies(
    session: Session,
    refusing: Collection[str],
    base: str | None = None,
    *,
    every: bool = False,
    hidden: bool = False,
    ids: Sequence[int] | None = None,
) -> Iterator[CopyRow]:
    """The current adapters with a fingerprint, as rows to compare, sorted by name; arguments as for
    `adapters_with_fingerprint` and `with_weights`.
    """
    query = _with_fingerprint(_copies(refusing, every=every, hidden=hidden))
    if base is not None:
        query = of_base(session, query, base)
    for row in _execute(session, query, ids):
        yield CopyRow(*row)


def _execute(session: Session, query: Select[Any], ids: Sequence[int] | None) -> Iterator[Any]:
    """The rows of a statement on Adapter, of all adapters or of these."""
    if ids is None:
        yield from session.execute(query)
        return
    for start in range(0, len(ids), _BLOCK):
        yield from session.execute(query.where(Adapter.id.in_(ids[start : start + _BLOCK])))


def _copies(refusing: Collection[str], *, every: bool, hidden: bool) -> Select[Any]:
    """The columns of `CopyRow` of current adapters."""
    refused = has_reason(refusing)
    columns = [ALL_COLUMNS[name] for name in CopyRow._fields if name != "is_refused"]
    among = from_current if hidden else from_visible
    query = among(select(*columns, refused.label("skipped"))).order_by(*BY_NAME)
    query = query.outerjoin(WeightsFile, WeightsFile.digest == Adapter.weights_digest)
    return query if every else query.where(~refused)


def candidate_copies(session: Session, rows: Sequence[Any]) -> list[CopyRow]:
    """The candidates of a pool, whose weights files are on record, as rows to compare; without norms and
    scalings.
    """
    query = select(WeightsFile.digest, WeightsFile.tensor_digest).where(
        WeightsFile.tensor_digest.is_not(None)
    )
    tensors: dict[str, str | None] = dict(session.execute(query).all())
    return [
        CopyRow(
            *(row.id, row.repository, row.owner, row.subfolder, row.base, None, None, None),
            row.scaling_pattern,
            *(row.weights_digest, tensors.get(row.weights_digest), False),
        )
        for row in rows
    ]


def adapters_of_files(session: Session, digests: Collection[str]) -> list[Adapter]:
    """The adapters at any commit whose weights, or another listed weights file, have one of these names:
    sha256 or git's; current ones first.
    """
    same = select(WeightsFile.digest).where(WeightsFile.git_oid.in_(digests))
    by_digest = or_(Adapter.weights_digest.in_(digests), Adapter.weights_digest.in_(same))
    if rows := _in_order(session, select(Adapter).where(by_digest)):
        return rows
    # What is not safetensors has no column: the lists of files are read.
    lists = session.execute(select(Adapter.id, Adapter.files).execution_options(yield_per=_BLOCK))
    ids = [
        id_
        for id_, files in lists
        if any(file["name"] in _WEIGHTS_NAMES and file["digest"] in digests for file in files or ())
    ]
    return _in_order(session, select(Adapter).where(Adapter.id.in_(ids)))


def adapters_with_tensors(session: Session, tensor_digest: str) -> list[Adapter]:
    """The adapters at any commit whose weights have the same tensors, current ones first."""
    same = select(WeightsFile.digest).where(WeightsFile.tensor_digest == tensor_digest)
    return _in_order(session, select(Adapter).where(Adapter.weights_digest.in_(same)))


def _in_order(session: Session, query: Select[Any]) -> list[Adapter]:
    joined = query.join(Adapter.repository).order_by(Adapter.current.desc(), *BY_NAME, Adapter.id)
    return list(session.scalars(joined))


def _adapters(refusing: Collection[str], *, every: bool, where: Query | None = None) -> Select[Any]:
    """The columns of `StoredAdapter` of current adapters."""
    refused = has_reason(refusing)
    columns = select(*COLUMNS, *SHOWN_COLUMNS, refused.label("skipped"))
    query = from_visible(columns, where).order_by(*BY_NAME)
    query = query.outerjoin(WeightsFile, WeightsFile.digest == Adapter.weights_digest)
    return query if every else query.where(~refused)


def usual_base(counts: Mapping[str | None, int]) -> str | None:
    """The most frequent base model of these, the first by name on a tie."""
    return min(filter(None, counts), key=lambda base: (-counts[base], base), default=None)


@dataclass(frozen=True)
class Spectrum:
    """The data of an adapter's picture: its modules, their spectra without scaling, and the scalings."""

    modules: tuple[str, ...]
    spectrum: NDArray[np.float32] = field(repr=False)
    scalings: tuple[float, ...]


def spectrum(session: Session, adapter: Adapter) -> Spectrum:
    """The norms and singular values of an adapter's modules, (modules, 8) as in `catalog.fingerprints`.

    Raises NotFoundError if its weights were never read.
    """
    row = fingerprint_row(session, adapter)
    file = session.get_one(WeightsFile, row.weights_digest)
    config = session.scalar(select(DocumentRow.content).where(DocumentRow.digest == adapter.config_digest))
    parsed = parse_config(config or b"")
    rules = ScalingRule(parsed)
    modules = header_modules(parse_header(zlib.decompress(file.header or b""), file.size), parsed)
    return Spectrum(modules, spectrum_of(row.spectrum), tuple(rules.scaling(name) for name in modules))


def fingerprint_row(session: Session, adapter: Adapter) -> FingerprintRow:
    """The fingerprint of an adapter; raises NotFoundError if its weights were never read."""
    key = (adapter.weights_digest, adapter.scaling_pattern, FINGERPRINT_VERSION)
    row = session.get(FingerprintRow, key) if None not in key else None
    if row is None:
        name = adapter_name(adapter.repository.name, adapter.subfolder)
        raise NotFoundError(
            f"{name} has no fingerprint: its weights were not read, or its modules had different names then. "
            'Read them by `crawl(weights="stream")`.'
        )
    return row


def compare(left: Files, right: Files) -> Cosine | None:
    """The exact cosine of two adapters' files; None if their modules have different shapes."""
    try:
        return exact_cosine(left[0], left[1], right[0], right[1])
    except (WeightsError, ConfigError):
        return None


def kept_files(
    session: Session, blobs: BlobStore, weights_digest: str, config_digest: str | None
) -> Files | None:
    """The kept weights of an adapter and its configuration; None if they are not kept.

    Raises DamagedFileError if the bytes of the file changed.
    """
    path = blobs.path_of(weights_digest) if len(weights_digest) == 64 and config_digest else None
    if path is None:
        return None
    content = session.scalar(select(DocumentRow.content).where(DocumentRow.digest == config_digest))
    return (path, parse_config(content)) if content is not None else None


def read_deltas(
    session: Session,
) -> Callable[[Sequence[MeasuredAdapter]], Iterator[tuple[int, NDArray[np.float32]]]]:
    """A function that reads the delta vectors of those of some adapters that have one, each with its place
    among these, in any order.
    """
    source = Fingerprints(session, "delta")

    def deltas(rows: Sequence[MeasuredAdapter]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        places: dict[str, list[int]] = {}
        for place, row in enumerate(rows):
            places.setdefault(row.key, []).append(place)
        for key, vector in source.stored(places.keys()):
            for place in places[key]:
                yield place, vector

    return deltas


def exact_delta(
    session: Session, rows: Iterable[MeasuredAdapter], blobs: BlobStore
) -> Callable[[str, str], float | None]:
    """A function of two names that gives the exact cosine, None if a file is not kept."""
    by_name = {row.adapter: row for row in rows}

    def files(name: str) -> Files | None:
        row = by_name[name]
        config = session.scalar(select(Adapter.config_digest).where(Adapter.id == row.id))
        return kept_files(session, blobs, row.weights_digest, config)

    def cosine(left: str, right: str) -> float | None:
        pair = [files(name) for name in (left, right)]
        result = compare(pair[0], pair[1]) if pair[0] and pair[1] else None
        return result.delta if result else None

    return cosine
