"""Words of names and cards, BM25 against its formula, and the file that caches them."""

from __future__ import annotations

import math
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from catalog.errors import StorageError, UsageError
from catalog.index.words import (
    AdapterText,
    WordIndex,
    check_words,
    open_words,
    rebuild_words,
    separate_words,
    terms,
)


class Source:
    """Texts in a dictionary, and which of them were read."""

    def __init__(self, *texts: AdapterText) -> None:
        self.rows = {text.id: text for text in texts}
        self.read: list[int] = []

    def token(self) -> str:
        return str(sorted(self.versions().items()))

    def versions(self) -> Mapping[int, int]:
        return {key: int.from_bytes(text.digest[:7], "big") for key, text in self.rows.items()}

    def texts(self, ids: Collection[int]) -> Iterable[AdapterText]:
        self.read += sorted(ids)
        return [self.rows[key] for key in sorted(ids) if key in self.rows]


def text(
    key: int, name: str, card: str = "", tags: str = "", datasets: str = "", base: str = ""
) -> AdapterText:
    return AdapterText(key, name, card, tags, datasets, base)


def names(
    index: WordIndex, source: Source, query: str, k: int = 10, among: Collection[int] | None = None
) -> list[str]:
    return [source.rows[hit.id].name for hit in index.search(query, k, among)]


@pytest.mark.parametrize(
    ("whole", "words"),
    [
        ("LlamaGuard", "LlamaGuard Llama Guard"),
        ("tweetEmotion", "tweetEmotion tweet Emotion"),
        ("SQLCoder", "SQLCoder SQL Coder"),
        ("llama31", "llama31 llama 31"),
        ("Llama-3.1-8B", "Llama-3.1-8B"),
        ("v2", "v2"),
        ("q_proj", "q_proj"),
        ("tweet-emotion", "tweet-emotion"),
        ("NASA", "NASA"),
        ("3f2b9c1a-12ab-4cde-9a77-0123456789ab", "3f2b9c1a-12ab-4cde-9a77-0123456789ab"),
        ("情感ab", " 情  感 ab"),
        ("cafe\u0301", "caf\u00e9"),
        ("a\x01b\x02c", "a b c"),
        ("", ""),
    ],
)
def test_words_that_hide_in_others_stand_beside_them(whole: str, words: str) -> None:
    assert separate_words(whole) == words


@pytest.mark.parametrize(
    ("query", "looked_for"),
    [
        ("tweet_emotion", ("tweet", "emotion")),
        ("LlamaGuard guard", ("LlamaGuard", "Llama", "guard")),
        ('" OR NEAR(a b, 2) * ^c {name}:d -e', ("NEAR", "b", "2", "c", "name", "d", "e")),
        ("The names of a bank", ("names", "bank")),
        ("to be or not to be", ("to", "be", "or", "not")),
        ("情感分析", ("情 感", "感 分", "分 析")),
        ("情", ("情",)),
        ("!?", ()),
        (" ".join(f"w{'x' * n}" for n in range(50)), tuple(f"w{'x' * n}" for n in range(32))),
    ],
)
def test_what_is_looked_for(query: str, looked_for: tuple[str, ...]) -> None:
    assert terms(query) == looked_for


@pytest.mark.parametrize(
    "hostile", ["a" * 200_000, "aB" * 100_000, "a1" * 100_000, "A" * 200_000, "情" * 200_000]
)
def test_long_runs_take_time_in_proportion(hostile: str) -> None:
    """Each of these would run for minutes where an expression goes back over what it read."""
    assert len(separate_words(hostile)) <= 4 * len(hostile)


NAMES = Source(
    text(1, "jo/tweet-emotion"),
    text(2, "jo/TweetSentiment", tags="mood"),
    text(3, "jo/3f2b9c1a-12ab-4cde-9a77-0123456789ab"),
    text(4, "jo/sql_coder", card="Writes queries for \u00c9cole databases.", datasets="spider"),
    text(5, "jo/zh", card="情感分析模型"),
)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("tweet", {"jo/tweet-emotion", "jo/TweetSentiment"}),
        ("TWEETS", {"jo/tweet-emotion", "jo/TweetSentiment"}),
        ("sentiment", {"jo/TweetSentiment"}),
        ("tweetsentiment", {"jo/TweetSentiment"}),
        ("mood", {"jo/TweetSentiment"}),
        ("3f2b9c1a", {"jo/3f2b9c1a-12ab-4cde-9a77-0123456789ab"}),
        ("coder", {"jo/sql_coder"}),
        ("ecole", {"jo/sql_coder"}),
        ("query spider", {"jo/sql_coder"}),
        ("情感", {"jo/zh"}),
        ("感情", set()),
        ("nothing", set()),
        ('"', set()),
        ("AND", set()),
    ],
)
def test_names_and_cards_are_found_by_their_words(query: str, found: set[str], tmp_path: Path) -> None:
    with closing(open_words(tmp_path, NAMES)) as index:
        assert set(names(index, NAMES, query)) == found


def test_no_text_is_syntax(tmp_path: Path) -> None:
    with closing(open_words(tmp_path, NAMES)) as index:

        @given(st.text(max_size=40))
        def searched(query: str) -> None:
            hits = {hit.id for hit in index.search(query, 9)}
            assert index.where(query, list(NAMES.rows)).keys() == hits

        searched()


def bm25(documents: list[list[str]], query: list[str], k1: float = 1.2, b: float = 0.75) -> list[float]:
    """Robertson and Zaragoza (2009), eq. 3.15, with the inverse document frequency that FTS5 takes."""
    count, mean = len(documents), sum(map(len, documents)) / len(documents)
    scores = [0.0] * count
    for term in query:
        having = sum(term in document for document in documents)
        weight = max(math.log((count - having + 0.5) / (having + 0.5)), 1e-6)
        for n, document in enumerate(documents):
            frequency = document.count(term)
            scores[n] += weight * frequency * (k1 + 1) / (frequency + k1 * (1 - b + b * len(document) / mean))
    return scores


def test_scores_are_bm25(tmp_path: Path) -> None:
    cards = [
        "red red blue",
        "blue green green grey",
        "red",
        "grey grey grey grey grey blue",
        "green",
        "pink",
        "one two",
    ]
    source = Source(*(text(n, "", card) for n, card in enumerate(cards, 1)))
    with closing(open_words(tmp_path, source)) as index:
        hits = {hit.id: hit.score for hit in index.search("red grey", 10)}
    expected = bm25([card.split() for card in cards], ["red", "grey"])
    assert hits == {n: pytest.approx(score, rel=1e-12) for n, score in enumerate(expected, 1) if score}
    assert len(hits) == 4


def test_ties_are_in_the_order_of_names_and_k_cuts(tmp_path: Path) -> None:
    source = Source(*(text(n, name, "same words") for n, name in enumerate(["d/d", "b/b", "c/c", "a/a"], 1)))
    with closing(open_words(tmp_path, source)) as index:
        assert names(index, source, "same") == ["a/a", "b/b", "c/c", "d/d"]
        assert names(index, source, "same", 2) == ["a/a", "b/b"]
        assert names(index, source, "same", 2, among={1, 3}) == ["c/c", "d/d"]
        assert names(index, source, "same", 2, among={99}) == names(index, source, "same", 2, among=()) == []
        with pytest.raises(UsageError, match="at least 1"):
            index.search("same", 0)


@pytest.mark.parametrize("head", [2, 8, 40, 1000])
def test_a_tie_at_the_end_of_the_head_is_broken_by_names(
    head: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Three scores, by the length of the card, of thirty adapters each.
    cards = ["same" + " filler" * (n % 3) for n in range(90)]
    named = [f"a/{n * 37 % 90:02}" for n in range(90)]
    source = Source(*(text(n, named[n], cards[n]) for n in range(90)))
    order = [name for _, name in sorted((n % 3, named[n]) for n in range(90))]
    monkeypatch.setattr("catalog.index.words._HEAD", head)
    with closing(open_words(tmp_path, source)) as index:
        for k in (1, 4, 29, 30, 31, 89, 90, 200):
            assert names(index, source, "same", k) == order[:k]
        among = set(range(0, 90, 2))
        kept = [name for name in order if named.index(name) in among]
        assert names(index, source, "same", 20, among=among) == kept[:20]


def test_it_says_which_words_stand_where(tmp_path: Path) -> None:
    card = "Emotions of tweets, tweeted. " + "Filler. " * 50
    source = Source(text(1, "jo/TweetEmotion", card, "emotion", "tweet_eval"), text(2, "jo/x", "tweet"))
    with closing(open_words(tmp_path, source)) as index:
        where = index.where("emotion in a tweet", [1])
    assert where == {
        1: {
            "name": ("tweet", "emotion"),
            "card": ("emotions", "tweets", "tweeted"),
            "tags": ("emotion",),
            "datasets": ("tweet",),
        }
    }
    assert list(where[1]) == ["name", "card", "tags", "datasets"]


def test_common_words_are_left_over_where_rare_ones_are_there(tmp_path: Path) -> None:
    """Of 6,000 adapters at most 5,000 are scored: not those that have only a word which nearly all have."""
    cards = {7: "rare model", 8: "odd model", 9: "rare odd"}
    source = Source(*(text(n, f"a/{n:04}", cards.get(n, "model")) for n in range(1, 6001)))
    with closing(open_words(tmp_path, source)) as index:
        assert set(names(index, source, "rare model", 9)) == {"a/0007", "a/0009"}
        assert names(index, source, "odd rare model", 9) == ["a/0009", "a/0007", "a/0008"]
        assert names(index, source, "model", 2) == ["a/0001", "a/0002"]
        assert names(index, source, "rare model", 9, among={8, 9, 10}) == ["a/0009", "a/0010", "a/0008"]
        assert index.where("odd rare model", [7]) == {7: {"card": ("rare", "model")}}


def state(folder: Path, source: Source) -> str:
    return check_words(folder, source).state


def test_a_current_file_is_opened_and_left_alone(tmp_path: Path) -> None:
    source = Source(*NAMES.rows.values())
    assert state(tmp_path, source) == "missing"
    open_words(tmp_path, source).close()
    before, source.read = (tmp_path / "words.db").read_bytes(), []
    with closing(open_words(tmp_path, source)) as index:
        assert names(index, source, "sentiment") == ["jo/TweetSentiment"]
    assert ((tmp_path / "words.db").read_bytes(), source.read) == (before, [])
    assert state(tmp_path, source) == "current"


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        open_words(tmp_path / folder, NAMES).close()
    one, two = ((tmp_path / folder / "words.db").read_bytes() for folder in ("one", "two"))
    assert one == two


def test_only_what_changed_is_read_again(tmp_path: Path) -> None:
    source = Source(*NAMES.rows.values(), *(text(n, f"jo/other{n}", "unrelated") for n in range(10, 20)))
    open_words(tmp_path, source).close()
    source.rows[4] = replace(source.rows[4], card="Draws pictures.")
    source.rows[6] = text(6, "jo/new", "pictures")
    del source.rows[1]
    source.read = []
    assert state(tmp_path, source) == "stale"
    source.read = []
    with (
        closing(open_words(tmp_path, source)) as index,
        closing(open_words(tmp_path / "fresh", source)) as fresh,
    ):
        assert source.read[:2] == [4, 6]
        for query in ("tweet", "pictures", "databases", "jo", "sentiment coder new"):
            assert index.search(query, 20) == fresh.search(query, 20)
        assert set(names(index, source, "pictures")) == {"jo/sql_coder", "jo/new"}
        assert names(index, source, "databases") == []
        assert index.size == 15
    assert state(tmp_path, source) == "current"


def test_a_new_name_alone_is_a_change(tmp_path: Path) -> None:
    source = Source(*NAMES.rows.values())
    open_words(tmp_path, source).close()
    source.rows[1] = replace(source.rows[1], name="jo/renamed")
    with closing(open_words(tmp_path, source)) as index:
        assert names(index, source, "renamed") == ["jo/renamed"]
        assert names(index, source, "emotion") == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip_word(path: Path) -> None:
    data = path.read_bytes()
    assert b"spider" in data
    path.write_bytes(data.replace(b"spider", b"spyder"))


def edit(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)


DAMAGES: list[Callable[[Path], object]] = [
    lambda file: file.write_bytes(b""),
    lambda file: file.write_bytes(b"SQLite format 3\x00" + b"x" * 5000),
    lambda file: file.write_bytes(b"x" * 5000),
    lambda file: file.unlink(),
    lambda file: edit(file, "UPDATE state SET format = 1"),
    lambda file: edit(file, "UPDATE state SET token = 'of another catalog'"),
    lambda file: edit(file, "DROP TABLE source"),
    lambda file: edit(file, "DELETE FROM state"),
]


@pytest.mark.parametrize("number", range(len(DAMAGES)))
def test_a_file_that_cannot_be_used_is_built_again(number: int, tmp_path: Path) -> None:
    open_words(tmp_path, NAMES).close()
    DAMAGES[number](tmp_path / "words.db")
    assert state(tmp_path, NAMES) != "current"
    with closing(open_words(tmp_path, NAMES)) as index:
        assert names(index, NAMES, "sentiment") == ["jo/TweetSentiment"]
    assert state(tmp_path, NAMES) == "current"


@pytest.mark.parametrize("damage", [cut, flip_word])
def test_damage_inside_is_noticed_by_the_full_check(damage: Callable[[Path], None], tmp_path: Path) -> None:
    open_words(tmp_path, NAMES).close()
    damage(tmp_path / "words.db")
    assert state(tmp_path, NAMES) == "corrupt"
    assert rebuild_words(tmp_path, NAMES).state == "current"


def test_damage_that_a_search_meets_removes_the_file_with_one_sentence(tmp_path: Path) -> None:
    source = Source(*(text(n, f"jo/{n}", f"word{n} " * 500) for n in range(50)))
    open_words(tmp_path, source).close()
    file = tmp_path / "words.db"
    half = file.stat().st_size // 2
    with file.open("r+b") as opened:
        opened.seek(half)
        opened.write(b"\xff" * half)
    with (
        closing(open_words(tmp_path, source)) as index,
        pytest.raises(StorageError, match="damaged and was removed: run the command again"),
    ):
        index.where("word1 word30", range(50))
    with closing(open_words(tmp_path, source)) as index:
        assert index.search("word30", 60)[0].id == 30


def test_a_text_that_changed_without_a_version_is_noticed_by_the_full_check(tmp_path: Path) -> None:
    """As where a trigger was missing when it changed."""

    class Unnoticed(Source):
        def versions(self) -> Mapping[int, int]:
            return dict.fromkeys(self.rows, 1)

    source = Unnoticed(*NAMES.rows.values())
    open_words(tmp_path, source).close()
    source.rows[4] = replace(source.rows[4], card="Draws pictures.")
    open_words(tmp_path, source).close()
    assert state(tmp_path, source) == "stale"


def test_which_cards_are_of_whom_and_have_vectors_is_known(tmp_path: Path) -> None:
    source = Source(*(replace(text(n, f"jo/{n}"), content="ab"[n // 2]) for n in range(3)), text(3, "jo/3"))
    with closing(open_words(tmp_path, source)) as index:
        assert (index.size, index.cards) == (4, 2)
        assert index.names([0, 3, 9]) == {0: "jo/0", 3: "jo/3"}
        assert index.card_contents() == {"a", "b"}
        assert index.contents([1, 3]) == {1: "a"}
        assert index.adapters(["a", "b", "c"]) == {"a": [0, 1], "b": [2]}
        assert index.missing_vectors("m", "token") is None
        index.note_vectors("m", "token", 2)
    with closing(open_words(tmp_path, source)) as index:
        assert index.missing_vectors("m", "token") == 2
        assert index.missing_vectors("m", "another") is None


def test_an_open_index_stays_as_it_was_opened(tmp_path: Path) -> None:
    source = Source(*NAMES.rows.values())
    with closing(open_words(tmp_path, source)) as old:
        source.rows = {9: text(9, "jo/other")}
        with closing(open_words(tmp_path, source)) as new:
            assert [hit.id for hit in new.search("other tweet", 9)] == [9]
            assert {hit.id for hit in old.search("other tweet", 9)} == {1, 2}


def test_where_nothing_can_be_written_it_works_from_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with closing(open_words(tmp_path / "file" / "index", NAMES)) as index:
        assert names(index, NAMES, "sentiment") == ["jo/TweetSentiment"]
    assert "cannot be written" in caplog.text


@pytest.mark.parametrize("changed", [False, True])
def test_a_file_of_the_same_texts_serves_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: bool
) -> None:
    """A token that moved without a difference, as one does where an adapter at an older commit changes."""
    source = Source(*NAMES.rows.values())
    open_words(tmp_path, source).close()
    (tmp_path / "words.lock").unlink(missing_ok=True)
    (tmp_path / "words.lock").mkdir()
    monkeypatch.setattr(source, "token", lambda: "moved")
    if changed:
        source.rows[9] = text(9, "jo/other-sentiment")
    source.read.clear()
    with closing(open_words(tmp_path, source)) as index:
        expected = ["jo/TweetSentiment"] + ["jo/other-sentiment"] * changed
        assert sorted(names(index, source, "sentiment")) == expected
    assert source.read == (sorted(source.rows) if changed else [])


def test_while_another_process_writes_it_works_from_memory(tmp_path: Path) -> None:
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with FileLock(tmp_path / "words.lock"):
            held.set()
            done.wait(60)

    other = threading.Thread(target=hold)
    other.start()
    try:
        assert held.wait(60)
        with closing(open_words(tmp_path, NAMES)) as index:
            assert names(index, NAMES, "sentiment") == ["jo/TweetSentiment"]
        assert not (tmp_path / "words.db").exists()
    finally:
        done.set()
        other.join()


def test_an_empty_catalog_has_no_words(tmp_path: Path) -> None:
    with closing(open_words(tmp_path, Source())) as index:
        assert (index.size, index.search("tweet", 5), index.where("tweet", [1])) == (0, [], {})
