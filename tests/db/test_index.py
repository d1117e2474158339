"""The vector index finds what numpy finds; its files are a cache, and answers stay right without them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sqlalchemy import Engine, delete, insert, select
from sqlalchemy.orm import Session

from catalog.database import Embedding, read_token, read_versions
from catalog.errors import CatalogError, UsageError
from catalog.fingerprints import near_pairs
from catalog.index.vectors import (
    PART_LENGTH,
    Space,
    VectorHit,
    VectorIndex,
    _line_ends,
    _seal,
    check_index,
    open_index,
)

SIZE = 8
SPACE = Space("text", "a-model", SIZE)
Rows = dict[str, NDArray[np.float32]]


class Stored:
    """The vectors of one model in the table of embeddings."""

    def __init__(self, session: Session, model: str) -> None:
        self.session, self.model = session, model

    def token(self) -> str:
        return read_token(self.session, "embeddings")

    def versions(self) -> dict[str, int]:
        return read_versions(self.session, "embeddings")

    def keys(self, parts: Collection[str] | None = None) -> Sequence[str]:
        every = self.session.scalars(select(Embedding.content).where(Embedding.model == self.model))
        return sorted(key for key in every if parts is None or key[:PART_LENGTH] in parts)

    def vectors(self, keys: Sequence[str]) -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(keys), 7):
            block = keys[start : start + 7]
            rows = self.session.execute(
                select(Embedding.content, Embedding.vector).where(
                    Embedding.model == self.model, Embedding.content.in_(block)
                )
            )
            result = {content: np.frombuffer(vector, dtype="<f4") for content, vector in rows}
            yield np.stack([result[key] for key in block])


class Given:
    """Vectors at hand; `read` counts how often they were asked for."""

    def __init__(self, rows: Rows, block: int = 5) -> None:
        self.rows, self.block, self.read = rows, block, 0

    def token(self) -> str:
        return str(self.versions())

    def versions(self) -> dict[str, int]:
        """The sum of what each part holds."""
        parts: dict[str, bytes] = {}
        for key in sorted(self.rows):
            part = key[:PART_LENGTH]
            parts[part] = parts.get(part, b"") + key.encode() + self.rows[key].tobytes()
        return {part: zlib.crc32(held) for part, held in parts.items()}

    def keys(self, parts: Collection[str] | None = None) -> Sequence[str]:
        return sorted(key for key in self.rows if parts is None or key[:PART_LENGTH] in parts)

    def vectors(self, keys: Sequence[str]) -> Iterator[NDArray[np.float32]]:
        self.read += 1
        for start in range(0, len(keys), self.block):
            yield np.stack([self.rows[key] for key in keys[start : start + self.block]])


def random_rows(count: int, size: int = SIZE, seed: int = 0) -> Rows:
    values = np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)
    return {f"key{number:04d}": row for number, row in enumerate(values)}


def cosine(left: NDArray[Any], right: NDArray[Any]) -> float:
    a, b = left.astype(np.float64), right.astype(np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def nearest(rows: Rows, query: NDArray[Any], k: int) -> list[str]:
    return sorted(rows, key=lambda key: (-cosine(rows[key], query), key))[:k]


def keys(hits: list[VectorHit]) -> list[str]:
    return [hit.key for hit in hits]


def write(session: Session, model: str, rows: Rows) -> None:
    values = [
        {"content": key, "model": model, "chunk": 0, "vector": row.astype("<f4").tobytes()}
        for key, row in rows.items()
    ]
    session.execute(insert(Embedding), values)
    session.commit()


# The database is the truth.


def test_an_index_over_the_database_finds_what_numpy_finds(engine: Engine, tmp_path: Path) -> None:
    rows = random_rows(40)
    with Session(engine) as session:
        write(session, "a-model", rows)
        write(session, "b-model", random_rows(5, seed=1))
        result = open_index(tmp_path / "index", SPACE, Stored(session, "a-model"))
        again = open_index(tmp_path / "index", SPACE, Stored(session, "a-model"))
    for index in (result, again):
        assert index.keys == tuple(sorted(rows))
        for query in rows.values():
            hits = index.search(query, 5)
            assert keys(hits) == nearest(rows, query, 5)
            assert [hit.score for hit in hits] == pytest.approx(
                [cosine(rows[hit.key], query) for hit in hits], abs=2e-7
            )


def test_case_83_rows_that_go_and_come_make_the_file_stale(engine: Engine, tmp_path: Path) -> None:
    rows = random_rows(20)
    with Session(engine) as session:
        write(session, "a-model", rows)
        source = Stored(session, "a-model")
        assert check_index(tmp_path, SPACE, source).state == "missing"
        open_index(tmp_path, SPACE, source)
        assert check_index(tmp_path, SPACE, source).state == "current"
        session.execute(delete(Embedding).where(Embedding.content == "key0007"))
        session.commit()
        stale = check_index(tmp_path, SPACE, source)
        assert (stale.state, stale.vectors) == ("stale", 20)
        without = open_index(tmp_path, SPACE, source)
        assert "key0007" not in without.keys
        assert "key0007" not in keys(without.search(rows["key0007"], 20))
        write(session, "a-model", {"key9999": rows["key0007"]})
        assert keys(open_index(tmp_path, SPACE, source).search(rows["key0007"], 1)) == ["key9999"]
        current = check_index(tmp_path, SPACE, source)
    assert (current.state, current.vectors, current.path) == ("current", 20, tmp_path / "text.faiss")


def test_case_85_the_index_of_another_model_is_refused(engine: Engine, tmp_path: Path) -> None:
    ours, theirs = random_rows(10), random_rows(10, seed=1)
    other = Space("text", "b-model", SIZE)
    with Session(engine) as session:
        write(session, "a-model", ours)
        write(session, "b-model", theirs)
        open_index(tmp_path, SPACE, Stored(session, "a-model"))
        assert check_index(tmp_path, other, Stored(session, "b-model")).state == "stale"
        result = open_index(tmp_path, other, Stored(session, "b-model"))
    assert keys(result.search(theirs["key0003"], 1)) == ["key0003"]
    assert result.search(theirs["key0003"], 1)[0].score == pytest.approx(1, abs=1e-7)


# Searching.

small = st.lists(
    st.lists(st.integers(-2, 2), min_size=3, max_size=3).filter(any), min_size=1, max_size=25
).map(lambda values: np.array(values, dtype=np.float32))


@settings(deadline=None)
@given(small, st.integers(1, 30), st.data())
def test_nothing_nearer_is_left_out_and_equal_vectors_come_by_key(
    values: NDArray[np.float32], k: int, data: st.DataObject
) -> None:
    rows = {f"{number:02d}": row for number, row in enumerate(values)}
    index = in_memory(rows, 3)
    query = values[data.draw(st.integers(0, len(values) - 1))]
    among = data.draw(st.none() | st.sets(st.sampled_from([*rows, "unknown"])))
    admitted = set(rows) if among is None else among & set(rows)
    hits = index.search(query, k, among)
    assert len(hits) == min(k, len(admitted)) == len(set(keys(hits)))
    assert hits == sorted(hits, key=lambda hit: (-hit.score, hit.key))
    for hit in hits:
        assert hit.key in admitted
        assert hit.score == pytest.approx(cosine(rows[hit.key], query), abs=2e-7)
    for key in admitted - set(keys(hits)):
        assert cosine(rows[key], query) <= hits[-1].score + 2e-7
        assert all(key > hit.key for hit in hits if (rows[hit.key] == rows[key]).all())


def in_memory(rows: Rows, size: int = SIZE) -> VectorIndex:
    """An index that keeps no file: a path below a file is no folder."""
    logging.getLogger("catalog.index.vectors").setLevel(logging.ERROR)
    try:
        return open_index(Path(__file__) / "index", Space("text", "a-model", size), Given(rows))
    finally:
        logging.getLogger("catalog.index.vectors").setLevel(logging.NOTSET)


@pytest.mark.parametrize("k", [1, 3, 39, 40, 41])
def test_a_tie_at_the_end_is_cut_by_key(k: int) -> None:
    rows = random_rows(200)
    same = [f"key{number:04d}" for number in range(0, 200, 5)]
    rows |= {key: np.float32(2 ** (number % 3)) * rows["key0000"] for number, key in enumerate(same)}
    hits = in_memory(rows).search(rows["key0000"], k)
    assert keys(hits)[:40] == same[:k]
    assert keys(hits) == nearest(rows, rows["key0000"], k)


@pytest.mark.parametrize("few", [0, 10**9], ids=["selector", "rows"])
def test_a_filter_gives_the_best_of_what_it_admits(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catalog.index.vectors._FEW", few)
    rows = random_rows(300)
    index = in_memory(rows)
    for number in range(5):
        among = sorted(rows)[number :: number + 2]
        admitted = {key: rows[key] for key in among}
        query = rows[f"key{number:04d}"]
        assert keys(index.search(query, 12, among)) == nearest(admitted, query, 12)
        assert index.search(query, 12, set(rows)) == in_memory(rows).search(query, 12)


def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    index = in_memory(random_rows(3))
    query = np.ones(SIZE)
    assert index.search(query, 2, among=[]) == []
    assert index.search(query, 2, among=["no such key"]) == []
    assert len(index.search(query, 1000)) == 3
    empty = Given({})
    for _ in range(2):
        nothing = open_index(tmp_path, SPACE, empty)
        assert nothing.keys == ()
        assert nothing.search(query, 5) == []
    assert check_index(tmp_path, SPACE, empty).state == "current"


@pytest.mark.parametrize(
    ("query", "k", "words"),
    [
        pytest.param(np.ones(SIZE), 0, "at least 1", id="no-neighbours"),
        pytest.param(np.ones(SIZE + 1), 1, "8 numbers", id="other-size"),
        pytest.param(np.ones((1, SIZE)), 1, "8 numbers", id="a-matrix"),
        pytest.param(np.zeros(SIZE), 1, "not zero", id="zero"),
        pytest.param(np.array([np.nan] + [1.0] * 7), 1, "finite", id="nan"),
        pytest.param(np.array([np.inf] + [1.0] * 7), 1, "finite", id="infinite"),
    ],
)
def test_questions_without_an_answer_are_refused(query: NDArray[Any], k: int, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        in_memory(random_rows(3)).search(query, k)


def test_only_the_direction_of_a_vector_counts() -> None:
    base = np.arange(1, SIZE + 1, dtype=np.float32)
    rows = {
        "huge": base * np.float32(1e30),
        "like": base,
        "opposite": -base,
        "tiny": base * np.float32(1e-30),
    }
    hits = {hit.key: hit.score for hit in in_memory(rows).search(base.astype(np.float64) * 1e-100, 4)}
    assert hits == {key: pytest.approx(-1 if key == "opposite" else 1, abs=1e-7) for key in rows}


# Pairs.


@pytest.mark.parametrize("tile", [1, 30, 8 << 20])
@pytest.mark.parametrize("at_least", [-1.0, 0.0, 0.4, 1.0])
def test_near_pairs_are_those_of_numpy(tile: int, at_least: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catalog.fingerprints.copies._TILE", tile)
    rows = random_rows(30)
    rows["key0029"] = rows["key0004"].copy()
    names = sorted(rows)
    pairs = [(a, b) for n, a in enumerate(names) for b in names[n + 1 :]]
    expected = [(a, b) for a, b in pairs if cosine(rows[a], rows[b]) >= at_least - 1e-12]
    units = np.stack([rows[name] / np.linalg.norm(rows[name]) for name in names])
    result = [(names[a], names[b], score) for a, b, score in near_pairs(units, at_least)]
    assert [(a, b) for a, b, _ in result] == expected
    assert [score for *_, score in result] == pytest.approx(
        [cosine(rows[a], rows[b]) for a, b in expected], abs=2e-7
    )


# Vectors that cannot be indexed.


def test_a_zero_vector_is_left_out_by_name(tmp_path: Path) -> None:
    rows = random_rows(4) | {"key0002": np.zeros(SIZE, dtype=np.float32)}
    source = Given(rows)
    for _ in range(2):
        index = open_index(tmp_path, SPACE, source)
        assert (index.skipped, index.keys) == (("key0002",), ("key0000", "key0001", "key0003"))
        assert keys(index.search(rows["key0003"], 9, among=rows)) == nearest(
            {key: row for key, row in rows.items() if row.any()}, rows["key0003"], 3
        )
    assert source.read == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_refused_by_name(bad: float, tmp_path: Path) -> None:
    rows = random_rows(12)
    rows["key0007"][3] = bad
    with pytest.raises(CatalogError, match=r"text vector of key0007 is not finite"):
        open_index(tmp_path, SPACE, Given(rows))
    assert list(tmp_path.iterdir()) == []


def test_a_vector_of_another_size_is_refused_by_name(tmp_path: Path) -> None:
    rows = random_rows(3) | {f"other{number}": np.ones(SIZE - 1, dtype=np.float32) for number in range(2)}
    with pytest.raises(CatalogError, match=r"other0 does not have 8 numbers"):
        open_index(tmp_path, SPACE, Given(rows, block=3))


@pytest.mark.parametrize("change", [-1, 1])
def test_more_or_fewer_vectors_than_keys_are_refused(change: int, tmp_path: Path) -> None:
    class Changing(Given):
        def vectors(self, keys: Sequence[str]) -> Iterator[NDArray[np.float32]]:
            yield np.ones((len(keys) + change, SIZE), dtype=np.float32)

    with pytest.raises(CatalogError, match="changed while they were read"):
        open_index(tmp_path, SPACE, Changing(random_rows(5)))


@pytest.mark.parametrize("wrong", [["b", "a"], ["a", "a"]])
def test_keys_must_be_sorted_and_unique(wrong: list[str], tmp_path: Path) -> None:
    class Unsorted(Given):
        def keys(self, parts: Collection[str] | None = None) -> Sequence[str]:
            return wrong

    with pytest.raises(ValueError, match="sorted and unique"):
        open_index(tmp_path, SPACE, Unsorted({}))


@pytest.mark.parametrize("name", ["", "../up", "a b", "Text", "a/b"])
def test_the_name_of_a_space_is_a_plain_file_name(name: str) -> None:
    with pytest.raises(ValueError, match="not a valid space"):
        Space(name, "1", 4)


# The files are a cache.


def test_a_current_file_is_used_and_the_vectors_are_not_read(tmp_path: Path) -> None:
    rows = random_rows(30)
    source = Given(rows)
    first, second = (open_index(tmp_path, SPACE, source) for _ in range(2))
    assert source.read == 1
    assert second.keys == first.keys
    assert second.search(rows["key0001"], 30) == first.search(rows["key0001"], 30)


@pytest.mark.parametrize("keys", [["aa", "bb", "cc"], ["a", "bbb", "cc"], ["aaaaa", "b", "c"], ["a"], []])
def test_keys_of_one_length_and_of_several_are_read_back(keys: list[str], tmp_path: Path) -> None:
    generator = np.random.default_rng(8)
    rows = {key: generator.normal(size=SIZE).astype("<f4") for key in keys}
    open_index(tmp_path, SPACE, Given(rows))
    source = Given(rows)
    index = open_index(tmp_path, SPACE, source)
    assert source.read == 0
    assert index.keys == tuple(keys)
    assert [index.search(row, 1)[0].key for row in rows.values()] == keys


def test_lines_of_a_known_number_and_of_one_length_are_not_counted() -> None:
    assert _line_ends(b"ab\ncd\n", 2) == range(2, 6, 3)
    for data, count in ((b"ab\ncd\n", None), (b"ab\nc\n\n", 3), (b"a\nbcd\n", 2), (b"abc\n\n\n\n\n", 5)):
        assert list(_line_ends(data, count)) == [place for place, letter in enumerate(data) if letter == 10]


def test_two_builds_are_equal_to_the_byte(tmp_path: Path) -> None:
    for name in ("one", "two"):
        open_index(tmp_path / name, SPACE, Given(random_rows(500)))
    for file in ("text.faiss", "text.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def flip(data: bytes) -> bytes:
    return data[:-40] + bytes([data[-40] ^ 1]) + data[-39:]


def flip_last(data: bytes) -> bytes:
    return data[:-2] + bytes([data[-2] ^ 1]) + data[-1:]


def edited(**changes: Any) -> Callable[[bytes], bytes]:
    return lambda data: json.dumps(json.loads(data) | changes).encode()


def edited_file(name: str, **changes: Any) -> Callable[[bytes], bytes]:
    """Facts that are sound and say something else of a file."""

    def edit(data: bytes) -> bytes:
        facts = json.loads(data)
        del facts["seal"]
        facts["files"][name] |= changes
        return json.dumps({**facts, "seal": _seal(facts)}).encode()

    return edit


DAMAGE = [
    pytest.param("text.faiss", flip, "corrupt", id="case-83-one-bit"),
    pytest.param("text.faiss", lambda data: data[:-1], "corrupt", id="case-83-truncated"),
    pytest.param("text.faiss", lambda data: b"", "corrupt", id="case-83-empty"),
    pytest.param("text.faiss", lambda data: data + b"\0", "corrupt", id="case-83-longer"),
    pytest.param("text.faiss", None, "missing", id="case-83-missing"),
    pytest.param("text.keys", flip_last, "corrupt", id="case-84-another-key"),
    pytest.param("text.keys", None, "corrupt", id="case-83-no-keys"),
    pytest.param("text.json", None, "corrupt", id="case-84-checksum-unknown"),
    pytest.param("text.json", edited(format=1), "stale", id="an-earlier-format"),
    pytest.param("text.json", edited(removed=[3]), "corrupt", id="another-row-removed"),
    pytest.param(
        "text.json", edited_file("text.faiss", sha256="0" * 64), "corrupt", id="case-84-checksum-wrong"
    ),
    pytest.param("text.json", edited_file("text.keys", sha256=None), "corrupt", id="case-84-no-checksum"),
    pytest.param("text.json", edited(token="0" * 64), "corrupt", id="case-83-another-token"),
    pytest.param("text.json", lambda data: data[:50], "corrupt", id="manifest-truncated"),
    pytest.param("text.json", lambda data: b"[]", "corrupt", id="manifest-a-list"),
    pytest.param("text.json", lambda data: b"{}", "corrupt", id="manifest-empty"),
    pytest.param("text.json", lambda data: b"\xff\xfe", "corrupt", id="manifest-no-text"),
]


@pytest.mark.parametrize(("file", "damage", "state"), DAMAGE)
def test_a_damaged_cache_is_noticed_and_built_again(
    file: str, damage: Callable[[bytes], bytes] | None, state: str, tmp_path: Path
) -> None:
    rows = random_rows(30)
    source = Given(rows)
    hits = open_index(tmp_path, SPACE, source).search(rows["key0001"], 30)
    path = tmp_path / file
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    assert check_index(tmp_path, SPACE, source).state == state
    assert open_index(tmp_path, SPACE, source).search(rows["key0001"], 30) == hits
    assert source.read == 2
    assert check_index(tmp_path, SPACE, source).state == "current"


@pytest.mark.parametrize("skipped", [[], ["nobody"], ["key0001", "key0002"], [[]], 5, None])
def test_a_manifest_whose_keys_do_not_fit_the_file_is_not_believed(skipped: Any, tmp_path: Path) -> None:
    rows = random_rows(5) | {"key0003": np.zeros(SIZE, dtype=np.float32)}
    open_index(tmp_path, SPACE, Given(rows))
    manifest = tmp_path / "text.json"
    manifest.write_bytes(edited(skipped=skipped)(manifest.read_bytes()))
    index = open_index(tmp_path, SPACE, Given(rows))
    assert index.skipped == ("key0003",)
    assert keys(index.search(rows["key0001"], 1)) == ["key0001"]


def test_case_84_a_sound_file_of_something_else_is_not_loaded(tmp_path: Path) -> None:
    # What a process leaves that is killed between the two files: a readable index, and another's checksum.
    rows, other_items = random_rows(30), random_rows(30, seed=1)
    open_index(tmp_path / "ours", SPACE, Given(rows))
    open_index(tmp_path / "theirs", SPACE, Given(other_items))
    (tmp_path / "theirs" / "text.faiss").replace(tmp_path / "ours" / "text.faiss")
    assert check_index(tmp_path / "ours", SPACE, Given(rows)).state == "corrupt"
    index = open_index(tmp_path / "ours", SPACE, Given(rows))
    assert index.search(rows["key0005"], 1)[0].score == pytest.approx(1, abs=1e-7)


def test_a_file_that_faiss_cannot_read_is_built_again(tmp_path: Path) -> None:
    # The checksum holds, as it would for a format of another version of FAISS.
    rows = random_rows(30)
    open_index(tmp_path, SPACE, Given(rows))
    (tmp_path / "text.faiss").write_bytes(b"IxZZ")
    manifest = tmp_path / "text.json"
    manifest.write_bytes(
        edited_file("text.faiss", sha256=hashlib.sha256(b"IxZZ").hexdigest())(manifest.read_bytes())
    )
    assert keys(open_index(tmp_path, SPACE, Given(rows)).search(rows["key0001"], 1)) == ["key0001"]
    assert check_index(tmp_path, SPACE, Given(rows)).state == "current"


def test_a_folder_that_cannot_be_written_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = random_rows(30)
    (tmp_path / "file").write_text("no folder")
    index = open_index(tmp_path / "file" / "index", SPACE, Given(rows))
    assert keys(index.search(rows["key0001"], 1)) == ["key0001"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "cannot be written" in caplog.text


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from catalog.index.vectors import PART_LENGTH, Space, check_index, open_index
class Source:
    def token(self):
        return "1"
    def versions(self):
        return {}
    def keys(self, parts=None):
        return ["a", "b"]
    def vectors(self, keys):
        yield np.eye(2, 4096, dtype=np.float32)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
folder, space = Path(sys.argv[1]), Space("text", "1", 4096)
found = open_index(folder, space, Source()).search(np.eye(4096)[1], 1)
print(found[0].key, check_index(folder, space, Source()).state, *(path.name for path in folder.iterdir()))
"""


def test_a_full_disk_leaves_no_half_file(tmp_path: Path) -> None:
    done = run(FULL_DISK, str(tmp_path))
    assert done.stdout.split() == ["b", "missing", "text.lock"]
    assert "cannot be written" in done.stderr


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A script in a process of its own, which must succeed."""
    return subprocess.run(
        (sys.executable, "-c", script, *arguments),
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=True,
    )


def test_while_another_process_writes_an_index_works_from_memory(tmp_path: Path) -> None:
    rows = random_rows(30)
    with FileLock(tmp_path / "text.lock"):
        index = open_index(tmp_path, SPACE, Given(rows))
    assert keys(index.search(rows["key0001"], 1)) == ["key0001"]
    assert [path.name for path in tmp_path.iterdir()] == ["text.lock"]


@pytest.mark.parametrize("change", ["token", "versions of parts of others", "a vector", "a zero", "gone"])
def test_a_read_only_index_serves_where_the_source_moved_without_a_difference(
    tmp_path: Path, change: str
) -> None:
    """As the indexes of all base models but one do where an adapter of that one changes."""
    rows = random_rows(100) | {"zero": np.zeros(SIZE, dtype=np.float32)}
    built, source = Given(rows), Given(rows)
    open_index(tmp_path, SPACE, built)
    (tmp_path / "text.lock").unlink(missing_ok=True)
    (tmp_path / "text.lock").mkdir()  # nobody gets the lock
    versions = source.versions() | ({} if change == "token" else {"key0": 7, "zero": 7, "else": 7})
    if change == "a vector":
        rows["key0003"] = np.ones(SIZE, dtype=np.float32)
    elif change == "a zero":
        rows["key0003"] = np.zeros(SIZE, dtype=np.float32)
    elif change == "gone":
        del rows["zero"]
    read = set[str]()

    class Moved(Given):
        def token(self) -> str:
            return "moved"

        def versions(self) -> dict[str, int]:
            return versions

        def keys(self, parts: Collection[str] | None = None) -> Sequence[str]:
            read.add("all" if parts is None else "some")
            return super().keys(parts)

    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    index = open_index(tmp_path, SPACE, Moved(rows))
    assert index.keys == tuple(sorted(key for key, row in rows.items() if row.any()))
    assert index.search(np.ones(SIZE), 3) == open_index(tmp_path / "new", SPACE, built).search(
        np.ones(SIZE), 3
    )
    assert ("all" in read) == (change in {"a vector", "a zero", "gone"}), "it was built again"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


# What changes is appended, and passed over.


def brute(rows: Rows, query: NDArray[Any], k: int) -> list[tuple[str, float]]:
    return [(key, pytest.approx(cosine(rows[key], query), abs=2e-7)) for key in nearest(rows, query, k)]


def pairs(index: VectorIndex, query: NDArray[Any], k: int, among: Any = None) -> list[tuple[str, float]]:
    return [(hit.key, hit.score) for hit in index.search(query, k, among)]


def test_new_and_vanished_vectors_change_the_tail_alone(tmp_path: Path) -> None:
    rows = random_rows(400)
    source = Given(rows)
    open_index(tmp_path, SPACE, source)
    main = (tmp_path / "text.faiss").read_bytes()
    for step in range(4):
        rows[f"new{step}"] = np.float32(2) * rows["key0050"]
        del rows[f"key{step:04d}"]
        rows[f"zero{step}"] = np.zeros(SIZE, dtype=np.float32)
        source.read = 0
        index = open_index(tmp_path, SPACE, source)
        assert source.read == 1
        assert check_index(tmp_path, SPACE, source).state == "current"
        live = {key: row for key, row in rows.items() if row.any()}
        assert index.keys == tuple(sorted(live))
        for query in (rows["key0050"], rows["key0399"], np.ones(SIZE)):
            for k in (1, 3, 60, 500):
                assert pairs(index, query, k) == brute(live, query, k)
            among = sorted(rows)[::3]
            some = {key: live[key] for key in among if key in live}
            assert pairs(index, query, 30, among) == brute(some, query, 30)
    assert (tmp_path / "text.faiss").read_bytes() == main
    # A key that comes back, and then one too many: the index is built again.
    rows["key0001"] = rows["key0050"].copy()
    assert open_index(tmp_path, SPACE, source).search(rows["key0050"], 2)[0].key == "key0001"
    assert (tmp_path / "text.faiss").read_bytes() == main
    rows |= {f"more{number:02d}": row for number, row in enumerate(random_rows(60, seed=2).values())}
    assert open_index(tmp_path, SPACE, source).count == len([row for row in rows.values() if row.any()])
    assert (tmp_path / "text.faiss").read_bytes() != main
    assert not (tmp_path / "text.tail").exists()


def test_a_damaged_tail_is_noticed(tmp_path: Path) -> None:
    rows = random_rows(100)
    open_index(tmp_path, SPACE, Given(rows))
    rows["new"] = np.ones(SIZE, dtype=np.float32)
    open_index(tmp_path, SPACE, Given(rows))
    tail = tmp_path / "text.tail"
    tail.write_bytes(flip(tail.read_bytes() + b"x" * 100)[:-100])
    tail.write_bytes(b"\0" * 32)
    assert check_index(tmp_path, SPACE, Given(rows)).state == "corrupt"
    assert open_index(tmp_path, SPACE, Given(rows)).search(np.ones(SIZE), 1)[0].key == "new"


def test_a_current_index_reads_no_keys(tmp_path: Path) -> None:
    class Silent(Given):
        def keys(self, parts: Collection[str] | None = None) -> Sequence[str]:
            raise AssertionError("the keys were read")

    rows = random_rows(20)
    open_index(tmp_path, SPACE, Given(rows))
    assert open_index(tmp_path, SPACE, Silent(rows)).count == 20


def test_lists_of_codes_find_nearly_all_with_exact_scores(tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    centres = np.repeat(generator.standard_normal((60, 32)), 50, axis=0)
    values = (centres + 0.7 * generator.standard_normal((3000, 32))).astype(np.float32)
    rows = {f"key{number:04d}": row for number, row in enumerate(values)}
    space, source = Space("text", "a-model", 32), Given(rows)
    index = open_index(tmp_path, space, source, "ivf")
    state = check_index(tmp_path, space, source, recall=True)
    assert (state.state, state.kind, state.vectors) == ("current", "ivf", 3000)
    assert state.recall is not None
    assert state.recall >= 0.95
    for hit in index.search(values[7], 20):
        assert hit.score == pytest.approx(cosine(rows[hit.key], values[7]), abs=2e-7)
    assert pairs(index, values[7], 3000) == brute(rows, values[7], 3000)
    few = {key: rows[key] for key in sorted(rows)[:100]}
    assert pairs(index, values[7], 9, few) == brute(few, values[7], 9)
    # The type that was forced stays when vectors come and go, and when all are read again.
    rows["new"] = values[7].copy()
    assert keys(open_index(tmp_path, space, source).search(values[7], 2)) == ["key0007", "new"]
    rows |= {f"more{number}": row for number, row in enumerate(values[:500])}
    assert open_index(tmp_path, space, source).kind == "ivf"
    assert open_index(tmp_path, space, source, "flat").kind == "flat"
    assert open_index(tmp_path, space, source).kind == "flat"
    assert not (tmp_path / "text.rows").exists()


def test_more_vectors_than_the_most_are_in_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catalog.index.vectors.MOST_FLAT", 50)
    assert open_index(tmp_path, SPACE, Given(random_rows(50))).kind == "flat"
    assert open_index(tmp_path, SPACE, Given(random_rows(80))).kind == "ivf"


# Threads.


def test_the_number_of_threads_is_left_as_it_was(tmp_path: Path) -> None:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(3)
    try:
        open_index(tmp_path, SPACE, Given(random_rows(5))).search(np.ones(SIZE), 2)
        assert faiss.omp_get_max_threads() == 3
    finally:
        faiss.omp_set_num_threads(before)


FORK = """
import multiprocessing, sys
from pathlib import Path
import faiss
import numpy as np
from catalog.index.vectors import PART_LENGTH, Space, open_index
values = np.random.default_rng(0).standard_normal((5000, 32)).astype(np.float32)
class Source:
    def token(self):
        return "1"
    def versions(self):
        return {}
    def keys(self, parts=None):
        return [f"{number:04d}" for number in range(5000)]
    def vectors(self, keys):
        yield values
def search(pipe):
    hits = opened.search(values[7], 3)
    plain.search(values[:500], 3)  # many queries at once: parallel, were there more threads than one
    pipe.send((faiss.omp_get_max_threads(), hits[0].key))
opened = open_index(Path(sys.argv[1]), Space("text", "1", 32), Source())
plain = faiss.IndexFlatIP(32)
plain.add(values)
faiss.omp_set_num_threads(2)
plain.search(values[:500], 3)
context = multiprocessing.get_context("fork")
here, there = context.Pipe()
child = context.Process(target=search, args=(there,))
child.start()
child.join(60)
print(*(here.recv() if here.poll() else ["hangs"]))
child.kill()
"""


def test_a_forked_child_searches_on_one_thread_and_does_not_hang(tmp_path: Path) -> None:
    assert run(FORK, str(tmp_path)).stdout.split() == ["1", "0007"]
