"""Results of several rows: sequences of frozen rows that become data frames, Arrow tables and HTML."""

from __future__ import annotations

import enum
import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from catalog.adapters import AdapterDetails as AdapterDetails
from catalog.adapters import AdapterNotes as AdapterNotes
from catalog.adapters import AdapterRow as AdapterRow
from catalog.errors import UsageError

if TYPE_CHECKING:
    import pandas
    import pyarrow

RowT = TypeVar("RowT")

# A notebook shows the first rows of a long result.
MOST_HTML_ROWS = 50


class Rows(Sequence[RowT], Generic[RowT]):
    """Frozen rows of one type, in order; `notes` are sentences on how they were obtained.

    Args:
        rows: Instances of a dataclass.
        row_type: That dataclass; its fields are the columns, for a result without rows too.
        notes: Sentences for a user, such as that a text encoder was not available.

    Examples:
        >>> from loradex.rows import PoolRow, Rows
        >>> rows = Rows([PoolRow("mine", 3, "random", None, "research", (), "0" * 64)], PoolRow)
        >>> len(rows), rows[0].pool, rows.columns[:2]
        (1, 'mine', ('pool', 'members'))
    """

    def __init__(self, rows: Iterable[RowT], row_type: type[RowT], notes: Sequence[str] = ()) -> None:
        self._rows = tuple(rows)
        self._row_type: Any = row_type
        self.notes = tuple(notes)

    @overload
    def __getitem__(self, index: int) -> RowT: ...
    @overload
    def __getitem__(self, index: slice) -> Rows[RowT]: ...
    def __getitem__(self, index: int | slice) -> RowT | Rows[RowT]:
        """One row, or the rows of a slice."""
        if isinstance(index, slice):
            return Rows(self._rows[index], self._row_type, self.notes)
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[RowT]:
        return iter(self._rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rows) and self._rows == other._rows

    def __hash__(self) -> int:
        return hash(self._rows)

    def __repr__(self) -> str:
        return f"<{len(self):,} rows of {self._row_type.__name__}>"

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the rows' fields."""
        return tuple(field.name for field in fields(self._row_type))

    def to_dicts(self) -> list[dict[str, Any]]:
        """The rows as dictionaries, with the keys that the command line prints as JSON."""
        rows: tuple[Any, ...] = self._rows
        return [asdict(row) for row in rows]

    def to_pandas(self) -> pandas.DataFrame:
        """The rows as a data frame, one column a field; raises UsageError without pandas."""
        try:
            import pandas
        except ImportError as error:
            raise UsageError("to_pandas() needs pandas; pip install pandas.") from error
        return pandas.DataFrame(self.to_dicts(), columns=list(self.columns))

    def to_arrow(self) -> pyarrow.Table:
        """The rows as an Arrow table, one column a field; raises UsageError without pyarrow."""
        try:
            import pyarrow
        except ImportError as error:
            raise UsageError("to_arrow() needs pyarrow; pip install pyarrow.") from error
        rows = self.to_dicts()
        return pyarrow.table({name: [row[name] for row in rows] for name in self.columns})

    def _repr_html_(self) -> str:
        """The first rows as an HTML table, every value escaped."""
        rows = [[cell_text(row[name]) for name in self.columns] for row in self[:MOST_HTML_ROWS].to_dicts()]
        return html_table(self.columns, rows, caption=f"{len(self):,} rows")


def html_table(columns: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> str:
    """A table as HTML; every text in it is escaped."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(text)}</td>' for text in texts)}</tr>" for texts in rows)
    title = f"<caption>{html.escape(caption)}</caption>"
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def cell_text(value: object) -> str:
    """A value as people read it: nothing for None, days for instants, four digits for fractions."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d}"
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {cell_text(item)}" for key, item in value.items())
    if isinstance(value, (set, frozenset)):
        return cell_text(sorted(value))
    if isinstance(value, (list, tuple)):
        return ", ".join(map(cell_text, value))
    return str(value)


@dataclass(frozen=True)
class PoolRow:
    """One pool of a catalog: its name, its number of members, how they were chosen, and its digest."""

    pool: str
    members: int
    by: str | None
    base: str | None
    use: str
    controls: Sequence[str]
    digest: str
    created: datetime | None = None


@dataclass(frozen=True)
class MemberVerdict:
    """Whether an engine runs a member of a pool as PEFT does; None where that is not known.

    `reasons` say why not, `remedies` what makes it run, and `option` is what the engine must be started with.
    """

    adapter: str
    engine: str
    runs: bool | None
    reasons: Sequence[str] = ()
    remedies: Sequence[str] = ()
    option: str = ""


@dataclass(frozen=True)
class FolderFingerprint:
    """The measurements of the weights in an adapter's folder, all of the products scaling * B A.

    `norm` is the Frobenius norm over all modules, `norms` that of each module, `stable_rank` the median over
    modules of ||dW||_F^2 / ||dW||_2^2. `partial` maps the reasons for which the update is more than these
    products to what was seen; `load_problems` are sentences on what PEFT does not load.
    """

    adapter: str
    base: str | None
    rank: int | None
    alpha: float | None
    targets: Sequence[str]
    modules: int
    parameters: int
    norm: float | None
    stable_rank: float | None
    health: str
    partial: Mapping[str, str]
    load_problems: Sequence[str]
    tensor_digest: str | None
    norms: Mapping[str, float | None]


@dataclass(frozen=True)
class SearchRow:
    """One adapter that fits a text: its score (reciprocal rank fusion) and what that rests on."""

    adapter: str
    score: float
    why: str
    commit: str
    rank: int | None
    license: str | None


@dataclass(frozen=True)
class IdentifiedRow:
    """An adapter that a file may be: `by` is what agrees, "file", "tensors" or "sketch".

    `cosine` is that of the updates, 1 where bytes or tensors are the same; `current` is whether the commit is
    the newest that was read.
    """

    adapter: str
    by: str
    cosine: float
    commit: str
    current: bool


@dataclass(frozen=True)
class GroupRow:
    """Adapters with the same or nearly the same weights.

    `level` is the loosest comparison that was needed: file, tensor or delta. `cosine` is that of the weakest
    link, `exact` whether every link was compared by its weights. `skipped` are the members that the rules
    refuse, `partial` those of whose update B A is a part, with the reasons.
    """

    level: str
    members: Sequence[str]
    cosine: float | None
    exact: bool
    note: str
    size: int
    skipped: Sequence[str]
    partial: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class FamilyRow:
    """Adapters of one owner that belong together: a series, or the checkpoints of one run."""

    family: str
    size: int
    why: str
    members: Sequence[str]
    skipped: Sequence[str]
    partial: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class IndexRow:
    """One index: its state (current, stale, corrupt or missing), its vectors, its file.

    The space "words" is the index of texts. `base` is the base model of an index of vectors, None where it
    is unknown; `type` and `recall`, the part of the ten nearest that it finds, are known of a current
    index.
    """

    space: str
    state: str
    vectors: int | None
    file: str
    base: str | None = None
    type: str | None = None
    recall: float | None = None


@dataclass(frozen=True)
class ScoreRow:
    """One measured score; `n` is the number of samples, None where the source does not state it.

    `protocol` says how the model was asked, "" in the project's own way; `items_sha` identifies the samples,
    None where it is not known which of them were answered right.
    """

    adapter: str
    task: str
    split: str
    metric: str
    value: float
    n: int | None
    source: str
    protocol: str = ""
    items_sha: str | None = None


@dataclass(frozen=True)
class ScoreSourceRow:
    """How much one source measured on one split by one metric and protocol.

    `with_outcomes` counts the scores of which it is known which items were answered right.
    """

    source: str
    split: str
    metric: str
    protocol: str
    scores: int
    subjects: int
    tasks: int
    of_known_adapters: int
    with_outcomes: int


@dataclass(frozen=True)
class OutcomeRow:
    """One score with the answers that it counts: `outcomes` has 1 or 0 for each of n items in their order.

    `margins` are, where choices were scored, log p of the best other choice minus that of the right one
    (nats), negative for a right answer.
    """

    adapter: str
    task: str
    split: str
    metric: str
    protocol: str
    source: str
    value: float
    n: int
    items_sha: str
    outcomes: str
    margins: Sequence[float] | None


@dataclass(frozen=True)
class ItemRow:
    """One item of a task: how many of n adapters answered it right, and which.

    `position` counts from 1 in the list `items_sha`; `item` is the sha256 of the item, None where no source
    listed it.
    """

    task: str
    split: str
    metric: str
    protocol: str
    items_sha: str
    position: int
    item: str | None
    right: int
    n: int
    right_adapters: Sequence[str]
    wrong_adapters: Sequence[str]


@dataclass(frozen=True)
class PairedTestRow:
    """Two adapters on the same n items: how many both, only one, or neither answered right.

    `difference` is the first score minus the second, with the ends of its 95 % interval; `p` is that of the
    exact McNemar test, two-sided.
    """

    first: str
    second: str
    task: str
    split: str
    metric: str
    protocol: str
    first_source: str
    second_source: str
    n: int
    both: int
    only_first: int
    only_second: int
    neither: int
    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class LeaderboardRow:
    """One adapter of a leaderboard: its score with the ends of its 95 % interval (Wilson).

    Where it answered the same items as the leader, `difference` is its score minus the leader's, `p` that of
    the exact McNemar test, `p_holm` that adjusted for all tests of the leaderboard, and `differs` whether
    this is at most 0.05; else these are None.
    """

    place: int
    adapter: str
    value: float
    low: float | None
    high: float | None
    n: int | None
    source: str
    difference: float | None
    p: float | None
    p_holm: float | None
    differs: bool | None


@dataclass(frozen=True)
class PlacementRow:
    """A score that was predicted from the answers to a few items of a task.

    `right` of the `asked` items were answered right. `predicted` is the expected score on all `n` items of
    the catalog's list, which `adapters` answered, and `error` its standard error, from a cross-validation.
    """

    adapter: str
    task: str
    split: str
    metric: str
    asked: int
    right: int
    predicted: float
    error: float
    n: int
    adapters: int
    items_sha: str
