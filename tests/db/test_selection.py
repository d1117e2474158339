"""Choosing where the answer is known by hand: down a slope, and by measuring; on both databases."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sql
from sqlalchemy import Engine, delete, func, update
from sqlalchemy.orm import Session

from catalog.database import Adapter, BaseModelRow, FingerprintRow, TableBase
from catalog.database.score_store import save_scores
from catalog.errors import LoradexError, NotFoundError, UsageError
from catalog.files import BlobStore
from catalog.fingerprints import DELTA_SIZE, OUTPUT_SIZE
from catalog.index import Space, open_index
from catalog.pools import Member, PinnedFile, export, read_manifest
from catalog.scores import Score
from catalog.search import BaseFingerprints, base_space, embed_cards
from catalog.search.nearest import Subject, center_scores
from catalog.selection import Question, Sources, select
from tools.bench.search import Drawn
from tools.bench.select import fill

# The updates of o1/r1 to o4/r4 along two directions; the last does nothing.
UPDATES = ((300.0, 0.0), (1.0, 1.0), (0.0, 5.0), (0.0, 0.0))
# The standard deviation of their cosines 1, sqrt(1/2) and 0 with either direction.
SPREAD = 0.4197606


def along(*numbers: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A sketch whose first numbers are these."""
    vector = np.zeros(DELTA_SIZE, dtype=np.float32)
    vector[: len(numbers)] = numbers
    return vector


@pytest.fixture
def sources(engine: Engine, tmp_path: Path) -> Any:
    """What a choice among four adapters can ask, without a base model."""
    fill(engine, len(UPDATES))
    with Session(engine) as session:
        for place, update_ in enumerate(UPDATES):
            digest = digest_of(place)
            session.execute(
                update(FingerprintRow)
                .where(FingerprintRow.weights_digest == digest)
                .values(delta=along(*update_).astype("<f4").tobytes())
            )
        yield Sources(session, (), tmp_path / "index", BlobStore(tmp_path), lambda: None, nobody)


def digest_of(place: int) -> str:
    return hashlib.sha256(str(place).encode()).hexdigest()


def nobody(name: str) -> Subject:
    raise NotFoundError(f"There is no {name}.")


def given(sources: Sources, **over: Any) -> Sources:
    """The sources with what a base model would give."""
    return Sources(**(vars(sources) | over))


def score_by_name(sources: Sources, count: int, **requests: Any) -> dict[str, float | None]:
    """The members' scores by name, in their order."""
    pool = select(Question(name="pool", count=count, **requests), sources).pool
    return {member.adapter: member.score for member in pool.members}


def test_downhill_is_the_cosine_whatever_the_norm(sources: Sources) -> None:
    slope = given(sources, direction=along(0.001))
    result = score_by_name(slope, 3, by="gradient", task="t", kind="delta")
    assert list(result) == ["o1/r1", "o2/r2", "o3/r3"]
    assert list(result.values()) == pytest.approx([1, math.sqrt(0.5), 0], abs=1e-6)
    back = score_by_name(given(sources, direction=along(-2.0)), 3, by="gradient", task="t", kind="delta")
    assert list(back) == ["o3/r3", "o2/r2", "o1/r1"]
    with pytest.raises(UsageError, match="Only 3 of 4"):
        score_by_name(slope, 4, by="gradient", task="t", kind="delta")


def test_what_goes_down_every_slope_is_no_find(sources: Sources) -> None:
    """Cosines 1, .707, 0 on the task and 0, .707, 1 on another: z-scores mirror, and the middle cancels."""
    both = given(sources, direction=along(1.0), backgrounds=np.stack([along(0.0, 7.0)]))
    result = score_by_name(both, 3, by="gradient", task="t", kind="delta")
    assert list(result) == ["o1/r1", "o2/r2", "o3/r3"]
    assert list(result.values()) == pytest.approx([1 / SPREAD, 0, -1 / SPREAD], abs=1e-5)


def test_centring_by_hand() -> None:
    # Rows of standard deviation 1 (1, -1) and 2 (3, -1); one without any.
    table = np.array([[1.0, -1.0], [3.0, -1.0], [0.3, 0.3]])
    assert center_scores(table[:2]).tolist() == [0, 0]
    assert center_scores(table).tolist() == [0.5, -0.5]
    assert center_scores(table[::-1]).tolist() == [-1, 1]


@pytest.mark.parametrize(
    ("direction", "told"),
    [(np.ones(3), "one vector of 1024"), (along(), "not zero"), (along(math.nan), "finite")],
)
def test_a_direction_of_another_space_is_refused(sources: Sources, direction: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        score_by_name(given(sources, direction=direction), 1, by="gradient", task="t", kind="delta")


TRUTH = {"o1/r1": 0.2, "o2/r2": 0.9, "o3/r3": 0.4, "o4/r4": 0.5}


class AdapterBench:
    """Measures adapters exactly, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def __call__(self, adapters: Sequence[str], samples: int) -> list[float | None]:
        self.asked += [(name, samples) for name in adapters]
        return [TRUTH[name] for name in adapters]


def score(subject: str, task: str, value: float, split: str = "valid") -> Score:
    return Score(subject, task, split, "accuracy", value, 100, "by hand")


def test_a_race_measures_the_candidates_alone_and_finds_the_best(sources: Sources) -> None:
    """The scores of others, of the test split, and of an adapter at its cap ask for no samples."""
    rows = [score(name, "other", 0.5) for name in ("o1/r1", "o2/r2", "nobody/elsewhere")]
    rows += [score("nobody/elsewhere", "t", 1.0), score("o3/r3", "t", 0.4), score("o1/r1", "t", 1.0, "test")]
    save_scores(sources.session, rows)
    bench = AdapterBench()
    requests = {"by": "racing", "task": "t", "budget": 90, "exclude": ("o4/r4",)}
    result = score_by_name(given(sources, measure=bench), 3, **requests)
    assert next(iter(result)) == "o2/r2"
    assert {name for name, _ in bench.asked} == {"o1/r1", "o2/r2"}
    assert sum(samples for _, samples in bench.asked) == 90
    again = AdapterBench()
    assert score_by_name(given(sources, measure=again), 3, **requests) == result
    assert again.asked == bench.asked


def test_a_race_starts_from_nothing(sources: Sources) -> None:
    bench = AdapterBench()
    pool = select(Question("pool", "racing", 4, task="new", budget=200), given(sources, measure=bench)).pool
    assert [member.adapter for member in pool.members] == ["o2/r2", "o4/r4", "o3/r3", "o1/r1"]
    assert pool.chosen["budget"] == 200
    assert "expected 0." in pool.members[0].why
    assert len(bench.asked) == 20


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"by": "racing", "task": "t", "budget": 100}, "requires a base model that measures"),
        ({"by": "gradient", "task": "t", "kind": "delta"}, "requires a base model with a gradient"),
        ({"by": "racing", "task": "t"}, "requires `budget`"),
        ({"by": "gradient"}, "requires `task`"),
        ({"by": "luck"}, "is not a strategy"),
    ],
)
def test_what_is_missing_is_named(sources: Sources, asked: dict[str, Any], told: str) -> None:
    with pytest.raises(LoradexError, match=told) as refused:
        score_by_name(sources, 1, **asked)
    assert str(refused.value).count(".") == 1


def unchanged(sources: Sources) -> tuple[int, ...]:
    """How many rows each table has."""
    tables = TableBase.metadata.sorted_tables
    return tuple(sources.session.scalar(sql.select(func.count()).select_from(t)) or 0 for t in tables)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        pytest.param({"by": "score", "task": "rtt"}, "did you mean rte", id="unknown-task-score"),
        pytest.param({"by": "prior", "task": "rtt"}, "did you mean rte", id="unknown-task-prior"),
        pytest.param({"by": "tasks", "task": "rtt"}, "did you mean rte", id="unknown-task-tasks"),
        pytest.param({"by": "completion", "task": "xyz"}, "task xyz", id="unknown-task-completion"),
        pytest.param({"by": "text", "text": " \n"}, "1 to 10,000 characters", id="empty-query"),
        pytest.param({"by": "random", "count": 5}, "Only 4 of 4", id="k-larger-than-the-catalog"),
        pytest.param({"by": "score", "task": "rte"}, "Only 1 of 4", id="k-larger-than-what-was-measured"),
        pytest.param(
            {"by": "random", "where": "rank:8 rank:16"}, "No adapter sat", id="contradictory-filter"
        ),
        pytest.param(
            {"by": "random", "where": "rank:8 -rank:8"}, "No adapter sat", id="contradictory-denial"
        ),
        pytest.param({"by": "matched", "to": "gone"}, "Pool 'gone' not found", id="unknown-pool"),
        pytest.param({"by": "rank", "parameters": 1}, "Only 0 of 4", id="budget-below-one-adapter"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(
    sources: Sources, tmp_path: Path, asked: dict[str, Any], told: str
) -> None:
    save_scores(sources.session, [score("o1/r1", "rte", 0.5), score("o2/r2", "anli", 0.5)])
    before = unchanged(sources)
    with pytest.raises(LoradexError, match=told) as refused:
        score_by_name(sources, **({"count": 2} | asked))
    text = str(refused.value)
    assert text[-1] in ".?"
    assert "\n" not in text
    assert unchanged(sources) == before
    assert not sources.session.new
    assert not sources.session.dirty
    assert not list(tmp_path.rglob("pool*"))


def test_an_index_of_another_model_is_built_anew(sources: Sources) -> None:
    """A cache of some other space under this one's name is never asked."""
    name = base_space("delta", "acme/tiny").name
    stranger = Space(name, "another model", OUTPUT_SIZE)
    open_index(sources.index, stranger, BaseFingerprints(sources.session, "output", "acme/tiny"))
    file = sources.index / f"{name}.faiss"
    before = file.read_bytes()
    result = score_by_name(given(sources, direction=along(1.0)), 3, by="gradient", task="t", kind="delta")
    assert list(result) == ["o1/r1", "o2/r2", "o3/r3"]
    assert file.read_bytes() != before


def test_a_pool_whose_file_is_gone_is_one_sentence(sources: Sources, tmp_path: Path) -> None:
    """The manifest's file, then a member's weights: refused, and no half of an export is left."""
    with pytest.raises(NotFoundError, match=r"pool.json does not exist; give a pool's"):
        read_manifest(tmp_path / "pool.json")
    pool = select(Question("pool", "rank", 2), sources).pool

    def fetch(member: Member, file: PinnedFile) -> bytes:
        raise NotFoundError(f"{member.adapter} lost {file.name}; crawl it again.")

    with pytest.raises(NotFoundError, match="lost"):
        export(pool, tmp_path / "out", "peft", fetch, lambda done, total: None)
    assert not list((tmp_path / "out").iterdir())


def test_a_catalog_without_fingerprints_has_no_slope(sources: Sources) -> None:
    sources.session.execute(delete(FingerprintRow))
    with pytest.raises(NotFoundError, match="None of the adapters has a fingerprint"):
        score_by_name(given(sources, direction=along(1.0)), 1, by="gradient", task="t", kind="delta")


@pytest.mark.parametrize("embedder", [None, Drawn()], ids=["words", "words and meaning"])
def test_a_pool_by_text_finds_all_of_its_candidates_however_many_others_fit_better(
    engine: Engine, tmp_path: Path, embedder: Drawn | None
) -> None:
    """Of 600 adapters 30 have the base model, most of all; the cards of the others fit better."""
    fill(engine, 600)
    own = range(571, 601)
    with Session(engine) as session:
        others = [{"id": 2 + n, "canonical": f"acme/other{n}"} for n in range(30)]
        session.execute(sql.insert(BaseModelRow), others)
        for number in range(1, 601):
            card = (
                f"Emotion {number}. "
                + (number in own) * "A long card that speaks of rivers and of paper. " * 9
            )
            values = {"card_text": card, "card_quality": "informative", "license": "cc-by-nc-4.0"}
            values |= {"base_model_id": 2 + number % 30}
            if number in own:
                values |= {"base_model_id": 1, "license": "mit"}
            session.execute(update(Adapter).where(Adapter.repository_id == number).values(values))
        session.commit()
        if embedder is not None:
            embed_cards(session, embedder)
        sources = Sources(session, (), tmp_path / "index", BlobStore(tmp_path), lambda: embedder, nobody)
        text: dict[str, Any] = {"by": "text", "text": "emotion"}
        everybody = tuple(f"o{number % 100}/r{number}" for number in range(1, 571))
        pools = {
            "filter": score_by_name(sources, 20, **text, where="base:acme/tiny"),
            "base model": score_by_name(sources, 20, **text, base="acme/tiny"),
            "usual base model": score_by_name(sources, 20, **text),
            "use": score_by_name(sources, 20, **text, use="commercial"),
        }
        assert len(pools["filter"]) == 20
        assert all(list(pool.items()) == list(pools["filter"].items()) for pool in pools.values())
        assert len(score_by_name(sources, 30, **text, base="acme/tiny")) == 30
        # Within a base model too, where most are left out.
        session.execute(update(Adapter).values(base_model_id=1))
        for way in ({"use": "commercial"}, {"exclude": everybody}):
            assert list(score_by_name(sources, 20, **text, **way).items()) == list(pools["filter"].items())
