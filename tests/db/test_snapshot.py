"""A snapshot brought into another catalog has the same rows; what is not to be shared is not in it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from click.testing import CliRunner
from pyarrow import parquet
from sqlalchemy import Engine, delete, func, select, update
from sqlalchemy.orm import Session

import loradex
from catalog.database import (
    NOT_IN_SNAPSHOT,
    Adapter,
    Annotation,
    Crawl,
    Embedding,
    Evaluation,
    Repository,
    SavedPool,
    TableBase,
    disposing,
    for_writing,
    frontier,
    open_catalog,
    open_existing,
    store,
)
from catalog.errors import CatalogError, IntegrityError, UsageError
from catalog.files import digest_of
from catalog.index import content_of
from catalog.settings import Settings
from catalog.snapshots import (
    MANIFEST,
    ImportCounts,
    SnapshotChoice,
    import_snapshot,
    pages,
    verification,
    verify_snapshot,
    write_snapshot,
    writing,
)
from catalog.snapshots.layout import MOST_VALUE, TABLES
from cli.main import loradex as program
from loradex.rows import AdapterDetails
from tests.db import rows
from tests.localhub import FaultHub
from tests.localhub.bodies import Corrupt
from tests.localhub.faults import Fault
from tools.generated_catalog import generate

SAMPLE_HUB = Path(__file__).parents[2] / "data" / "sample_hub"
FILE = {"name": "adapter_model.safetensors", "size": 7, "digest": "d" * 64}
# The tables of one catalog alone: its crawls, its pools, and what triggers write.
ALONE = {
    *("crawl", "crawl_item", "crawl_page", "crawl_retry", "weights_item", "request_budget"),
    *("pool", "pool_member", "change_token", "text_version", "vector_version"),
}
FUTURE = "9998-01-01T00:00:00+00:00"
EVERYTHING = SnapshotChoice(cards=True, with_private=True, with_notes=True)


@pytest.fixture(scope="module")
def exported(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot of the sample Hub with cards, every text of which has a vector."""
    folder = tmp_path_factory.mktemp("exported")
    shutil.copytree(sample_data, folder / "data")
    engine = open_existing(Settings.make(data=folder / "data"))
    with Session(for_writing(engine)) as session, session.begin():
        contents = {content_of(text or "") for text in session.scalars(select(Adapter.card_text))}
        session.execute(delete(Embedding))
        vector = bytes(4 * 8)
        session.add_all(Embedding(content=one, model="m", chunk=0, vector=vector) for one in contents)
    engine.dispose()
    loradex.open(folder / "data").export_snapshot(folder / "snapshot", cards=True)
    return folder / "snapshot"


def write(engine: Engine, folder: Path, choice: SnapshotChoice = EVERYTHING) -> Path:
    folder.mkdir()
    with Session(engine) as session:
        write_snapshot(session, folder, choice, version("loradex"))
    return folder


def bring(engine: Engine, folder: Path) -> ImportCounts:
    with Session(for_writing(engine)) as session, session.begin():
        return import_snapshot(session, verify_snapshot(folder))


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): digest_of(path) for path in folder.rglob("*") if path.is_file()}


def table(folder: Path, name: str) -> list[dict[str, Any]]:
    return [row for path in sorted((folder / name).iterdir()) for row in parquet.read_table(path).to_pylist()]


def test_every_table_and_column_of_one_row_each_returns(engine: Engine, tmp_path: Path) -> None:
    rows.fill(engine)
    with Session(engine) as session, session.begin():
        session.execute(update(Adapter).values(license="mit", card_front={"datasets": ["x"]}, files=[FILE]))
        text = session.scalars(select(Adapter.card_text)).one()
        session.execute(update(Embedding).values(content=content_of(text)))
    first = write(engine, tmp_path / "first")
    named = json.loads((first / MANIFEST).read_text())["tables"]
    # The crawl of that row asked nothing that could be asked again.
    assert {name: entry["rows"] for name, entry in named.items()} == dict.fromkeys(TABLES, 1) | {"listed": 0}
    before = rows.dump(engine)
    with Session(for_writing(engine)) as session, session.begin():
        for one in reversed(rows.tables()):
            session.execute(delete(one))
    bring(engine, first)
    after = rows.dump(engine)
    for entry in TABLES.values():
        if entry.source is not None and entry.table.name not in ("base_model", "base_spelling", "adapter"):
            assert after[entry.table.name] == before[entry.table.name], entry.name
    second = write(engine, tmp_path / "second")
    for name in TABLES:
        # The built-in names of base models are in every catalog.
        more = name in ("bases", "spellings")
        stored_rows, returned = table(first, name), table(second, name)
        assert [row for row in returned if row in stored_rows or not more] == stored_rows, name


def test_every_table_of_the_schema_is_in_a_snapshot_or_of_one_catalog_alone() -> None:
    shared = {entry.table for entry in TABLES.values() if entry.source is not None}
    assert {one.name for one in TableBase.metadata.sorted_tables if one not in shared} == ALONE


def test_the_sample_returns_row_for_row(exported: Path, engine: Engine, tmp_path: Path) -> None:
    bring(engine, exported)
    again = write(engine, tmp_path / "again", SnapshotChoice(cards=True))
    assert files(again) == files(exported)
    counts = bring(engine, exported)
    assert counts.repositories_left == len(table(exported, "repositories"))
    assert replace(counts, repositories_left=0, rows={}) == ImportCounts()
    assert set(counts.rows.values()) == {0}


def test_a_crawl_after_an_import_reads_nothing_that_is_unchanged(
    sample_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shutil.copytree(sample_data, tmp_path / "source")
    with FaultHub(SAMPLE_HUB) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        origin = loradex.open(source)
        origin.crawl(any_base=True)
        origin.export_snapshot(tmp_path / "snapshot")
        catalog = loradex.open(tmp_path / "data")
        counts = catalog.import_snapshot(tmp_path / "snapshot")
        assert (counts.watermarks > 0, counts.cards_missing > 0) == (True, True)
        since = catalog.crawl(any_base=True).as_json()
        assert since["requests"]["resolver"] == 0
        assert (since["new"], since["changed"], since["gone"]) == (0, 0, 0)
        whole, of_origin = (one.crawl(any_base=True, full=True).as_json() for one in (catalog, origin))
        for report in (whole, of_origin):
            assert report.pop("seconds") is not None
        assert whole == of_origin
        assert whole["requests"]["resolver"] > 0
        assert (whole["new"], whole["changed"], whole["gone"]) == (0, 0, 0)


def test_adapters_are_described_again_without_the_cards_that_were_left_out(
    sample_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shutil.copytree(sample_data, tmp_path / "source")
    with FaultHub(SAMPLE_HUB) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        origin, catalog = loradex.open(source), loradex.open(tmp_path / "data")
        origin.export_snapshot(tmp_path / "snapshot")
        catalog.import_snapshot(tmp_path / "snapshot")
        described = []
        for one in (origin, catalog):
            one.add_base_name("meta-llama/Llama-3.1-8B-Instruct", "own/spelling")
            hub.clear()
            one.crawl(any_base=True)
            lines = [request.line for request in hub.log if request.kind == "resolver"]
            described.append(([_without_card(one.details(row.adapter)) for row in one.adapters()], lines))
        assert described[0] == described[1]
    assert any(catalog.details(row.adapter).card_left_out for row in catalog.adapters())


def _without_card(details: AdapterDetails) -> AdapterDetails:
    return replace(details, card="", card_left_out=False)


def _bare_catalog(tmp_path: Path) -> tuple[loradex.Catalog, loradex.Catalog]:
    """A catalog of a Hub, and one that was imported from it without cards."""
    origin, catalog = loradex.open(tmp_path / "origin"), loradex.open(tmp_path / "data")
    origin.crawl(any_base=True)
    origin.export_snapshot(tmp_path / "snapshot")
    catalog.import_snapshot(tmp_path / "snapshot")
    return origin, catalog


@pytest.fixture
def small_hub(tmp_path: Path) -> Path:
    """A repository with an adapter at its root and one below it that shares the card."""
    place = tmp_path / "hub" / "zoo" / "pair"
    shutil.copytree(SAMPLE_HUB / "zoo" / "boolean_expressions", place)
    shutil.copytree(place, place / "checkpoint-1", ignore=shutil.ignore_patterns("README.md", ".hub.json"))
    return tmp_path / "hub"


@pytest.mark.parametrize(("name", "costs"), [("zoo/pair", (0, 1)), ("zoo/pair:checkpoint-1", (1, 1))])
def test_a_card_that_was_left_out_is_fetched_when_it_is_asked_for(
    small_hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, costs: tuple[int, int]
) -> None:
    with FaultHub(small_hub) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        origin, catalog = _bare_catalog(tmp_path)
        shown = ("--data", str(tmp_path / "data"), "show", name)
        assert "not in snapshot" in CliRunner().invoke(program, shown).stdout
        hub.clear()
        result = CliRunner().invoke(program, [*shown, "--card"], catch_exceptions=False)
        assert (hub.count("api"), hub.count("resolver")) == costs
        assert "not in snapshot" not in result.stdout
        source = (small_hub / "zoo" / "pair" / "README.md").read_text()
        assert catalog.card(name) == origin.card(name) == source
        assert (hub.count("api"), hub.count("resolver")) == costs
        for one in ("zoo/pair", "zoo/pair:checkpoint-1"):
            assert catalog.details(one) == origin.details(one)
    assert [row.adapter for row in catalog.adapters("license:mit")] == ["zoo/pair", "zoo/pair:checkpoint-1"]


@pytest.mark.parametrize("mark", [True, None])
@pytest.mark.parametrize(("name", "costs"), [("zoo/pair", (0, 1)), ("zoo/pair:checkpoint-1", (1, 1))])
def test_a_card_whose_digest_no_snapshot_named_is_fetched_and_exported_as_left_out(
    small_hub: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    costs: tuple[int, int],
    mark: bool | None,
) -> None:
    """Catalogs of earlier versions have a mark in place of the digest, and fewer facts of the card."""
    both = ("zoo/pair", "zoo/pair:checkpoint-1")
    with FaultHub(small_hub) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        origin, first = _bare_catalog(tmp_path)
        with loradex.catalog.writing(first.settings) as session:
            digest = session.scalars(select(Adapter)).first().left_out_card
            session.execute(update(Adapter).values(card_front={NOT_IN_SNAPSHOT: mark}))
            hub_id = session.scalars(select(Repository.hub_id)).one()
            assert store.card_facts(session, hub_id, digest) is None
            session.commit()
        report = first.export_snapshot(tmp_path / "again", cards=True)
        assert report.left_out["cards"] == 2
        exported = {row["subfolder"]: row["card_digest"] for row in table(tmp_path / "again", "adapters")}
        assert exported == {"": digest, "checkpoint-1": None}
        second = loradex.open(tmp_path / "second")
        assert second.import_snapshot(tmp_path / "again").cards_missing == 2
        source = (small_hub / "zoo" / "pair" / "README.md").read_text()
        for catalog in (first, second):
            assert all(catalog.details(one).card_left_out for one in both)
            hub.clear()
            assert catalog.card(name) == source
            assert (hub.count("api"), hub.count("resolver")) == costs
            assert catalog.card(name) == source
            assert catalog.details(name) == origin.details(name)
            assert all(catalog.card(one) == source for one in both)
            assert not any(catalog.details(one).card_left_out for one in both)


def test_a_card_of_other_bytes_is_refused(
    small_hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultHub(small_hub) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        _, catalog = _bare_catalog(tmp_path)
        hub.faults.append(Fault("README.md", Corrupt(5)))
        with pytest.raises(IntegrityError, match="does not have the hash"):
            catalog.card("zoo/pair")
    assert catalog.details("zoo/pair").card_left_out


def test_front_matter_of_a_card_that_is_there_marks_nothing(
    small_hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = small_hub / "zoo" / "pair" / "README.md"
    card.write_text(card.read_text().replace("---\n", f"---\n{NOT_IN_SNAPSHOT}: {'a' * 40}\n", 1))
    with FaultHub(small_hub) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        origin, catalog = _bare_catalog(tmp_path)
        assert origin.card("zoo/pair") == catalog.card("zoo/pair") == card.read_text()


def test_what_is_private_gated_or_own_is_left_out(sample_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(sample_data / "catalog.db", data)
    catalog = loradex.open(data)
    names = [row.adapter for row in catalog.adapters("owner:zoo", limit=3)]
    with loradex.catalog.writing(catalog.settings) as session:
        for name, values in zip(names, ({"private": True}, {"gated": "auto"}, {"likes": 7}), strict=True):
            session.execute(update(Repository).where(Repository.name == name).values(values))
        hub_id = session.scalars(select(Repository.hub_id).where(Repository.name == names[2])).one()
        session.add(Annotation(hub_id=hub_id, subfolder="", note="my words", hidden=True))
        session.commit()
    (tmp_path / "s.csv").write_text("adapter,t\n" + "".join(f"{name},0.5\n" for name in names))
    catalog.import_scores(tmp_path / "s.csv")
    report = catalog.export_snapshot(tmp_path / "public")
    assert (report.left_out["private"], report.left_out["gated"], report.left_out["scores"]) == (1, 1, 2)
    content = b"".join(path.read_bytes() for path in (tmp_path / "public").rglob("*") if path.is_file())
    assert b"my words" not in content
    texts = [
        json.dumps(table(tmp_path / "public", name), default=str)
        for name in TABLES
        if (tmp_path / "public" / name).is_dir()
    ]
    assert [text for text in texts if f'"{names[0]}"' in text or f'"{names[1]}"' in text] == []
    assert table(tmp_path / "public", "listed") == []
    assert report.left_out["cards"] > 0
    whole = catalog.export_snapshot(tmp_path / "all", with_private=True, with_notes=True)
    assert (whole.left_out["private"], whole.tables["notes"]) == (0, 1)


def test_a_card_that_was_left_out_is_marked_and_one_that_is_there_stays(
    exported: Path, sample_data: Path, engine: Engine, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    loradex.open(sample_data).export_snapshot(bare)
    bring(engine, exported)
    with Session(engine) as session, session.begin():
        cards = dict(session.execute(select(Adapter.id, Adapter.card_text)).all())
        assert any(cards.values())
        session.execute(update(Repository).values(last_seen=rows.NOW - timedelta(days=999)))
    counts = bring(engine, bare)
    with Session(engine) as session:
        kept = dict(session.execute(select(Adapter.id, Adapter.card_text)).all())
        fronts = session.execute(select(Adapter.card_digest, Adapter.card_front)).all()
    assert kept == cards
    assert counts.repositories_replaced == counts.repositories_added + len(table(bare, "repositories"))
    marked = [front for digest, front in fronts if NOT_IN_SNAPSHOT in front]
    assert all(digest is None for digest, front in fronts if NOT_IN_SNAPSHOT in front)
    assert len(marked) < len(fronts)


def test_a_later_crawl_of_the_same_id_wins_and_own_rows_stay(
    exported: Path, engine: Engine, tmp_path: Path
) -> None:
    bring(engine, exported)
    with Session(engine) as session, session.begin():
        older, newer = session.scalars(select(Repository).order_by(Repository.name).limit(2)).all()
        older_name, newer_name = older.name, newer.name
        older.last_seen, older.downloads = older.last_seen - timedelta(days=1), -7
        newer.last_seen, newer.downloads = newer.last_seen + timedelta(days=1), -7
        missing = session.scalars(select(Repository).order_by(Repository.name.desc()).limit(1)).one()
        session.delete(missing)
        session.add(Annotation(hub_id=older.hub_id, subfolder="", note="mine", hidden=False))
        session.add(SavedPool(name="p", digest="d" * 64, manifest={}, created_at=rows.NOW))
        score = {"subject": "base", "task": "t", "split": "s", "metric": "m", "source": "me", "protocol": ""}
        session.add(Evaluation(**score, value=0.25))
        session.execute(update(Crawl).values(watermark=rows.NOW))
    counts = bring(engine, exported)
    with Session(engine) as session:
        downloads = dict(session.execute(select(Repository.name, Repository.downloads)).all())
        assert downloads[older_name] != -7
        assert downloads[newer_name] == -7
        assert session.scalar(select(Annotation.note)) == "mine"
        assert session.scalar(select(SavedPool.name)) == "p"
        assert session.scalar(select(Evaluation.value)) == 0.25
        assert set(session.scalars(select(Crawl.watermark))) == {rows.NOW}
        current = select(func.count()).select_from(Adapter).where(Adapter.current)
        assert session.scalar(current) == sum(row["current"] for row in table(exported, "adapters"))
    assert (counts.repositories_added, counts.repositories_replaced, counts.watermarks) == (1, 1, 0)


def _other_byte(folder: Path) -> None:
    path = folder / "reasons" / "train-00000.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def _change_manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def alter(folder: Path) -> None:
        document = json.loads((folder / MANIFEST).read_text())
        change(document)
        (folder / MANIFEST).write_text(json.dumps(document))

    return alter


def _replace_table(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Other columns of a table, with a manifest that says so."""
    path = folder / name / "train-00000.parquet"
    parquet.write_table(change(parquet.read_table(path)), path)
    document = json.loads((folder / MANIFEST).read_text())
    file = document["tables"][name]["files"][0]
    file |= {"bytes": path.stat().st_size, "sha256": digest_of(path)}
    (folder / MANIFEST).write_text(json.dumps(document))


def _rewrite(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Another value in the first row of a table."""

    def changed(old: Any) -> Any:
        values = old.to_pylist()
        change(values[0])
        return pyarrow.Table.from_pylist(values, schema=old.schema)

    return lambda folder: _replace_table(folder, name, changed)


def _fill_column(name: str, storage: Any, value: Any) -> Callable[[Any], Any]:
    """The same value in every row of a column, without a look at what it means."""

    def changed(old: Any) -> Any:
        place = old.schema.get_field_index(name)
        values = pyarrow.array([value] * len(old), storage).view(old.schema.field(name).type)
        return old.set_column(place, old.schema.field(name), values)

    return changed


def _ask(document: dict[str, Any], **asked: Any) -> None:
    """Another question of the first crawl, with the digests of it."""
    crawl = document["crawls"][0]
    crawl["asked"] |= asked
    question = {name: value for name, value in crawl["asked"].items() if name != "since"}
    crawl["scope"] = frontier.digest(question)
    crawl["listing"] = frontier.digest({name: question[name] for name in ("hub", "queries")})


@pytest.mark.parametrize(
    ("alter", "words"),
    [
        (_other_byte, "does not have the sha256"),
        (lambda folder: (folder / "reasons" / "train-00000.parquet").unlink(), "is missing"),
        (lambda folder: (folder / MANIFEST).write_text("{"), "is not a manifest"),
        (_change_manifest(lambda one: one.update(format=2)), "is not a snapshot of format 1"),
        (_change_manifest(lambda one: one["versions"].update(schema="0001")), "by the same version"),
        (_change_manifest(lambda one: one.pop("crawls")), "lacks or misstates"),
        (_change_manifest(lambda one: one["tables"]["files"].update(rows=1)), "does not have 1 rows"),
        (_change_manifest(lambda one: one["tables"].update(x={})), "are not those of format"),
        (_change_manifest(lambda one: one["crawls"][0].update(scope="0" * 64)), "digests of a crawl"),
        (
            _change_manifest(lambda one: one["tables"]["files"]["files"][0].update(path="files/../../x")),
            "outside its folder",
        ),
        (_rewrite("documents", lambda row: row.update(content=b"x")), "other bytes than its digest"),
        (_rewrite("weights", lambda row: row.update(header=b"x")), "header is too large or incomplete"),
        (_rewrite("fingerprints", lambda row: row.update(delta=[1.0])), "of another size"),
        (_rewrite("adapters", lambda row: row.update(base="no/base")), "lacks the base model"),
        (_rewrite("adapters", lambda row: row.update(targets="{")), "an invalid value"),
        (_rewrite("reasons", lambda row: row.update(hub_id="0" * 24)), "does not follow the order"),
        (_rewrite("adapters", lambda row: row.update(commit="short")), "contradict each other"),
        (_change_manifest(lambda one: _ask(one, hub=5)), "no http or https URL"),
        (_change_manifest(lambda one: _ask(one, hub="ftp://hub")), "no http or https URL"),
        (_change_manifest(lambda one: one["crawls"][0].update(started_at=FUTURE)), "later than now"),
        (_change_manifest(lambda one: one.update(choice=[])), "lacks or misstates"),
        (_change_manifest(lambda one: one.pop("choice")), "misstates 'choice'"),
        (_change_manifest(lambda one: one["choice"].pop("with_private")), "misstates choice"),
        (_change_manifest(lambda one: one["choice"].update(with_private="no")), "misstates choice"),
        (_change_manifest(lambda one: one.update(left_out=[])), "lacks or misstates"),
        (_change_manifest(lambda one: one.pop("left_out")), "misstates 'left_out'"),
        (_change_manifest(lambda one: one["left_out"].update(cards="5")), "misstates left_out"),
        (
            _rewrite("repositories", lambda row: row.update(last_seen=datetime.fromisoformat(FUTURE))),
            "repositories/train-00000.parquet, row 1: its last_seen, 9998-01-01, is later than now",
        ),
        (
            _rewrite("repositories", lambda row: row.update(name="a/b@c:d")),
            "repositories/train-00000.parquet, row 1: 'a/b@c:d' is not the name of a repository",
        ),
        (_rewrite("repositories", lambda row: row.update(owner="else")), "row 1: its owner is not that"),
        (_rewrite("repositories", lambda row: row.update(hub_id="a b")), "row 1: its hub_id is not"),
        (_rewrite("adapters", lambda row: row.update(subfolder="../x")), "row 1: its subfolder leaves"),
        (_rewrite("files", lambda row: row.update(file="[]")), "row 1: its file is not a name, a size"),
        *(
            (
                _rewrite("training", lambda row, fact=fact: row.update(training=json.dumps(fact))),
                f"training/train-00000.parquet, row 1: its {next(iter(fact))} is not a",
            )
            for fact in ({"steps": 1e300}, {"seed": 2**63}, {"steps": 1.5}, {"seed": True}, {"epochs": "x"})
        ),
    ],
)
def test_a_snapshot_that_is_not_as_it_says_changes_nothing(
    exported: Path, sample_data: Path, tmp_path: Path, alter: Callable[[Path], object], words: str
) -> None:
    folder = shutil.copytree(exported, tmp_path / "snapshot")
    alter(folder)
    catalog = loradex.Catalog(Settings.make(data=tmp_path / "data", catalog_url=None, rules_file=None))
    with disposing(open_catalog(catalog.settings, create=True)):
        pass
    with pytest.raises(CatalogError, match=words):
        catalog.import_snapshot(folder)
    assert catalog.status().repositories == 0
    assert catalog.info().rows["document"] == 0


@pytest.mark.parametrize(
    ("name", "words", "advice"),
    [
        ("tags", {"tag": "a\nb"}, "is not a tag"),
        ("tags", {"tag": " "}, "is not a tag"),
        ("tags", {"tag": "x" * 5000}, "is not a tag"),
        ("tags", {"tag": " x"}, "has spaces around it"),
        ("notes", {"note": "x" * 2_000_000}, "A note has 1 to"),
        ("notes", {"note": ""}, "A note has 1 to"),
    ],
)
def test_words_that_no_user_may_write_are_not_imported(
    engine: Engine, tmp_path: Path, name: str, words: dict[str, str], advice: str
) -> None:
    rows.fill(engine)
    with Session(engine) as session, session.begin():
        session.execute(update(Adapter).values(files=[FILE], training={}))
    folder = write(engine, tmp_path / "snapshot")
    _rewrite(name, lambda row: row.update(words))(folder)
    catalog = loradex.open(tmp_path / "data")
    with pytest.raises(CatalogError, match=f"{name}/train-00000.parquet, row 1: .*{advice}"):
        catalog.import_snapshot(folder)
    assert catalog.status().repositories == 0


def _repeat_document(folder: Path, size: int, count: int) -> None:
    """One small file of this size, so many times; Parquet stores the bytes once."""
    path, content = folder / "documents" / "train-00000.parquet", bytes(size)
    values = {"digest": hashlib.sha256(content).hexdigest(), "content": content}
    schema = TABLES["documents"].schema()
    index = pyarrow.array([0] * count, pyarrow.int8())
    columns = [
        pyarrow.DictionaryArray.from_arrays(index, pyarrow.array([values[field.name]], field.type))
        for field in schema
    ]
    repeated = pyarrow.Table.from_arrays(columns, schema.names)
    parquet.write_table(repeated, path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 100_000
    document = json.loads((folder / MANIFEST).read_text())
    entry = document["tables"]["documents"]
    file = {"path": f"documents/{path.name}", "bytes": path.stat().st_size, "sha256": digest_of(path)}
    entry |= {"rows": count, "files": [file | {"rows": count}]}
    (folder / MANIFEST).write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("size", "count", "words"),
    [
        (2_000_000, 1000, "has more than 500,000,000 bytes in one group of rows"),
        (MOST_VALUE + 1, 1, "has a content of 67,108,865 bytes; at most 67,108,864 are read"),
    ],
)
def test_a_small_file_of_many_decoded_bytes_is_refused(
    exported: Path, tmp_path: Path, size: int, count: int, words: str
) -> None:
    folder = shutil.copytree(exported, tmp_path / "snapshot")
    _repeat_document(folder, size, count)
    with pytest.raises(CatalogError, match=f"documents/train-00000.parquet {words}"):
        loradex.verify_snapshot(folder)


def test_a_small_file_of_long_vectors_is_refused(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(exported, tmp_path / "snapshot")
    monkeypatch.setattr(verification, "_MOST_GROUP", 8_000_000)
    _rewrite("fingerprints", lambda row: row.update(version=0, delta=[0.0] * 1_000_000))(folder)
    assert (folder / "fingerprints" / "train-00000.parquet").stat().st_size < 8_000_000
    with pytest.raises(CatalogError, match="a group of rows of more than"):
        verify_snapshot(folder)


def _varint(number: int, length: int = 0) -> bytes:
    """A number as Thrift writes it, in at least so many bytes."""
    groups, rest = [], number << 1
    while rest or len(groups) < max(length, 1):
        groups.append(rest & 127)
        rest >>= 7
    return bytes([*(group | 128 for group in groups[:-1]), groups[-1]])


def test_a_page_is_as_large_as_its_own_header_says(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The footer states a small size for it."""
    folder = shutil.copytree(exported, tmp_path / "snapshot")
    _repeat_document(folder, 5_000_000, 1)
    path = folder / "documents" / "train-00000.parquet"
    group = parquet.read_metadata(path).row_group(0)
    content = path.read_bytes()
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    footer = content[start:]
    for size in (group.column(1).total_uncompressed_size, group.total_byte_size):
        footer = footer.replace(_varint(size), _varint(100, len(_varint(size))))
    path.write_bytes(content[:start] + footer)
    assert parquet.read_metadata(path).row_group(0).total_byte_size == 100
    document = json.loads((folder / MANIFEST).read_text())
    document["tables"]["documents"]["files"][0]["sha256"] = digest_of(path)
    (folder / MANIFEST).write_text(json.dumps(document))
    assert verify_snapshot(folder)
    monkeypatch.setattr(verification, "_MOST_GROUP", 4_000_000)
    with pytest.raises(CatalogError, match="a group of rows of more than"):
        verify_snapshot(folder)


@pytest.mark.parametrize("header", [b"", b"\xff" * 40, b"\x1c" * 40, b"\x15\x00\x15\x01\x15\x01\x00"])
def test_a_page_without_a_header_is_one_sentence(exported: Path, tmp_path: Path, header: bytes) -> None:
    folder = shutil.copytree(exported, tmp_path / "snapshot")
    path = folder / "documents" / "train-00000.parquet"
    column = parquet.read_metadata(path).row_group(0).column(0)
    content = bytearray(path.read_bytes())
    at, end = column.dictionary_page_offset or column.data_page_offset, column.total_compressed_size
    content[at : at + max(len(header), 1)] = header or b"\x09"
    assert end > len(header)
    path.write_bytes(content)
    document = json.loads((folder / MANIFEST).read_text())
    document["tables"]["documents"]["files"][0]["sha256"] = digest_of(path)
    (folder / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(CatalogError, match=r"has a page (without a readable header|of a negative size)"):
        verify_snapshot(folder)


def test_the_sizes_of_honest_pages_are_those_of_the_footer(exported: Path) -> None:
    for path in sorted(exported.glob("*/*.parquet")):
        metadata = parquet.read_metadata(path)
        for number, (size, values) in enumerate(pages.group_sizes(path, metadata)):
            group = metadata.row_group(number)
            columns = [group.column(place) for place in range(group.num_columns)]
            # The footer counts the headers too, and values without those of dictionaries.
            assert group.num_rows == 0 or 0 < size < group.total_byte_size
            assert values >= sum(column.num_values for column in columns)


def test_no_more_is_decoded_at_once_than_is_allowed(exported: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exported, tmp_path / "snapshot")
    _repeat_document(folder, 10_000_000, 40)
    parts = [len(part) for part in verify_snapshot(folder).rows(TABLES["documents"])]
    assert parts == [6] * 6 + [4]


def test_groups_of_large_rows_are_written_smaller(exported: Path, tmp_path: Path) -> None:
    writer = writing._Writer(tmp_path, TABLES["documents"])
    for number in range(3):
        writer.add({"digest": str(number), "content": bytes(writing._MOST_CHARACTERS // 2)})
    writer.close()
    with parquet.ParquetFile(tmp_path / "documents" / "train-00000.parquet") as file:
        groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    assert groups == [2, 1]


@pytest.mark.parametrize(
    "change",
    [
        _fill_column("owner", pyarrow.binary(), b"\xff"),
        _fill_column("last_seen", pyarrow.int64(), 2**62),
    ],
    ids=["text", "time"],
)
def test_values_that_python_cannot_hold_are_one_sentence(
    exported: Path, tmp_path: Path, change: Callable[[Any], Any]
) -> None:
    folder = shutil.copytree(exported, tmp_path / "snapshot")
    _replace_table(folder, "repositories", change)
    with pytest.raises(CatalogError, match=r"repositories/train-00000\.parquet cannot be read"):
        loradex.verify_snapshot(folder)


def test_a_folder_that_is_not_a_snapshot_is_never_replaced(sample_data: Path, tmp_path: Path) -> None:
    catalog = loradex.open(sample_data)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    with pytest.raises(UsageError, match="not a snapshot; choose another folder"):
        catalog.export_snapshot(tmp_path / "mine", overwrite=True)
    catalog.export_snapshot(tmp_path / "snapshot")
    before = files(tmp_path / "snapshot")
    with pytest.raises(UsageError, match="use `overwrite`"):
        catalog.export_snapshot(tmp_path / "snapshot")
    catalog.export_snapshot(tmp_path / "snapshot", overwrite=True)
    assert files(tmp_path / "snapshot") == before


def test_pandas_and_the_names_of_the_tables(exported: Path) -> None:
    import pandas

    frame = pandas.read_parquet(exported / "adapters")
    assert len(frame) == len(table(exported, "adapters"))
    vectors = pandas.read_parquet(exported / "fingerprints")
    assert str(vectors["delta"][0].dtype) == "float32"
    readme = (exported / "README.md").read_text()
    configs = [line.split()[-1] for line in readme.splitlines() if line.startswith("- config_name")]
    assert configs == [name for name in TABLES if name not in ("notes", "tags")]
    assert sorted(configs) == sorted(path.name for path in exported.iterdir() if path.is_dir())
    document = verify_snapshot(exported)
    assert document.crawls


def test_the_commands_say_what_was_written_and_added(sample_data: Path, tmp_path: Path) -> None:
    words = ("--data", str(sample_data), "-q", "snapshot", "export", str(tmp_path / "s"))
    assert "left out" in CliRunner().invoke(program, words, catch_exceptions=False).stdout
    words = ("--data", str(tmp_path / "data"), "snapshot", "import", str(tmp_path / "s"))
    result = CliRunner().invoke(program, words, catch_exceptions=False)
    assert "not in the snapshot" in result.stdout
    document = json.loads(CliRunner().invoke(program, [*words, "--json"]).stdout)
    assert (document["repositories_added"], document["repositories_left"]) == (0, 41)


def test_a_generated_catalog_returns_but_for_cards_that_no_license_allows(
    engine: Engine, tmp_path: Path
) -> None:
    generate(tmp_path / "data", 30)
    catalog = loradex.open(tmp_path / "data")
    report = catalog.export_snapshot(tmp_path / "snapshot")
    assert (report.tables["cards"], report.left_out["cards"]) == (0, 30)
    counts = bring(engine, tmp_path / "snapshot")
    assert (counts.adapters_added, counts.cards_missing) == (30, 30)
    again = write(engine, tmp_path / "again", SnapshotChoice())
    # Vectors of cards go with their texts.
    for name in set(TABLES) - {"bases", "spellings", "notes", "tags", "cards", "embeddings"}:
        assert table(again, name) == table(tmp_path / "snapshot", name), name
