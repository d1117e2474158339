"""A whole crawl against a local Hub with the real client: states, resume, increments, what is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from catalog.adapters import AdapterReference
from catalog.database import Adapter, Crawl, CrawlState, Repository, store, writer_lock
from catalog.errors import CatalogBusyError
from catalog.files import BlobStore
from catalog.search import browse
from crawler.crawl import refusing
from tests.crawling import crawl, dump, items
from tests.hubs import adapter_config, card, lora_files, lora_tensors, make_repo, safetensors_bytes
from tests.localhub import FaultHub
from tests.localhub.faults import Callback, Corrupt, EditJson, Fault, Hang, Status, Truncate

BASE = "meta-llama/Llama-3.1-8B-Instruct"
# No known base model, so that small factors fit it.
TINY = "acme/tiny"
LISTING = r"GET /api/models\?"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of the Hub."""
    folder = tmp_path / "hub"
    folder.mkdir()
    return folder


@pytest.fixture
def hub(root: Path) -> Iterator[FaultHub]:
    """A Hub of three repositories with one adapter each."""
    for name in ("ann/one", "bob/two", "cat/three"):
        make_repo(root, name, unlike(name))
    with FaultHub(root) as running:
        yield running


def unlike(name: str, **over: Any) -> dict[str, bytes | str]:
    """The files of an adapter that shares no byte with another's."""
    seed = sum(name.encode())
    files = lora_files(over.pop("base", TINY), **({"lora_dropout": seed / 1e5} | over))
    files["README.md"] = card(f"# The adapter {name}\n", base_model=TINY)
    files["adapter_model.safetensors"] = safetensors_bytes(lora_tensors(seed=seed))
    return files


def sentence(text: str) -> str:
    """A card that says only this."""
    return card(f"{text}\n", base_model=TINY)


def row(engine: Engine, name: str) -> dict[str, Any]:
    """An adapter as `show` tells it, judged by our rules."""
    with Session(engine) as session:
        adapter = browse.find_adapter(session, AdapterReference.parse(name))
        return asdict(browse.details(session, adapter, refusing("ours"), ()))


def is_accounted_for(report: dict[str, Any]) -> bool:
    """Whether every listed repository is in exactly one state and every adapter has one verdict."""
    states = ("new", "changed", "unchanged", "gone", "failed", "pending")
    return (
        report["listed"] == sum(report[state] for state in states)
        and report["adapters"] == report["accepted"] + report["skipped"]
    )


# -- what a crawl asks for ---------------------------------------------------------------------------------


def test_a_new_adapter_costs_one_api_and_three_resolver_requests(
    hub: FaultHub, engine: Engine, tmp_path: Path
) -> None:
    report = crawl(hub.url, engine, tmp_path)
    assert report["status"] == "complete"
    assert (report["listed"], report["new"], report["accepted"]) == (3, 3, 3)
    lists = sum(request.path == "/api/models" for request in hub.log)
    assert report["requests"] == {"api": 3 + lists, "resolver": 9}
    assert report["requests"] == {"api": hub.count("api"), "resolver": hub.count("resolver")}
    assert is_accounted_for(report)


def test_case_50_an_unchanged_hub_costs_no_resolver_request(
    hub: FaultHub, engine: Engine, tmp_path: Path
) -> None:
    crawl(hub.url, engine, tmp_path)
    before = dump(engine)
    hub.clear()
    report = crawl(hub.url, engine, tmp_path)
    assert (report["unchanged"], report["new"], report["requests"]["resolver"]) == (3, 0, 0)
    assert {request.path for request in hub.log} == {"/api/models"}
    assert dump(engine) == before


def test_case_78_a_whole_listing_again_leaves_every_row_as_it_was(
    hub: FaultHub, engine: Engine, tmp_path: Path
) -> None:
    crawl(hub.url, engine, tmp_path)
    before = dump(engine)
    report = crawl(hub.url, engine, tmp_path, full=True)
    assert (report["status"], report["unchanged"], report["requests"]["resolver"]) == ("complete", 3, 0)
    assert dump(engine) == before


def test_case_90_a_config_is_fetched_once_a_commit(hub: FaultHub, engine: Engine, tmp_path: Path) -> None:
    for options in ({"weights": "headers"}, {"weights": "stream"}, {"weights": "keep"}, {"full": True}):
        crawl(hub.url, engine, tmp_path, **options)
    configs = [request.path for request in hub.log if request.path.endswith("adapter_config.json")]
    assert len(configs) == len(set(configs)) == 3


def test_case_88_no_more_requests_in_flight_than_workers(root: Path, engine: Engine, tmp_path: Path) -> None:
    import threading

    flying, most, guard = 0, 0, threading.Lock()
    for number in range(8):
        make_repo(root, f"o/r{number}", unlike(f"r{number}"))
    with FaultHub(root) as hub:
        barrier = threading.Barrier(2, timeout=30)

        def arrive(_request: Any) -> None:
            nonlocal flying, most
            with guard:
                flying += 1
                most = max(most, flying)
            barrier.wait()
            with guard:
                flying -= 1

        hub.faults.append(Fault("GET /api/models/.*/tree", Callback(arrive)))
        report = crawl(hub.url, engine, tmp_path, workers=2)
    assert report["new"] == 8
    assert most == 2


def test_case_94_the_token_is_in_no_row(hub: FaultHub, engine: Engine, tmp_path: Path) -> None:
    crawl(hub.url, engine, tmp_path, hub={"token": "hf_sEcReTsEcReT"})
    assert any("hf_sEcReTsEcReT" in request.headers.get("authorization", "") for request in hub.log)
    stored = b"".join(file.read_bytes() for file in tmp_path.glob("catalog.db*"))
    assert b"sEcReT" not in stored
    assert "sEcReT" not in json.dumps(dump(engine))


# -- listings ----------------------------------------------------------------------------------------------


def test_case_01_three_pages_in_order(hub: FaultHub, engine: Engine, tmp_path: Path) -> None:
    report = crawl(hub.url, engine, tmp_path, hub={"page_limit": 1})
    assert (report["status"], report["new"]) == ("complete", 3)


def test_case_05_bad_rows_are_quarantined_and_the_rest_is_read(
    hub: FaultHub, engine: Engine, tmp_path: Path
) -> None:
    def spoil(rows: Any) -> Any:
        if rows:
            rows[1:1] = [{"id": "x/y"}, {"_id": None, "id": "x/y"}, 7, {"_id": "a" * 24, "id": 3}]
        return rows

    hub.faults.append(Fault(LISTING + ".*filter=peft", EditJson(spoil)))
    report = crawl(hub.url, engine, tmp_path)
    assert (report["status"], report["new"], sum(report["quarantined"].values())) == ("complete", 3, 4)
    assert is_accounted_for(report)


def test_case_11_a_hub_that_fails_leaves_a_partial_crawl_that_goes_on(
    hub: FaultHub, engine: Engine, tmp_path: Path
) -> None:
    hub.faults.append(Fault(LISTING + ".*cursor", Status(503)))
    report = crawl(hub.url, engine, tmp_path, hub={"page_limit": 1})
    assert (report["status"], report["errors"]) == ("partial", {"busy": 1})
    assert report["new"] == 1
    hub.faults.clear()
    hub.clear()
    report = crawl(hub.url, engine, tmp_path, hub={"page_limit": 1})
    assert (report["status"], report["new"], report["unchanged"]) == ("complete", 3, 0)
    first = next(request for request in hub.log if request.path == "/api/models")
    assert "cursor" in first.query, "the saved page was not taken up"
    with Session(engine) as session:
        assert len(session.scalars(select(Crawl)).all()) == 1


def test_case_13_an_expired_cursor_starts_the_listing_again(
    hub: FaultHub, engine: Engine, tmp_path: Path
) -> None:
    hub.faults.append(Fault(LISTING + ".*cursor", Status(503)))
    crawl(hub.url, engine, tmp_path, hub={"page_limit": 1})
    hub.faults[:] = [Fault(LISTING + ".*cursor", Status(400), times=1)]
    report = crawl(hub.url, engine, tmp_path, hub={"page_limit": 1})
    assert (report["status"], report["listed"], report["new"]) == ("complete", 3, 3)


def test_case_14_a_repository_on_two_pages_is_one_row(hub: FaultHub, engine: Engine, tmp_path: Path) -> None:
    first: list[Any] = []

    def repeat(rows: Any) -> Any:
        first[:] = first or rows[:1]
        return [*rows, *first]

    hub.faults.append(Fault(LISTING + ".*filter=peft", EditJson(repeat)))
    report = crawl(hub.url, engine, tmp_path, hub={"page_limit": 1})
    assert (report["listed"], report["new"]) == (3, 3)
    assert len(items(engine)) == 3


def test_case_15_a_repository_edited_between_pages_is_read_as_it_was_listed_last(
    hub: FaultHub, root: Path, engine: Engine, tmp_path: Path
) -> None:
    def edit(_request: Any) -> None:
        (root / "ann/one/README.md").write_text(
            sentence("Edited while the listing was read, as a person would do.")
        )

    hub.faults.append(Fault(LISTING + ".*cursor", Callback(edit), times=1))
    report = crawl(hub.url, engine, tmp_path, hub={"page_limit": 1})
    assert (report["status"], report["listed"]) == ("complete", 3)
    again = crawl(hub.url, engine, tmp_path)
    assert again["changed"] + again["unchanged"] == again["listed"]
    assert "Edited" in row(engine, "ann/one")["card"]


def test_case_16_a_repository_made_during_the_crawl_is_found_by_the_next(
    hub: FaultHub, root: Path, engine: Engine, tmp_path: Path
) -> None:
    def make(_request: Any) -> None:
        make_repo(root, "new/comer", unlike("comer"), mtime=None)

    hub.faults.append(Fault("GET /api/models/.*/tree", Callback(make), times=1))
    assert crawl(hub.url, engine, tmp_path)["listed"] == 3
    report = crawl(hub.url, engine, tmp_path)
    assert report["new"] == 1
    assert row(engine, "new/comer")["verdict"] == "accepted"


@pytest.mark.parametrize("fault", [Hang(), Truncate(10)], ids=["case-19-hang", "case-35-truncated-page"])
def test_a_listing_that_never_comes_fails(fault: Any, hub: FaultHub, engine: Engine, tmp_path: Path) -> None:
    hub.faults.append(Fault(LISTING, fault))
    report = crawl(hub.url, engine, tmp_path, hub={"timeout": 0.2, "deadline": 0.5})
    assert (report["status"], report["errors"]) == ("failed", {"unreachable": 1})


def test_a_limit_bounds_the_repositories(hub: FaultHub, engine: Engine, tmp_path: Path) -> None:
    report = crawl(hub.url, engine, tmp_path, limit=2)
    assert (report["status"], report["listed"], report["new"]) == ("complete", 2, 2)


# -- repositories ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "fault", "reason"),
    [
        pytest.param({"gated": "auto"}, None, "gated", id="case-22-gated-auto"),
        pytest.param({"gated": "manual"}, None, "gated", id="case-22-gated-manual"),
        pytest.param({"disabled": True}, None, "disabled", id="case-22-disabled"),
        pytest.param({}, Status(403), "private", id="case-22-forbidden-files"),
        pytest.param({}, Status(404, error_code="EntryNotFound"), "vanished", id="case-22-missing-files"),
    ],
)
def test_what_may_not_be_read_is_skipped_with_a_reason(
    facts: dict[str, Any], fault: Any, reason: str, root: Path, engine: Engine, tmp_path: Path
) -> None:
    make_repo(root, "shy/one", unlike("one"), facts)
    make_repo(root, "open/two", unlike("two"))
    with FaultHub(root) as hub:
        if fault is not None:
            hub.faults.append(Fault("GET /shy/one/resolve", fault))
        report = crawl(hub.url, engine, tmp_path)
    assert (report["status"], report["listed"], report["accepted"]) == ("complete", 2, 1)
    assert reason in row(engine, "shy/one")["reasons"]
    assert is_accounted_for(report)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Status(401), id="case-22-bare-401"),
        pytest.param(Status(401, error_code="RepoNotFound"), id="case-22-401-repo-not-found"),
        pytest.param(Status(404), id="case-22-404"),
    ],
)
def test_a_repository_that_is_missing_when_read_is_a_tombstone(
    answer: Any, hub: FaultHub, engine: Engine, tmp_path: Path
) -> None:
    hub.faults.append(Fault("GET /api/models/bob/two", answer))
    report = crawl(hub.url, engine, tmp_path)
    assert (report["status"], report["new"], report["gone"]) == ("complete", 2, 1)
    assert is_accounted_for(report)
    with Session(engine) as session:
        gone = session.scalars(select(Repository.name).where(Repository.gone_at.is_not(None))).all()
    assert gone == ["bob/two"]


def test_case_23_a_renamed_repository_keeps_its_row_and_its_old_name(
    hub: FaultHub, root: Path, engine: Engine, tmp_path: Path
) -> None:
    crawl(hub.url, engine, tmp_path)
    expected = row(engine, "ann/one")
    hub_id = expected["hub_id"]
    (root / "ann/one").rename(root / "ann/renamed")
    names = {"_id": hub_id, "sha": expected["commit"], "previous_names": ["ann/one"]}
    (root / "ann/renamed/.hub.json").write_text(json.dumps(names))
    report = crawl(hub.url, engine, tmp_path, full=True)
    assert (report["listed"], report["unchanged"], report["gone"]) == (3, 3, 0)
    result = row(engine, "ann/one")
    assert (result["adapter"], result["hub_id"], result["aliases"]) == ("ann/renamed", hub_id, ["ann/one"])


def test_case_24_the_same_name_with_another_id_is_another_repository(
    hub: FaultHub, root: Path, engine: Engine, tmp_path: Path
) -> None:
    crawl(hub.url, engine, tmp_path)
    old = row(engine, "ann/one")["hub_id"]
    (root / "ann/one/.hub.json").write_text(json.dumps({"_id": "f" * 24}))
    report = crawl(hub.url, engine, tmp_path, full=True)
    assert report["new"] == 1
    assert row(engine, "ann/one")["hub_id"] == "f" * 24
    with Session(engine) as session:
        names = store.known_repositories(session, [old]).get(old)
        assert names is not None
        assert names.gone_at is not None


def test_case_25_a_commit_that_vanished_is_read_at_the_new_one(
    hub: FaultHub, root: Path, engine: Engine, tmp_path: Path
) -> None:
    def force_push(_request: Any) -> None:
        (root / "bob/two/README.md").write_text(
            sentence("Pushed by force while nobody looked, as people do.")
        )

    hub.faults.append(Fault("GET /api/models/bob/two/tree", Callback(force_push), times=1))
    report = crawl(hub.url, engine, tmp_path)
    assert (report["status"], report["new"]) == ("complete", 3)
    assert "Pushed by force" in row(engine, "bob/two")["card"]


def test_case_26_what_is_stored_is_the_commit_that_was_read(
    hub: FaultHub, root: Path, engine: Engine, tmp_path: Path
) -> None:
    crawl(hub.url, engine, tmp_path)
    before = row(engine, "bob/two")
    (root / "bob/two/adapter_config.json").write_text(json.dumps(adapter_config(r=4, lora_alpha=64)))
    report = crawl(hub.url, engine, tmp_path, full=True)
    assert (report["changed"], report["unchanged"]) == (1, 2)
    after = row(engine, "bob/two")
    assert after["commit"] != before["commit"]
    assert (before["alpha"], after["alpha"]) == (adapter_config()["lora_alpha"], 64)
    assert row(engine, f"bob/two@{before['commit'][:12]}")["alpha"] == before["alpha"], "history is lost"


def test_case_27_deleted_and_back(hub: FaultHub, root: Path, engine: Engine, tmp_path: Path) -> None:
    crawl(hub.url, engine, tmp_path)
    (root / "cat/three").rename(tmp_path / "away")
    report = crawl(hub.url, engine, tmp_path, full=True)
    assert (report["unchanged"], report["gone"], report["listed"]) == (2, 1, 3)
    assert row(engine, "cat/three")["gone"] is not None
    (tmp_path / "away").rename(root / "cat/three")
    report = crawl(hub.url, engine, tmp_path, full=True)
    assert (report["unchanged"], report["gone"]) == (3, 0)
    assert row(engine, "cat/three")["gone"] is None


def test_a_repository_that_lost_its_tag_is_no_tombstone(
    hub: FaultHub, root: Path, engine: Engine, tmp_path: Path
) -> None:
    crawl(hub.url, engine, tmp_path)
    (root / "cat/three/.hub.json").write_text(json.dumps({"tags": ["region:us"]}))
    report = crawl(hub.url, engine, tmp_path, full=True)
    assert (report["unchanged"], report["gone"]) == (3, 0)


def test_case_33_and_34_every_adapter_of_a_repository_is_a_row_and_one_is_main(
    root: Path, engine: Engine, tmp_path: Path
) -> None:
    files: dict[str, bytes | str] = dict(unlike("root"))
    config = json.dumps(adapter_config(r=2, base_model_name_or_path=TINY))
    for step in range(100):
        files[f"checkpoint-{step}/adapter_config.json"] = config
        files[f"checkpoint-{step}/adapter_model.safetensors"] = safetensors_bytes(
            lora_tensors(r=2, seed=step)
        )
    files["variants/b/adapter_config.json"] = config
    files["variants/b/adapter_model.bin"] = b"listed, never opened"
    make_repo(root, "big/repo", files)
    with FaultHub(root) as hub:
        report = crawl(hub.url, engine, tmp_path)
        configs = sum(request.path.endswith("adapter_config.json") for request in hub.log)
    assert (report["listed"], report["adapters"], report["accepted"]) == (1, 102, 101)
    assert row(engine, "big/repo")["adapter"] == "big/repo"
    assert row(engine, "big/repo:checkpoint-7")["main"] is False
    assert (
        row(engine, "big/repo:variants/b")["reasons"][:2] == ["pickle_only", "not_root"]
        or "pickle_only" in (row(engine, "big/repo:variants/b")["reasons"])
    )
    assert configs == 2, "the same bytes were fetched again"
    with Session(engine) as session:
        assert len(session.scalars(select(Adapter).where(Adapter.main)).all()) == 1


def test_case_65_a_pickle_is_listed_and_nobody_opens_it(root: Path, engine: Engine, tmp_path: Path) -> None:
    import pickle

    canary = tmp_path / "canary"

    class TouchedWhenOpened:
        def __reduce__(self) -> Any:
            return (Path.touch, (canary,))

    files = unlike("pickled")
    del files["adapter_model.safetensors"]
    files["adapter_model.bin"] = pickle.dumps(TouchedWhenOpened())
    make_repo(root, "evil/one", files)
    with FaultHub(root) as hub:
        report = crawl(hub.url, engine, tmp_path, weights="keep")
        assert not any(request.path.endswith(".bin") for request in hub.log)
    assert report["reasons"]["pickle_only"] == 1
    assert "adapter_model.bin" in {file["name"] for file in row(engine, "evil/one")["files"]}
    assert not canary.exists()
    pickle.loads(files["adapter_model.bin"])
    assert canary.exists(), "the canary could not have sung"


# -- weights -----------------------------------------------------------------------------------------------


def test_keep_stores_verified_files_and_stream_deletes_them(
    hub: FaultHub, engine: Engine, tmp_path: Path
) -> None:
    blobs = BlobStore(tmp_path / "blobs")
    report = crawl(hub.url, engine, tmp_path, weights="stream")
    assert report["accepted"] == 3
    result = row(engine, "ann/one")
    assert result["norm"] > 0
    assert not blobs.has(result["weights"]["digest"])
    hub.clear()
    crawl(hub.url, engine, tmp_path, weights="keep")
    assert blobs.verify(result["weights"]["digest"])
    assert hub.count("resolver") == 3, "only the weights were to be fetched"
    hub.clear()
    crawl(hub.url, engine, tmp_path, weights="keep")
    assert hub.count("resolver") == 0


def test_case_37_corrupt_weights_are_refused(hub: FaultHub, engine: Engine, tmp_path: Path) -> None:
    hub.faults.append(Fault("GET /bob/two/resolve/.*safetensors", Corrupt(-1 % 700)))
    report = crawl(hub.url, engine, tmp_path, weights="keep")
    assert report["status"] == "complete"
    assert (
        "integrity" in row(engine, "bob/two")["reasons"]
        or "header_invalid" in row(engine, "bob/two")["reasons"]
    )
    assert not BlobStore(tmp_path / "blobs").has(row(engine, "bob/two")["weights"]["digest"])


def test_case_48_the_same_weights_are_fetched_once(root: Path, engine: Engine, tmp_path: Path) -> None:
    shared = safetensors_bytes(lora_tensors(seed=5))
    for number in range(6):
        make_repo(root, f"o/copy{number}", unlike(f"copy{number}") | {"adapter_model.safetensors": shared})
    with FaultHub(root) as hub:
        report = crawl(hub.url, engine, tmp_path, weights="stream", workers=4)
        complete = [r for r in hub.log if r.path.endswith(".safetensors") and "range" not in r.headers]
    assert report["accepted"] == 6
    assert len(complete) == 1


def test_zero_and_broken_values_are_reasons_once_the_weights_are_read(
    root: Path, engine: Engine, tmp_path: Path
) -> None:
    zero = {name: values * 0 for name, values in lora_tensors().items()}
    nan = {name: np.full_like(values, np.nan) for name, values in lora_tensors().items()}
    for name, tensors in (("zero", zero), ("nan", nan)):
        make_repo(root, f"o/{name}", unlike(name) | {"adapter_model.safetensors": safetensors_bytes(tensors)})
    with FaultHub(root) as hub:
        assert crawl(hub.url, engine, tmp_path)["accepted"] == 2
        report = crawl(hub.url, engine, tmp_path, weights="stream")
    assert report["accepted"] == 0
    assert "zero_update" in row(engine, "o/zero")["reasons"]
    assert "non_finite" in row(engine, "o/nan")["reasons"]


# -- bases -------------------------------------------------------------------------------------------------


def test_a_base_is_asked_for_under_all_its_names(root: Path, engine: Engine, tmp_path: Path) -> None:
    spelled = {
        "o/canonical": BASE,
        "o/renamed": "meta-llama/Meta-Llama-3.1-8B-Instruct",
        "o/quantised": "unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit",
        "o/mirror": "NousResearch/Meta-Llama-3.1-8B-Instruct",
    }
    for name, base in spelled.items():
        make_repo(root, name, unlike(name, base=base) | {"README.md": card(base_model=base)})
    unsloth = card(
        base_model="unsloth/meta-llama-3.1-8b-instruct-bnb-4bit",
        library_name=None,
        tags=["unsloth", "trl", "transformers"],
    )
    make_repo(root, "o/untagged", unlike("untagged", base=BASE) | {"README.md": unsloth})
    make_repo(root, "o/other", unlike("other", base="Qwen/Qwen2.5-7B"))
    with FaultHub(root) as hub:
        report = crawl(hub.url, engine, tmp_path, bases=(BASE,))
    assert report["listed"] == 5
    for name in (*spelled, "o/untagged"):
        result = row(engine, name)
        assert result["base"] == BASE
        assert result["base_raw"] == spelled.get(name, BASE)


# -- one writer, one transaction ---------------------------------------------------------------------------


def test_case_92_one_writer_at_a_time(hub: FaultHub, engine: Engine, tmp_path: Path) -> None:
    with writer_lock(engine), pytest.raises(CatalogBusyError):
        crawl(hub.url, engine, tmp_path)
    assert hub.count("api") == 0


def test_case_79_a_crash_in_a_transaction_leaves_no_half_adapter(
    hub: FaultHub, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class CrashError(BaseException):
        pass

    def crash(*_: Any) -> None:
        raise CrashError

    with monkeypatch.context() as patched:
        patched.setattr(store, "_write_adapter", crash)
        with pytest.raises(CrashError):
            crawl(hub.url, engine, tmp_path)
    assert dump(engine)["adapter"] == dump(engine)["repository"] == dump(engine)["document"] == []
    report = crawl(hub.url, engine, tmp_path)
    assert (report["status"], report["new"]) == ("complete", 3)
    with Session(engine) as session:
        assert session.scalars(select(Crawl.state)).all() == [CrawlState.COMPLETE]


def test_case_93_an_interrupt_leaves_a_crawl_that_goes_on(
    hub: FaultHub, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = 0
    save = store.save_repositories

    def interrupted(*arguments: Any) -> Any:
        nonlocal saved
        saved += 1
        if saved == 2:
            raise KeyboardInterrupt
        return save(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(store, "save_repositories", interrupted)
        # One at a time, however many are read by then.
        patched.setattr("crawler.crawl.items._ready", lambda window, most: [window.popleft()])
        with pytest.raises(KeyboardInterrupt):
            crawl(hub.url, engine, tmp_path)
    report = crawl(hub.url, engine, tmp_path)
    assert (report["status"], report["new"], report["unchanged"]) == ("complete", 3, 0)


def test_a_failed_repository_is_tried_again_by_the_next_crawl(
    hub: FaultHub, engine: Engine, tmp_path: Path
) -> None:
    hub.faults.append(Fault("GET /api/models/bob/two/tree", Status(500)))
    report = crawl(hub.url, engine, tmp_path)
    assert (report["status"], report["failed"], report["errors"]) == ("partial", 1, {"busy": 1})
    hub.faults.clear()
    report = crawl(hub.url, engine, tmp_path)
    assert (report["status"], report["new"], report["unchanged"]) == ("complete", 1, 2)
    assert row(engine, "bob/two")["verdict"] == "accepted"
