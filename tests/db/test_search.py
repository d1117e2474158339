"""Cards become vectors once, and search joins words and meaning; on both databases."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import Engine, func, insert, select, update
from sqlalchemy.orm import Session

from catalog.database import Adapter, AdapterReason, BaseModelRow, Embedding, Repository
from catalog.errors import CatalogError, UsageError
from catalog.index.encoder import MOST_CHUNKS, chunks, content_of
from catalog.query import parse
from catalog.search.ranking import DEPTH, Found, SearchHit, SearchWeights, open_texts, query_vector, search
from catalog.search.texts import EmbedCounts, embed_cards

NOW = datetime(2026, 1, 1, tzinfo=UTC)
# Words that mean the same, by axis; all other words have a direction of their own, nearly at right angles.
AXES = (
    ("emotion", "mood", "feelings", "sentiment"),
    ("sql", "database", "queries"),
    ("poems", "verse", "poetry"),
)
ALSO = " This card was written by hand for a test of search."


class Thesaurus:
    """An encoder that knows a few synonyms."""

    name = "thesaurus@1"
    size = 32

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.batches.append(list(texts))
        vectors = np.array([self.vector(text) for text in texts]).reshape(len(texts), self.size)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    def vector(self, text: str) -> NDArray[np.float64]:
        total = np.zeros(self.size)
        for word in text.lower().replace(".", " ").replace(",", " ").split():
            axis = next((n for n, words in enumerate(AXES) if word in words), None)
            if axis is not None:
                total[axis] += 5
            else:
                seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
                noise = np.random.default_rng(seed).normal(size=self.size - len(AXES))
                total[len(AXES) :] += noise / np.linalg.norm(noise)
        return total


def add(
    session: Session, name: str, card: str = "", *, quality: str = "", subfolder: str = "", **arguments: Any
) -> Adapter:
    repository = session.scalar(select(Repository).where(Repository.name == name)) or Repository(
        hub_id=name, name=name, owner=name.partition("/")[0], disabled=False, private=False,
        tags=arguments.pop("tags", []), first_seen=NOW, last_seen=NOW, gone_at=arguments.pop("gone_at", None),
    )  # fmt: skip
    plain: dict[str, Any] = {"commit": "c" * 40, "main": True, "current": True, "files": [], "targets": []}
    plain |= {"dtypes": [], "described_with": "", "training": {}, "card_front": {}, "rank": None}
    adapter = Adapter(
        repository=repository, subfolder=subfolder, card_text=card,
        card_quality=quality or ("informative" if card else "absent"), **(plain | arguments),
    )  # fmt: skip
    session.add(adapter)
    session.flush()
    return adapter


def fill(session: Session) -> None:
    tiny = BaseModelRow(canonical="acme/tiny")
    add(session, "jo/tweet-emotion", "Reads the mood of short posts." + ALSO, rank=8, base_model=tiny)
    add(session, "jo/feelings", "Finds feelings, and how strong they are." + ALSO, rank=16, tags=["nlp"])
    add(session, "jo/TextToSQL", "Writes queries for a database." + ALSO, rank=16)
    add(session, "jo/nameless-emotion", quality="absent")
    add(session, "jo/tool", "This model is a fine-tuned version of emotion.", quality="generated")
    add(session, "jo/poet", "Writes poems in verse." + ALSO, card_front={"datasets": ["emotion_poems"]})
    add(session, "jo/gone", "Reads emotion and mood." + ALSO, gone_at=NOW)
    add(session, "jo/old", "Reads emotion and mood, long ago." + ALSO, current=False)
    session.commit()


def found(session: Session, folder: Path, text: str, k: int = 10, **arguments: Any) -> Found:
    embedder, rows = arguments.pop("embedder", Thesaurus()), arguments.pop("among", None)

    def among(ids: Collection[int] | None) -> set[int]:
        return set(rows) if ids is None else rows.intersection(ids)

    with open_texts(session, folder, embedder) as texts:
        return search(session, texts, text, k, **arguments, among=None if rows is None else among)


def names(result: Found) -> list[str]:
    return [hit.adapter for hit in result.hits]


def embeddings(session: Session) -> dict[tuple[str, str, int], bytes]:
    rows = session.execute(select(Embedding.content, Embedding.model, Embedding.chunk, Embedding.vector))
    return {(content, model, chunk): vector for content, model, chunk, vector in rows}


def test_every_card_with_content_is_embedded_once(engine: Engine) -> None:
    shared = "The same card stands in two folders of one repository." + ALSO
    with Session(engine) as session:
        fill(session)
        add(session, "jo/two", shared)
        add(session, "jo/two", shared, subfolder="second", main=False)
        session.commit()
        embedder, document = Thesaurus(), list[tuple[int, int]]()
        counts = embed_cards(session, embedder, lambda done, total: document.append((done, total)))
        assert counts == EmbedCounts(adapters=8, missing=2, texts=5, known=0, new=5, chunks=5)
        assert document == [(0, 5), (5, 5)]
        stored = embeddings(session)
        assert sum(text == shared for batch in embedder.batches for text in batch) == 1
        vector = np.frombuffer(stored[content_of(shared), "thesaurus@1", 0], dtype="<f4")
        assert np.array_equal(vector, Thesaurus().encode([shared])[0])
        again = Thesaurus()
        assert embed_cards(session, again) == EmbedCounts(8, 2, 5, known=5, new=0, chunks=0)
        assert again.batches == []
        assert embeddings(session) == stored


def test_a_changed_card_and_another_encoder_are_embedded_anew(engine: Engine) -> None:
    class Other(Thesaurus):
        name = "thesaurus@2"

    with Session(engine) as session:
        fill(session)
        embed_cards(session, Thesaurus())
        session.execute(
            update(Adapter).where(Adapter.rank == 8).values(card_text="Another description, of poems." + ALSO)
        )
        session.commit()
        assert embed_cards(session, Thesaurus()).new == 1
        assert embed_cards(session, Other()).new == 4
        assert {model for _, model, _ in embeddings(session)} == {"thesaurus@1", "thesaurus@2"}


def test_an_interrupted_run_goes_on_where_it_stopped(engine: Engine) -> None:
    class Dies(Thesaurus):
        def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
            if len(self.batches) == 1:
                raise KeyboardInterrupt
            return super().encode(texts)

    with Session(engine) as session:
        for n in range(50):
            add(session, f"jo/a{n}", f"Card number {n} is about {n} things." + ALSO)
        session.commit()
        with pytest.raises(KeyboardInterrupt):
            embed_cards(session, Dies())
    with Session(engine) as session:
        remaining = embeddings(session)
        counts = embed_cards(session, Thesaurus())
        assert (counts.known, counts.new) == (len(remaining), 50 - len(remaining)) == (32, 18)
        assert remaining.items() <= embeddings(session).items()


def test_two_that_embed_at_the_same_time_do_not_hinder_each_other(engine: Engine) -> None:
    """The other one embeds everything, and writes, while the encoder of the first one works."""

    class Slow(Thesaurus):
        def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
            with Session(engine) as other:
                embed_cards(other, Thesaurus())
            return super().encode(texts)

    with Session(engine) as session:
        fill(session)
        assert embed_cards(session, Slow()).new == 4
        assert len(embeddings(session)) == 4


def test_a_card_that_changes_meanwhile_is_left_to_the_next_run(engine: Engine) -> None:
    def change(done: int, total: int) -> None:
        if done == 0:
            with Session(engine) as other:
                other.execute(
                    update(Adapter).where(Adapter.rank == 8).values(card_text="Writes poems now." + ALSO)
                )
                other.execute(update(Adapter).where(Adapter.rank == 16).values(card_text=""))
                other.commit()

    with Session(engine) as session:
        add(session, "jo/a", "Reads the mood of posts." + ALSO, rank=8)
        add(session, "jo/b", "Writes queries for a database." + ALSO, rank=16)
        session.commit()
        assert embed_cards(session, Thesaurus(), change).chunks == 0
        assert embeddings(session) == {}
        assert embed_cards(session, Thesaurus()).chunks == 1
        assert [content for content, _, _ in embeddings(session)] == [content_of("Writes poems now." + ALSO)]


def test_a_long_card_has_its_chunks_and_no_more_than_the_most(engine: Engine) -> None:
    long = "\n\n".join(f"Paragraph {n} speaks of {'matter ' * 120}." for n in range(60))
    with Session(engine) as session:
        add(session, "jo/long", long)
        session.commit()
        assert embed_cards(session, Thesaurus()).chunks == MOST_CHUNKS
        assert {chunk for _, _, chunk in embeddings(session)} == set(range(MOST_CHUNKS))


@pytest.mark.parametrize("bad", ["nan", "short", "few"])
def test_an_encoder_that_breaks_its_promise_writes_nothing(engine: Engine, bad: str) -> None:
    class Broken(Thesaurus):
        def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
            vectors = super().encode(texts)
            broken = {"nan": vectors * np.float32("nan"), "short": vectors[:, :-1], "few": vectors[:-1]}
            return broken[bad]

    with Session(engine) as session:
        fill(session)
        with pytest.raises(CatalogError, match="returned invalid vectors"):
            embed_cards(session, Broken())
        session.rollback()
        assert embeddings(session) == {}


def test_words_and_meaning_are_joined(engine: Engine, tmp_path: Path) -> None:
    with Session(engine) as session:
        fill(session)
        embed_cards(session, Thesaurus())
        result = found(session, tmp_path, "emotion")
        # By words: two names, the tool's card, the poet's dataset. By meaning: mood and feelings first.
        assert names(result)[0] == "jo/tweet-emotion"
        assert set(names(result)) == {
            *("jo/tweet-emotion", "jo/feelings", "jo/nameless-emotion", "jo/tool", "jo/poet"),
        }
        assert result.notes == ()
        by_name = {hit.adapter: hit for hit in result.hits}
        first = by_name["jo/tweet-emotion"]
        assert first.words == {"name": ("emotion",)}
        assert first.cosine == pytest.approx(
            float(cosine("emotion", "Reads the mood of short posts." + ALSO)), abs=1e-6
        )
        assert first.excerpt.startswith("Reads the mood of short posts.")
        assert first.why.startswith("name: emotion; meaning 0.")
        assert by_name["jo/tool"].cosine is None
        assert by_name["jo/tool"].why == "card: emotion"
        assert by_name["jo/poet"].words == {"datasets": ("emotion",)}
        assert by_name["jo/feelings"].words == {}
        assert "jo/gone" not in by_name
        assert "jo/old" not in by_name


def cosine(left: str, right: str) -> Any:
    a, b = Thesaurus().encode([left, right]).astype(np.float64)
    return a @ b


def ranks(scores: dict[str, float]) -> dict[str, int]:
    return {name: 1 + sum(other > score for other in scores.values()) for name, score in scores.items()}


@pytest.mark.parametrize(
    "weights", [SearchWeights(), SearchWeights(3, 1), SearchWeights(0, 1), SearchWeights(1, 0)]
)
def test_scores_are_the_reciprocal_rank_fusion(
    engine: Engine, tmp_path: Path, weights: SearchWeights
) -> None:
    with Session(engine) as session:
        fill(session)
        embed_cards(session, Thesaurus())
        query = "emotion of verse"
        result = found(session, tmp_path, query, weights=weights)
        with open_texts(session, tmp_path, None) as texts:
            found_names = texts.words.names(range(1, 99))
            words = ranks({found_names[hit.id]: hit.score for hit in texts.words.search(query, 99)})
        listed = (
            select(Repository.name, Adapter.card_text)
            .join(Adapter.repository)
            .where(Adapter.current, Repository.gone_at.is_(None), Adapter.card_quality == "informative")
        )
        cosines = {name: cosine(query, card) for name, card in session.execute(listed)}
        meaning = ranks({name: value for name, value in cosines.items() if value > 0})
        expected = {
            name: (weights.words / (60 + words[name]) if name in words else 0)
            + (weights.meaning / (60 + meaning[name]) if name in meaning else 0)
            for name in {*words, *meaning}
        }
        expected = {name: score for name, score in expected.items() if score}
        assert {hit.adapter: hit.score for hit in result.hits} == pytest.approx(expected)
        assert names(result) == sorted(expected, key=lambda name: (-expected[name], name not in words, name))


def test_equal_cards_share_a_rank(engine: Engine, tmp_path: Path) -> None:
    with Session(engine) as session:
        for name in ("jo/c", "jo/a", "jo/b"):
            add(session, name, "Reads the mood of posts." + ALSO)
        add(session, "jo/d", "Reads the mood of posts and writes poems." + ALSO)
        session.commit()
        embed_cards(session, Thesaurus())
        result = found(session, tmp_path, "feelings", weights=SearchWeights(0, 1))
        assert names(result) == ["jo/a", "jo/b", "jo/c", "jo/d"]
        assert [hit.score for hit in result.hits] == [1 / 61, 1 / 61, 1 / 61, 1 / 62]


def test_cards_of_equal_cosine_share_a_rank(engine: Engine, tmp_path: Path) -> None:
    class Coarse(Thesaurus):
        def vector(self, text: str) -> NDArray[np.float64]:
            return np.eye(self.size)[0] + np.eye(self.size)[1] * ("poems" in text)

    with Session(engine) as session:
        for name, card in {"c": "Reads moods.", "a": "Reads posts.", "b": "Reads poems."}.items():
            add(session, f"jo/{name}", card + ALSO)
        session.commit()
        embed_cards(session, Coarse())
        result = found(session, tmp_path, "anything", embedder=Coarse(), weights=SearchWeights(0, 1))
        assert [(hit.adapter, hit.score) for hit in result.hits] == [
            ("jo/a", 1 / 61),
            ("jo/c", 1 / 61),
            ("jo/b", 1 / 63),
        ]


def test_cards_that_point_elsewhere_are_not_found(engine: Engine, tmp_path: Path) -> None:
    class Opposed(Thesaurus):
        def vector(self, text: str) -> NDArray[np.float64]:
            return np.eye(self.size)[0] * (-1.0 if "opposite" in text else 1.0)

    with Session(engine) as session:
        add(session, "jo/like", "Reads the mood of posts." + ALSO)
        add(session, "jo/unlike", "Does the opposite of what is meant." + ALSO)
        session.commit()
        embed_cards(session, Opposed())
        assert names(found(session, tmp_path, "anything", embedder=Opposed())) == ["jo/like"]


def test_the_best_chunk_speaks_for_a_card(engine: Engine, tmp_path: Path) -> None:
    filler = " ".join(f"word{n}" for n in range(150))
    long = f"{filler}\n\n{filler}\n\nWrites poems, verse and poetry.\n\n{filler}"
    with Session(engine) as session:
        add(session, "jo/long", long)
        add(session, "jo/short", "Writes queries for a database." + ALSO)
        session.commit()
        embed_cards(session, Thesaurus())
        hit = found(session, tmp_path, "poems", weights=SearchWeights(0, 1)).hits[0]
        best = max(chunks(long), key=lambda chunk: cosine("poems", chunk))
        assert hit.adapter == "jo/long"
        assert hit.cosine == pytest.approx(cosine("poems", best), abs=1e-6)
        assert best.startswith(hit.excerpt.removesuffix(" …")[:20])
        assert len(hit.excerpt) <= 162


@pytest.mark.parametrize(
    ("where", "left"),
    [
        ("rank:16", ["jo/feelings"]),
        ("base:acme/tiny", ["jo/tweet-emotion"]),
        ("verdict:skipped", ["jo/poet"]),
        ("-verdict:skipped rank:..16", ["jo/feelings", "jo/tweet-emotion"]),
        ("rank:99", []),
    ],
)
def test_a_filter_bounds_both_rankings(engine: Engine, tmp_path: Path, where: str, left: list[str]) -> None:
    with Session(engine) as session:
        fill(session)
        poet = session.scalars(
            select(Adapter).join(Adapter.repository).where(Repository.name == "jo/poet")
        ).one()
        poet.reasons = [AdapterReason(reason="zero_update", position=0, detail="")]
        session.commit()
        embed_cards(session, Thesaurus())
        result = found(session, tmp_path, "emotion", query=parse(where), refusing={"zero_update"})
        assert sorted(names(result)) == left
        assert result.notes == (() if left else ("No adapter matches the filter.",))
        assert (
            names(found(session, tmp_path, "emotion", k=1, query=parse(where), refusing={"zero_update"}))
            == names(result)[:1]
        )


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.parametrize("weights", [SearchWeights(1, 0), SearchWeights(0, 1)], ids=["words", "meaning"])
def test_a_filter_leaves_the_order_in_a_large_catalog(
    engine: Engine, tmp_path: Path, weights: SearchWeights
) -> None:
    """Of 5,200 adapters half pass, then one in a hundred: some are looked at first, then all of them."""
    rows = range(1, 5201)
    with Session(engine) as session:
        session.execute(insert(Repository), [
            {"id": n, "hub_id": str(n), "name": f"o{n % 100}/r{n}", "owner": f"o{n % 100}", "tags": [],
             "disabled": False, "private": False, "first_seen": NOW, "last_seen": NOW} for n in rows
        ])  # fmt: skip
        session.execute(insert(Adapter), [
            {"repository_id": n, "commit": f"{n:040x}", "subfolder": "", "main": True, "current": True,
             "files": [], "targets": [], "dtypes": [], "described_with": "", "training": {}, "card_front": {},
             "card_quality": "informative", "rank": 8 + n % 2, "card_text": card(n)} for n in rows
        ])  # fmt: skip
        embed_cards(session, Thesaurus())
        every = found(session, tmp_path, "emotion", k=5200, weights=weights)
        for where, passes in (("rank:8", lambda n: n % 2 == 0), ("owner:o7", lambda n: n % 100 == 7)):
            expected = [name for name in names(every) if passes(int(name.rpartition("r")[2]))]
            left = found(session, tmp_path, "emotion", k=25, query=parse(where), weights=weights)
            assert names(left) == expected[:25]
            assert len(expected) >= 25


def card(number: int) -> str:
    """One of 300 cards that say "emotion" more or less often."""
    kind = number * 7 % 300
    return f"Card {kind} " + "emotion " * (1 + kind % 6) + f"word{kind} " * (kind % 11) + ALSO


def test_the_head_of_a_ranking_is_that_of_the_whole(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("catalog.search.ranking.DEPTH", 5)
    words = ["emotion", "mood", "database", "verse", "paper", "river"]
    generator = np.random.default_rng(4)
    with Session(engine) as session:
        for number in range(40):
            card = " ".join(words[n] for n in generator.choice(len(words), size=3)) + ALSO
            add(session, f"jo/{generator.integers(10**6):06}-{number}", card, rank=8 * (1 + number % 2))
        session.commit()
        embed_cards(session, Thesaurus())
        ids = set(session.scalars(select(Adapter.id).where(Adapter.rank == 8)))
        for among in (None, ids):

            def ask(among: set[int] | None = among, **arguments: Any) -> tuple[SearchHit, ...]:
                return found(session, tmp_path, "emotion river", 40, among=among, **arguments).hits

            every, whole = ask(), ask(joined=9)
            assert ask(joined=1000) == every
            assert {hit.id for hit in whole} == {hit.id for hit in every}
            scored = tuple(hit for hit in whole if hit.score)
            assert 0 < len(scored) < len(whole)
            assert scored == whole[: len(scored)]
            for most in (1, 4, 9):
                assert ask(joined=9, most=most) == scored[:most]
            # More are asked for than are joined: the rest is ranked too.
            assert ask(joined=9, most=15) == whole[:15]


@pytest.mark.parametrize("weights", [SearchWeights(1, 0), SearchWeights(0, 1), SearchWeights()])
def test_rows_that_are_given_are_found_however_many_others_are_better(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: SearchWeights
) -> None:
    monkeypatch.setattr("catalog.search.ranking.DEPTH", 5)
    with Session(engine) as session:
        for number in range(60):
            add(session, f"jo/better{number}", f"Emotion and mood {number}." + ALSO, rank=8)
        worse = [
            add(
                session, f"jo/worse{number}", f"Emotion {' of river and paper' * 9} number{number}." + ALSO
            ).id
            for number in range(12)
        ]
        session.commit()
        embed_cards(session, Thesaurus())
        arguments = {"among": set(worse), "weights": weights}
        whole = found(session, tmp_path, "emotion", 12, **arguments).hits
        assert {hit.id for hit in whole} == set(worse)
        filtered = found(session, tmp_path, "emotion", 12, query=parse("-rank:8"), weights=weights).hits
        assert whole == filtered
        whole = found(session, tmp_path, "emotion", 12, **arguments, joined=5).hits
        assert found(session, tmp_path, "emotion", 12, **arguments, most=3, joined=5).hits == whole[:3]
        few = dict(arguments, among=set(worse[:2]))
        assert {hit.id for hit in found(session, tmp_path, "emotion", 9, **few).hits} == set(worse[:2])
        assert found(session, tmp_path, "emotion", 9, among=set()).hits == ()
        # In a large catalog the head of the ranking of all is looked at first.
        monkeypatch.setattr("catalog.search.ranking.LEAST_SCORED", 5)
        assert found(session, tmp_path, "emotion", 12, **arguments, joined=5).hits == whole
        assert found(session, tmp_path, "emotion", 12, **arguments, most=3, joined=5).hits == whole[:3]
        better = {hit.id for hit in found(session, tmp_path, "emotion", 20, weights=weights).hits}
        among = better | set(worse[:3])
        head = found(session, tmp_path, "emotion", 9, among=among, weights=weights, most=4, joined=5).hits
        monkeypatch.undo()
        assert (
            found(session, tmp_path, "emotion", 9, among=among, weights=weights, most=4, joined=5).hits
            == head
        )
        assert found(session, tmp_path, "emotion", 9, among=set()).hits == ()


@pytest.mark.parametrize("where", [None, "rank:8"])
def test_words_that_are_common_count_where_the_rare_ones_find_too_few(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str | None
) -> None:
    for module in ("index.words", "search.ranking"):
        monkeypatch.setattr(f"catalog.{module}.LEAST_SCORED", 10)
    with Session(engine) as session:
        for number in range(60):
            card = "Says river." + " Says quartz." * (number < 2) + ALSO
            add(session, f"jo/a{number:02}", card, rank=16 if number < 2 else 8)
        session.commit()
        words = {"embedder": None, "query": where and parse(where)}
        rare = ["jo/a00", "jo/a01"]
        assert names(found(session, tmp_path, "quartz river", 2, embedder=None)) == rare
        result = names(found(session, tmp_path, "quartz river", 7, **words))
        assert len(result) == 7
        assert (rare == result[:2]) == (where is None)
        ids = set(session.scalars(select(Adapter.id).where(Adapter.rank == 8)))
        assert len(found(session, tmp_path, "quartz river", 58, embedder=None, among=ids).hits) == 58


def test_more_than_the_depth_of_chunks_of_one_card_hide_nobody(engine: Engine, tmp_path: Path) -> None:
    """Ever more chunks are asked for until there are enough cards."""
    with Session(engine) as session:
        for n in range(60):
            pages = [
                f"mood emotion feelings number{n} page{page} " + "mood " * 180 for page in range(MOST_CHUNKS)
            ]
            add(session, f"jo/long{n:03}", "\n\n".join(pages))
        for n in range(DEPTH):
            add(session, f"jo/short{n:03}", f"Card {n} says little of emotion." + ALSO)
        session.commit()
        embed_cards(session, Thesaurus())
        result = found(session, tmp_path, "mood", k=DEPTH, weights=SearchWeights(0, 1))
        assert len(result.hits) == DEPTH
        assert {name[:7] for name in names(result)[:60]} == {"jo/long"}
        assert {name[:8] for name in names(result)[60:]} == {"jo/short"}


def test_an_index_of_another_encoder_is_not_taken(engine: Engine, tmp_path: Path) -> None:
    class Mirror(Thesaurus):
        name = "mirror@1"

        def vector(self, text: str) -> NDArray[np.float64]:
            return super().vector(text)[::-1] + (1000.0 if "poems" in text else 0)

    with Session(engine) as session:
        fill(session)
        for embedder in (Thesaurus(), Mirror()):
            embed_cards(session, embedder)
        meaning = {"weights": SearchWeights(0, 1)}
        assert names(found(session, tmp_path, "database", **meaning))[0] == "jo/TextToSQL"
        assert names(found(session, tmp_path, "poems", embedder=Mirror(), **meaning))[0] == "jo/poet"
        assert names(found(session, tmp_path, "database", **meaning))[0] == "jo/TextToSQL"


def test_cards_without_vectors_are_named_and_found_by_words(engine: Engine, tmp_path: Path) -> None:
    with Session(engine) as session:
        fill(session)
        result = found(session, tmp_path, "mood")
        assert names(result) == ["jo/tweet-emotion"]
        assert result.notes == ("4 of 4 cards have no vector yet and were searched by words alone.",)
        embed_cards(session, Thesaurus())
        add(session, "jo/new", "Has a mood of its own, and is new." + ALSO)
        session.commit()
        result = found(session, tmp_path, "mood")
        assert {"jo/new", "jo/tweet-emotion", "jo/feelings"} <= set(names(result))
        assert result.notes == ("1 of 5 cards have no vector yet and were searched by words alone.",)
        assert found(session, tmp_path, "mood", embedder=None).notes == ()


def test_what_changes_in_the_catalog_changes_the_answer(engine: Engine, tmp_path: Path) -> None:
    with Session(engine) as session:
        fill(session)
        embed_cards(session, Thesaurus())
        query = "verse and feelings"
        assert {"jo/poet", "jo/feelings"} <= set(names(found(session, tmp_path, query)))
        session.execute(update(Repository).where(Repository.name == "jo/poet").values(gone_at=NOW))
        session.execute(update(Repository).where(Repository.name == "jo/feelings").values(name="jo/renamed"))
        session.commit()
        after = names(found(session, tmp_path, query))
        assert "jo/poet" not in after
        assert "jo/feelings" not in after
        assert "jo/renamed" in after
        assert names(found(session, tmp_path, "renamed", weights=SearchWeights(1, 0))) == ["jo/renamed"]


def test_an_empty_catalog_and_a_search_for_nothing(engine: Engine, tmp_path: Path) -> None:
    with Session(engine) as session:
        assert found(session, tmp_path, "emotion") == Found(
            (), ("The catalog contains no adapters to search.",)
        )
        add(session, "jo/x")
        session.commit()
        assert found(session, tmp_path, "emotion") == Found(
            (), ("No adapter contains any of these words, and no card is similar to them.",)
        )
        assert found(session, tmp_path, "?!").hits == ()
        for text in ("", " \n", "x" * 10_001):
            with pytest.raises(UsageError, match="1 to 10,000 characters"):
                found(session, tmp_path, text)
        with pytest.raises(UsageError, match="at least 1"):
            found(session, tmp_path, "emotion", k=0)


@pytest.mark.parametrize("pair", [(0, 0), (-1, 1), (1, math.nan), (math.inf, 1)])
def test_weights_that_make_no_sense_are_refused(pair: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="non-negative numbers"):
        SearchWeights(*pair)


@pytest.mark.slow
def test_the_vector_of_a_query_is_made_by_one_thread() -> None:
    import torch

    class CountingThesaurus(Thesaurus):
        threads = 0

        def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
            self.threads = torch.get_num_threads()
            return super().encode(texts)

    before, encoder = torch.get_num_threads(), CountingThesaurus()
    torch.set_num_threads(2)
    try:
        vector = query_vector(encoder, "verse")
        assert (encoder.threads, torch.get_num_threads()) == (1, 2)
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(vector, Thesaurus().encode(["verse"])[0])


def test_search_writes_no_rows(engine: Engine, tmp_path: Path) -> None:
    with Session(engine) as session:
        fill(session)
        embed_cards(session, Thesaurus())
        found(session, tmp_path, "emotion", query=parse("rank:8"))
        assert not session.new
        assert not session.dirty
        assert session.scalar(select(func.count()).select_from(Embedding)) == 4


def test_both_databases_and_two_runs_give_the_same(tmp_path: Path, engine: Engine) -> None:
    """The answer is worked out by hand, once for SQLite and PostgreSQL alike.

    poet 2/61, tweet-emotion 1/64 + 1/63, nameless-emotion (a word) and feelings 1/62 each, tool 1/63.
    """
    with Session(engine) as session:
        fill(session)
        embed_cards(session, Thesaurus())
        item = found(session, tmp_path / "one", "emotion verse")
        assert item == found(session, tmp_path / "two", "emotion verse")
        assert item == found(session, tmp_path / "one", "emotion verse")
        arms = {
            kind: names(found(session, tmp_path / "one", "emotion verse", weights=weights))
            for kind, weights in {"words": SearchWeights(1, 0), "meaning": SearchWeights(0, 1)}.items()
        }
    assert arms == {
        "words": ["jo/poet", "jo/nameless-emotion", "jo/tool", "jo/tweet-emotion"],
        "meaning": ["jo/poet", "jo/feelings", "jo/tweet-emotion"],
    }
    assert [(hit.adapter, hit.score) for hit in item.hits] == [
        ("jo/poet", pytest.approx(2 / 61)),
        ("jo/tweet-emotion", pytest.approx(1 / 64 + 1 / 63)),
        ("jo/nameless-emotion", pytest.approx(1 / 62)),
        ("jo/feelings", pytest.approx(1 / 62)),
        ("jo/tool", pytest.approx(1 / 63)),
    ]
