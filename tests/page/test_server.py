"""The routes of the page: headers, hosts, caching, and who may save."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import delete, func, insert, select, text
from sqlalchemy.orm import Session

import loradex
from catalog.database import Embedding, TableBase, disposing, make_engine, open_catalog, reading, writer_lock
from catalog.search import embed_cards
from crawler.localhub import LocalServer
from loradex.page import create_app
from loradex.page.server import HEADERS, Site, is_known_host, static_files
from tests.hubs import lora_files, lora_tensors, safetensors_bytes
from tests.page.conftest import SCRIPT, TINY


@pytest.fixture
def site(own_catalog: loradex.Catalog) -> Site:
    return Site(own_catalog)


@pytest.fixture
def client(site: Site) -> Iterator[httpx.Client]:
    with LocalServer(lambda: create_app(site)) as server, httpx.Client(base_url=server.url) as client:
        yield client


@pytest.fixture(scope="module")
def reader(served: str) -> Iterator[httpx.Client]:
    """A client that only reads."""
    with httpx.Client(base_url=served) as client:
        yield client


def save(client: httpx.Client, value: object, to: str = "pools", **headers: str) -> httpx.Response:
    token = client.get("/head.json").json()["host"]["token"]
    usual = {"origin": str(client.base_url), "x-loradex-token": token, "content-type": "application/json"}
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    sent = {name.encode(): value.encode() for name, value in {**usual, **headers}.items()}
    return client.post(f"/api/{to}", content=content, headers=sent)


@pytest.mark.parametrize(
    "path", ["/", "/app.js", "/head.json", "/none", "/api/search?q=", "/d/none/list.json"]
)
def test_every_answer_has_the_headers_of_security(reader: httpx.Client, path: str) -> None:
    answer = reader.get(path)
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert "script-src 'self'" in answer.headers["content-security-policy"]


def test_a_crash_has_the_headers_of_security(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> bytes:
        raise RuntimeError("a bug of /home/someone")

    monkeypatch.setattr(Site, "head", crash)
    answer = client.get("/head.json")
    assert (answer.status_code, {name: answer.headers[name] for name in HEADERS}) == (500, HEADERS)
    assert answer.json() == {"error": "The server made an error; what it printed says which."}


def test_the_policy_of_the_file_is_that_of_the_header() -> None:
    html = static_files()["index.html"].decode()
    policy = html.partition('http-equiv="Content-Security-Policy" content="')[2].partition('"')[0]
    assert HEADERS["content-security-policy"] == f"{policy}; frame-ancestors 'none'"
    assert "unsafe" not in policy


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80", "", "10.0.0.1:80"])
def test_other_hosts_are_refused(reader: httpx.Client, host: str) -> None:
    assert reader.get("/head.json", headers={"host": host}).status_code == 400


def test_hosts_under_which_the_page_is_known() -> None:
    assert is_known_host("localhost:8000", ("localhost",))
    assert is_known_host("[::1]:8000", ("::1",))
    assert not is_known_host("10.0.0.1", ("localhost",))
    # Under another address any address is let in, as no other site can make its name one.
    assert is_known_host("10.0.0.1:80", ("*",))
    assert not is_known_host("evil.example", ("*",))


def test_documents_are_compressed_once_and_kept(reader: httpx.Client) -> None:
    stamp = reader.get("/head.json").json()["stamp"]
    answer = reader.get(f"/d/{stamp}/more.json")
    assert answer.headers["content-encoding"] == "gzip"
    assert "immutable" in answer.headers["cache-control"]
    plain = reader.get(f"/d/{stamp}/more.json", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.content == answer.content
    assert reader.get("/head.json").headers["cache-control"] == "no-store"


def test_what_is_not_there_is_a_sentence(reader: httpx.Client) -> None:
    stamp = reader.get("/head.json").json()["stamp"]
    for path in (f"/d/{stamp}/adapter/99.json", f"/d/{stamp}/..%2f..%2fcatalog.db", "/d/0/list.json"):
        answer = reader.get(path)
        assert answer.status_code == 404
        assert answer.json()["error"].endswith(".")
    assert reader.get("/api/search?q=").status_code == 400


def test_answers_that_need_a_server(reader: httpx.Client) -> None:
    hits = reader.get("/api/search?q=bank customers").json()["rows"]
    assert {hit["adapter"] for hit in hits} == {"ann/one", "ann/two", "bob/three", "bob/four"}
    places = reader.get("/api/word?w=BANK").json()
    assert len(places) == 4
    pair = reader.get("/api/compare?a=ann/one&b=ann/two").json()
    assert pair["exact"] is True
    near = reader.get("/api/similar?a=ann/one").json()["rows"]
    assert len(near) == 4
    assert all(row["exact"] for row in near)
    assert reader.get("/api/adapter?a=ann/one").json()["adapter"] == "ann/one"


def test_a_pool_is_saved(client: httpx.Client, own_catalog: loradex.Catalog) -> None:
    before = client.get("/head.json").json()["stamp"]
    answer = save(client, {"name": "new", "adapters": ["bob/four", "ann/one"], "controls": True})
    assert answer.status_code == 200, answer.text
    pool = own_catalog.pool("new")
    assert [member.adapter for member in pool.members] == ["bob/four", "ann/one"]
    assert answer.json()["digest"] == pool.digest
    assert "new-random" in [row.pool for row in own_catalog.pools()]
    # An open page of the state before is still answered.
    assert client.get("/head.json").json()["stamp"] != before
    assert client.get(f"/d/{before}/list.json").status_code == 200


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"x-loradex-token": "other"}, 403),
        ({"x-loradex-token": "töken"}, 403),
        ({"content-type": "text/plain"}, 403),
        ({}, 200),
    ],
)
def test_only_the_page_itself_saves(
    client: httpx.Client, own_catalog: loradex.Catalog, headers: dict[str, str], code: int
) -> None:
    assert save(client, {"name": "new", "adapters": ["ann/one"]}, **headers).status_code == code
    assert ("new" in [row.pool for row in own_catalog.pools()]) is (code == 200)


@pytest.mark.parametrize(
    "pool",
    [
        b"{",
        [],
        {"name": "new"},
        {"name": "new", "adapters": []},
        {"name": "../new", "adapters": ["ann/one"]},
        {"name": "new", "adapters": ["none/none"]},
        {"name": "new", "adapters": ["bob/three"], "use": "commercial"},
        {"name": "new", "adapters": ["ann/one"], "use": "other"},
        {"name": "both", "adapters": ["bob/four"]},
    ],
)
def test_what_is_no_pool_is_a_sentence(
    client: httpx.Client, own_catalog: loradex.Catalog, pool: object
) -> None:
    answer = save(client, pool)
    assert answer.status_code in (400, 409), answer.text
    assert answer.json()["error"].endswith(".")
    assert [row.pool for row in own_catalog.pools()] == ["both"]


def test_a_page_that_is_read_only_saves_nothing(own_catalog: loradex.Catalog) -> None:
    site = Site(own_catalog, read_only=True)
    assert json.loads(site.head())["host"] == {"read_only": True, "token": ""}
    with LocalServer(lambda: create_app(site)) as server, httpx.Client(base_url=server.url) as client:
        assert save(client, {"name": "new", "adapters": ["ann/one"]}).status_code == 403
        assert save(client, {"adapters": ["ann/one"], "hidden": True}, "notes").status_code == 403
    assert list(own_catalog.annotations()) == []


@pytest.mark.parametrize("read_only", [False, True])
def test_an_answer_is_of_the_catalog_alone(
    read_only: bool, own_catalog: loradex.Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A folder that the working folder has under the name of an adapter of the catalog, and another.
    for name in ("ann/one", "mine/secret"):
        for file, content in lora_files(TINY).items():
            (tmp_path / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_bytes(content if isinstance(content, bytes) else content.encode())
        weights = safetensors_bytes(lora_tensors(layers=2, seed=9))
        (tmp_path / name / "adapter_model.safetensors").write_bytes(weights)
    monkeypatch.chdir(tmp_path)
    assert own_catalog.compare("mine/secret", "ann/two").right == "ann/two"
    site = Site(own_catalog, read_only=read_only)
    with LocalServer(lambda: create_app(site)) as server, httpx.Client(base_url=server.url) as client:
        for folder in (str(tmp_path / "ann/one"), "./ann/one", "mine/secret", "/none", "", "a/b\0c", ".."):
            asked = {"similar": {"a": folder}, "adapter": {"a": folder}}
            for name, query in {**asked, "compare": {"a": folder, "b": "ann/two"}}.items():
                answer = client.get(f"/api/{name}", params=query)
                assert answer.status_code in (400, 404), (name, query)
            answer = client.get("/api/compare", params={"a": "ann/two", "b": folder})
            assert answer.status_code in (400, 404), folder
        pair = client.get("/api/compare?a=ann/one&b=ann/two").json()
        near = client.get("/api/similar?a=ann/one").json()["rows"]
    monkeypatch.chdir("/")
    expected = own_catalog.compare("ann/one", "ann/two")
    assert (pair["delta"], pair["output"]) == (expected.delta, expected.output)
    rows = own_catalog.similar("ann/one", 20, exact=True, verdict="any")
    assert [(row["adapter"], row["score"]) for row in near] == [(row.adapter, row.score) for row in rows]


def test_errors_of_a_read_only_page_have_no_path(own_catalog: loradex.Catalog) -> None:
    data = own_catalog.settings.data
    (data / "engines.toml").write_text("engines = 1")
    for read_only in (True, False):
        site = Site(own_catalog, read_only=read_only)
        with LocalServer(lambda site=site: create_app(site)) as server:
            answer = httpx.get(f"{server.url}/head.json")
        assert answer.status_code in (400, 409)
        assert "engines.toml" in answer.json()["error"]
        assert (str(data) in answer.json()["error"]) is not read_only


class CountingEncoder:
    """An encoder whose vectors are counts of letters."""

    name, size = "letters@1", 26

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        counts = np.array([[text.lower().count(chr(97 + n)) for n in range(26)] for text in texts])
        vectors: NDArray[np.float32] = (counts / np.linalg.norm(counts, axis=1, keepdims=True)).astype("<f4")
        return vectors


def test_a_search_of_a_read_only_page_embeds_nothing(
    own_catalog: loradex.Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vectors() -> int:
        with reading(own_catalog.settings) as session:
            return session.scalar(select(func.count(Embedding.content))) or 0

    def refuse(*_: object) -> None:
        raise AssertionError("an encoder is loaded")

    def ask(client: httpx.Client) -> dict[str, Any]:
        answer = client.get("/api/search?q=bank customers&meaning=1")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    for module in ("loradex.catalog.embed_catalog", "catalog.index.encoder.load_embedder"):
        monkeypatch.setattr(module, refuse)
    monkeypatch.setattr("loradex.encoding.load_embedder", refuse)
    site = Site(own_catalog, read_only=True)
    with LocalServer(lambda: create_app(site)) as server, httpx.Client(base_url=server.url) as client:
        found = ask(client)
        assert (len(found["rows"]), vectors()) == (4, 0)
        assert found["notes"] == [
            "searching by words alone: the cards of this catalog were never embedded here"
        ]
        encoder = CountingEncoder()
        monkeypatch.setattr("loradex.page.documents.find_encoder", lambda *_: encoder)
        found = ask(client)
        assert (len(found["rows"]), vectors()) == (4, 0)
        assert "have no vector yet and were searched by words alone" in " ".join(found["notes"])
        with (
            disposing(open_catalog(own_catalog.settings, create=False)) as engine,
            Session(engine) as session,
        ):
            embed_cards(session, encoder)
        before = vectors()
        assert before > 0
        assert any("meaning" in row["why"] for row in ask(client)["rows"])
        assert vectors() == before


def test_tags_notes_and_hidden_marks_are_written(client: httpx.Client, own_catalog: loradex.Catalog) -> None:
    stamps = [client.get("/head.json").json()["stamp"]]

    def annotate(adapters: list[str], **changes: object) -> list[dict[str, object]]:
        answer = save(client, {"adapters": adapters, **changes}, "notes")
        assert answer.status_code == 200, answer.text
        stamps.append(client.get("/head.json").json()["stamp"])
        rows: list[dict[str, object]] = answer.json()["rows"]
        return rows

    # A crawl, which holds this lock, does not keep the page from writing.
    with disposing(open_catalog(own_catalog.settings, create=False)) as engine, writer_lock(engine):
        rows = annotate(["ann/one", "bob/four"], tags=["seed ", SCRIPT])
    assert [row["own_tags"] for row in rows] == [[SCRIPT, "seed"]] * 2
    annotate(["ann/one"], remove_tags=[SCRIPT, "none"], note="of the paper")
    annotate(["bob/four"], hidden=True)
    assert [(row.adapter, row.tags, row.note, row.hidden) for row in own_catalog.annotations()] == [
        ("ann/one", ("seed",), "of the paper", False),
        ("bob/four", (SCRIPT, "seed"), None, True),
    ]
    # The list has what is hidden, and which it is: the browser leaves it out, and says how many.
    head = client.get("/head.json").json()
    assert (head["adapters"], head["own"]) == (5, {"own_tags": 2, "note": 1, "hidden": 1})
    annotate(["ann/one", "bob/four"], note="", hidden=False, remove_tags=["seed", SCRIPT])
    assert list(own_catalog.annotations()) == []
    # Nothing is written again: the stamp is that of the start.
    assert (len(set(stamps)), stamps[-1]) == (4, stamps[0])


@pytest.mark.parametrize(
    "change",
    [
        b"[]",
        {"tags": ["seed"]},
        {"adapters": [], "tags": ["seed"]},
        {"adapters": ["ann/one"] * 1001},
        {"adapters": [1]},
        {"adapters": ["ann/one", "none/none"], "tags": ["seed"]},
        {"adapters": ["ann/one"], "tags": "seed"},
        {"adapters": ["ann/one"], "tags": ["a\nb"]},
        {"adapters": ["ann/one"], "note": "x" * 10_001},
        {"adapters": ["ann/one"], "note": "a\0b"},
        {"adapters": ["ann/one"], "hidden": 1},
    ],
)
def test_what_is_no_note_is_a_sentence(
    client: httpx.Client, own_catalog: loradex.Catalog, change: object
) -> None:
    answer = save(client, change, "notes")
    assert answer.status_code in (400, 404), answer.text
    assert answer.json()["error"].endswith(".")
    assert list(own_catalog.annotations()) == []


def test_changes_since_a_time(reader: httpx.Client) -> None:
    rows = reader.get("/api/changes?since=7d&where=owner:ann").json()["rows"]
    assert {(row["adapter"], row["change"]) for row in rows} == {("ann/one", "new"), ("ann/two", "new")}
    for since in ("never", "0001-01-01T00:00:00%2B23:00"):
        answer = reader.get(f"/api/changes?since={since}")
        assert (answer.status_code, "not a time" in answer.json()["error"]) == (400, True)


def test_a_body_is_compressed_at_one_level() -> None:
    from loradex.page.server import _Body

    content = b"word " * 1000
    assert gzip.decompress(_Body.of(content).content) == content
    assert _Body.of(content) == _Body.of(content)


@pytest.mark.postgres
def test_the_page_of_both_databases_is_the_same(
    page_data: Path,
    tmp_path: Path,
    postgres_database: Callable[[str], Iterator[str]],
    postgres_template: str,
) -> None:
    shutil.copytree(page_data, tmp_path / "data")
    with loradex.open(tmp_path / "data") as sqlite:
        for url in postgres_database(postgres_template):
            copy_rows(sqlite.settings.catalog_url, url)
            postgres = loradex.open(tmp_path / "other", url=url)
            shutil.copytree(tmp_path / "data" / "blobs", tmp_path / "other" / "blobs")
            pages = [read_page(sqlite), read_page(postgres)]
            assert pages[0].keys() == pages[1].keys()
            for name, content in pages[0].items():
                assert content == pages[1][name], name


def copy_rows(source: str, target: str) -> None:
    """Copies all rows of a catalog into an empty one."""
    tables = TableBase.metadata.sorted_tables
    with (
        disposing(make_engine(source)) as old,
        disposing(make_engine(target)) as new,
        old.connect() as reading,
        new.begin() as writing,
    ):
        for table in reversed(tables):
            writing.execute(delete(table))
        for table in tables:
            if rows := [dict(row) for row in reading.execute(select(table)).mappings()]:
                writing.execute(insert(table), rows)
                if "id" in table.c:
                    counter = f"pg_get_serial_sequence('{table.name}', 'id')"
                    writing.execute(text(f"SELECT setval({counter}, {max(row['id'] for row in rows)})"))


def read_page(catalog: loradex.Catalog) -> dict[str, bytes]:
    """All that the server of a page answers, after notes were written through it."""
    site = Site(catalog)
    with (
        LocalServer(lambda: create_app(site)) as server,
        httpx.Client(base_url=server.url, timeout=600) as client,
    ):
        answer = save(client, {"adapters": ["ann/one"], "tags": ["seed"], "note": "a note"}, "notes")
        assert answer.status_code == 200, answer.text
        answer = save(client, {"name": "of-the-page", "adapters": ["ann/one", "bob/four"]})
        assert answer.status_code == 200, answer.text
        head = client.get("/head.json").json()
        names = [*site.newest.shared_names(), *(f"{kind}/{n}.json" for kind in KINDS for n in range(5))]
        asked = ("search?q=bank customers", "word?w=bank", "changes?since=7d", "similar?a=ann/one")
        paths = [*(f"d/{head['stamp']}/{name}" for name in names), *(f"api/{path}" for path in asked)]
        answers = {path: client.get(f"/{path}") for path in paths}
        assert {path: answer.status_code for path, answer in answers.items()} == dict.fromkeys(paths, 200)
        for key in ("stamp", "host"):
            del head[key]
        found = {path.removeprefix(f"d/{path[2:18]}/"): answer.content for path, answer in answers.items()}
    # The time at which the pool was saved.
    found["pools.json"] = re.sub(rb'"created":"[^"]*"', b"", found["pools.json"])
    return found | {"head.json": json.dumps(head).encode()}


KINDS = ("adapter", "nearest")


def test_searches_at_once_make_the_index_of_words_once(
    own_catalog: loradex.Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    from catalog.index import words

    shutil.rmtree(own_catalog.settings.index, ignore_errors=True)
    site, fill, fills = Site(own_catalog), words._fill, list[Any]()
    waiting = threading.Event()

    class Watched:
        """A lock that says when it is asked for."""

        lock = threading.Lock()

        def __enter__(self) -> None:
            waiting.set()
            self.lock.acquire()

        def __exit__(self, *_: object) -> None:
            self.lock.release()

    def ask() -> None:
        answers.append(site.search({"q": "bank"}))

    def filled(*rest: Any) -> None:
        fills.append(rest)
        if len(fills) > 1:
            waiting.set()
        else:
            waiting.clear()
            second.start()
            waiting.wait()
        fill(*rest)

    answers: list[bytes] = []
    second = threading.Thread(target=ask)
    monkeypatch.setattr(site, "_indexes", Watched(), raising=False)
    monkeypatch.setattr(words, "_fill", filled)
    ask()
    second.join()
    assert answers[0] == answers[1]
    assert len(fills) == 1
