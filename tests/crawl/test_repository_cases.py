"""Hostile repositories among good ones: each ends in one counted state, and the neighbours are accepted."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from catalog.database import make_engine
from tests.crawling import crawl, dump, items
from tests.hubs import adapter_config, card
from tests.localhub import FaultHub
from tests.localhub.faults import Callback, EditJson, Fault, Html, Json, NextLink, Status
from tests.neighbours import (
    GOOD,
    LISTING,
    TINY,
    all_counted,
    below,
    blobs,
    neighbours,
    outcomes,
    own_files,
    repo,
    row,
    sqlite_catalog,
    tree_entry,
    verdicts,
)


@pytest.fixture
def backend() -> str:
    """One database is enough here; the crawl of all of this is compared with PostgreSQL elsewhere."""
    return "sqlite"


# What the Hub says of a repository, how it answers, and what becomes of it: the outcome, and a reason or
# the kind of the error.
ACCESS: dict[str, tuple[dict[str, Any], Any, str, str | None]] = {
    "case-22-gated-auto": ({"gated": "auto"}, None, "new", "gated"),
    "case-22-gated-manual": ({"gated": "manual"}, None, "new", "gated"),
    "case-22-gate-nobody-knows": ({"gated": {"by": "me"}}, None, "new", "gated"),
    "case-22-disabled": ({"disabled": True}, None, "new", "disabled"),
    "case-22-bare-401": ({}, Status(401), "gone", None),
    "case-22-private-is-401-not-found": ({}, Status(401, error_code="RepoNotFound"), "gone", None),
    "case-22-404": ({}, Status(404), "gone", None),
    "case-22-403": ({}, Status(403), "new", "private"),
    "case-22-451": ({}, Status(451), "new", "disabled"),
    "case-28-no-commit": ({"sha": None}, None, "new", None),
    "case-28-no-commit-and-disabled": ({"sha": None, "disabled": True}, None, "new", None),
    "case-06-html-for-a-tree": ({}, Html(), "failed", "payload"),
    "case-07-object-for-a-tree": ({}, Json({"files": []}), "failed", "payload"),
    "case-02-tree-that-leads-to-itself": ({}, NextLink("{self}"), "failed", "payload"),
    "case-03-tree-that-leads-elsewhere": ({}, NextLink("http://localhost:9{next_path}"), "failed", "payload"),
    "case-11-tree-that-is-never-ready": ({}, Status(503), "failed", "busy"),
}
NFC, NFD = "caf\u00e9.txt", "cafe\u0301.txt"
# Entries that are added to the file list of an adapter, and words of what the catalog notes of them.
ENTRIES: dict[str, tuple[list[Any], str]] = {
    "case-29-parent": ([tree_entry("../evil.txt")], "leaves its folder"),
    "case-29-parent-inside": ([tree_entry("a/../../../evil.txt")], "leaves its folder"),
    "case-29-parent-of-an-adapter": (
        [tree_entry("../adapter_config.json"), tree_entry("../adapter_model.safetensors")],
        "leaves its folder",
    ),
    "case-29-absolute": ([tree_entry("/etc/evil")], "empty part"),
    "case-29-drive": ([tree_entry("C:\\evil.txt")], "Windows path"),
    "case-29-drive-with-slashes": ([tree_entry("C:/adapter_config.json")], "Windows path"),
    "case-29-unc": ([tree_entry("\\\\host\\share\\evil")], "Windows path"),
    "case-29-nul": ([tree_entry("evil\0.txt")], "control character"),
    "case-29-line-break": ([tree_entry("evil\n.txt")], "control character"),
    "case-29-empty-part": ([tree_entry("a//b")], "empty part"),
    "case-29-trailing-dot": ([tree_entry("evil./adapter_config.json")], "dot or a space"),
    "case-29-device": ([tree_entry("NUL")], "names a device"),
    "case-29-half-a-surrogate": ([tree_entry("evil\ud800.txt")], "not Unicode"),
    "case-29-very-long": ([tree_entry("long/" * 300 + "evil.txt")], "too long"),
    "case-29-long-name": ([tree_entry("e" * 300)], "too long"),
    "case-29-nfc-and-nfd": ([tree_entry(NFC), tree_entry(NFD)], "Unicode form"),
    "case-29-case": ([tree_entry("Adapter_Config.json")], "differ only in case"),
    "case-29-file-and-folder": ([tree_entry("README.md/adapter_config.json")], "below a file"),
    "case-29-twice": ([tree_entry("adapter_config.json", oid="1" * 40)], "listed twice"),
    "case-30-unknown-type": ([tree_entry("link", type="symlink")], "unknown type"),
    "case-30-no-type": ([tree_entry("link", type=None)], "unknown type"),
    "case-30-no-object": ([7, None, "x", ["y"]], "not an object"),
    "case-30-no-path": ([tree_entry(None), tree_entry(["a"])], "has no path"),
    "case-30-size-of-words": ([tree_entry("odd", size="many")], "has no size"),
    "case-30-size-below-zero": ([tree_entry("odd", size=-1)], "has no size"),
    "case-30-size-beyond-all": ([tree_entry("odd", size=10**30)], "has no size"),
    "case-30-lfs-of-words": ([tree_entry("odd", lfs="yes")], "not an object"),
    "case-32-another-lfs-file-without-oid": ([tree_entry("odd", lfs={"size": 3})], "no hash"),
    "case-32-another-file-without-oid": ([tree_entry("odd", oid=None)], "no hash"),
}


def remove_hash(path: str) -> EditJson:
    """A file list in which this file has no hash."""

    def forget(rows: list[dict[str, Any]]) -> None:
        for entry in rows:
            if entry["path"] == path:
                entry.pop("oid", None)
                entry.get("lfs", {}).pop("oid", None)

    return EditJson(forget)


def add_entries(entries: list[Any]) -> EditJson:
    """A file list with these entries at its end."""
    return EditJson(lambda rows: rows + entries)


# Repositories whose file list is changed; what becomes of each, with a reason.
UNVERIFIABLE = {
    "case-32-weights-without-oid": (remove_hash("adapter_model.safetensors"), "integrity"),
    "case-32-config-without-oid": (remove_hash("adapter_config.json"), "integrity"),
    "case-32-card-without-oid": (remove_hash("README.md"), "integrity"),
}


@dataclass(frozen=True)
class Village:
    """One crawl of everything: its Hub's folder, the catalog, the report, and the place of all files."""

    place: Path
    engine: Engine
    report: dict[str, Any]
    hub: FaultHub


def settle(root: Path) -> list[Fault]:
    """Writes all repositories of this module and gives the faults that make them hostile."""
    neighbours(root)
    faults = []
    for case, (facts, answer, *_) in ACCESS.items():
        repo(root, f"access/{case}", **facts)
        if answer is not None:
            faults.append(Fault(f"GET /api/models/access/{case}(/|\\?)", answer))
    repo(root, "access/case-25", sha="5" * 40)
    faults.append(Fault("GET /api/models/access/case-25/tree", Status(404, error_code="RevisionNotFound")))
    for case, (entries, _) in ENTRIES.items():
        repo(root, f"tree/{case}")
        faults.append(Fault(f"GET /api/models/tree/{case}/tree", add_entries(entries)))
    for case, (edit, _) in UNVERIFIABLE.items():
        repo(root, f"hash/{case}")
        faults.append(Fault(f"GET /api/models/hash/{case}/tree", edit))
    many = {f"logs/{number:04}.txt": "" for number in range(1_200)}
    deep = {f"zoo/{path}": body for path, body in own_files("zoo").items()}
    none = dict.fromkeys(own_files("zoo"))
    repo(root, "tree/case-31-many-files", none | many | deep)
    return faults


@pytest.fixture(scope="module")
def village(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Village]:
    """What one crawl that keeps weights made of all repositories of this module."""
    place = tmp_path_factory.mktemp("village") / "square"
    place.mkdir()
    (place / "hub").mkdir()
    faults = settle(place / "hub")
    with FaultHub(place / "hub", faults=faults) as hub, sqlite_catalog(request, place / "data") as engine:
        report = crawl(hub.url, engine, place / "data", weights="keep", hub={"page_limit": 20})
        yield Village(place, engine, report, hub)


def test_every_repository_is_counted_once_and_the_good_ones_are_accepted(village: Village) -> None:
    report = village.report
    assert all_counted(report), report
    assert report["pending"] == 0
    assert report["listed"] == len(GOOD) + len(ACCESS) + len(ENTRIES) + len(UNVERIFIABLE) + 2
    assert {verdicts(village.engine)[name] for name in GOOD} == {"accepted"}
    assert {outcomes(village.engine)[name] for name in GOOD} == {"new"}


@pytest.mark.parametrize("case", ACCESS)
def test_what_cannot_be_read_has_a_reason_or_is_counted(case: str, village: Village) -> None:
    *_, outcome, why = ACCESS[case]
    name = f"access/{case}"
    assert outcomes(village.engine)[name] == outcome
    if outcome == "new" and why is not None:
        result = row(village.engine, name)
        assert why in result["reasons"]
        assert result["verdict"] == "skipped"
    else:
        assert name not in verdicts(village.engine)
        assert why is None or village.report["errors"][why] > 0


@pytest.mark.parametrize("case", ENTRIES)
def test_an_entry_that_nobody_can_use_costs_that_entry_only(case: str, village: Village) -> None:
    result = row(village.engine, f"tree/{case}")
    assert result["verdict"] == "accepted"
    assert result["rank"] == 4
    assert ENTRIES[case][1] in result["details"]["unusable_files"]
    assert result["other_adapters"] == []
    assert result["weights"]["digest"] in blobs(village.place / "data")


@pytest.mark.parametrize("case", UNVERIFIABLE)
def test_a_file_that_nobody_can_verify_is_not_accepted_on_trust(case: str, village: Village) -> None:
    result = row(village.engine, f"hash/{case}")
    assert result["verdict"] == "skipped"
    assert {UNVERIFIABLE[case][1], "unusable_files"} <= set(result["reasons"])


def test_case_31_files_beyond_the_first_thousand_are_read(village: Village) -> None:
    result = row(village.engine, "tree/case-31-many-files")
    assert (result["adapter"], result["verdict"]) == ("tree/case-31-many-files:zoo", "accepted")
    pages = [request for request in village.hub.log if "case-31-many-files/tree" in request.path]
    assert len(pages) == 2


def test_case_29_nothing_is_written_outside_the_data_folder(village: Village) -> None:
    assert all(path.split("/")[0] in ("hub", "data") for path in below(village.place))
    assert not any("evil" in path for path in below(village.place.parent))


@pytest.mark.postgres
@pytest.mark.slow
def test_case_80_hostile_repositories_leave_the_same_rows_on_both_databases(
    village: Village, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    databases = request.getfixturevalue("postgres_database")(request.getfixturevalue("postgres_template"))
    engine = make_engine(next(databases))
    report = crawl(village.hub.url, engine, tmp_path, weights="keep", hub={"page_limit": 20})
    same = dump(engine) == dump(village.engine) and items(engine) == items(village.engine)
    engine.dispose()
    databases.close()
    assert same
    passing = {"seconds", "bytes", "requests"}
    assert {k: v for k, v in report.items() if k not in passing} == {
        k: v for k, v in village.report.items() if k not in passing
    }


def test_case_25_a_commit_that_the_hub_names_and_does_not_have_is_tried_again(village: Village) -> None:
    assert outcomes(village.engine)["access/case-25"] == "failed"
    assert village.report["errors"]["revision_gone"] == 1
    assert "access/case-25" not in verdicts(village.engine)


def test_case_26_main_moves_while_the_files_are_read(engine: Engine, tmp_path: Path) -> None:
    root = tmp_path / "hub"
    root.mkdir()
    neighbours(root)

    def move(_request: Any) -> None:
        config = adapter_config(r=4, lora_alpha=64, base_model_name_or_path=TINY)
        (root / "bob/two/adapter_config.json").write_text(json.dumps(config))
        (root / "bob/two/README.md").write_text(card("Main has moved on while somebody was reading it.\n"))

    with FaultHub(root) as hub:
        hub.faults.append(Fault("GET /bob/two/resolve/.*README", Callback(move), times=1))
        report = crawl(hub.url, engine, tmp_path, weights="keep")
        assert (report["status"], report["new"], report["accepted"]) == ("complete", 3, 3)
        result = row(engine, "bob/two")
        again = crawl(hub.url, engine, tmp_path, weights="keep", full=True)
    assert (result["alpha"], "Main has moved" in result["card"]) == (64, True)
    assert again["unchanged"] == 3, "what is stored is not the commit that was read"


WORDS = st.text(st.characters(), max_size=12) | st.sampled_from(["nul\0", "half \ud800", "x" * 1100, "peft"])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(2**63) - 1, 1e308, -0.0])
    | st.floats(allow_nan=False, allow_infinity=False)
    | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
KEYS = (
    *("author", "cardData", "config", "createdAt", "disabled", "downloads", "downloadsAllTime", "gated"),
    *("lastModified", "library_name", "likes", "pipeline_tag", "private", "siblings", "tags"),
)
ROWS = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6)
ENTRY = (
    st.fixed_dictionaries({}, optional=dict.fromkeys(("path", "type", "size", "oid", "lfs"), VALUES)) | VALUES
)
ROOT_ENTRY = st.fixed_dictionaries(
    {
        "path": st.sampled_from(
            ["adapter_config.json", "adapter_model.safetensors", "README.md", "a/b/adapter_model.bin"]
        )
    },
    optional={"type": st.just("file"), "size": st.integers(0, 10**7) | VALUES, "oid": VALUES, "lfs": VALUES},
)
CONFIG = st.dictionaries(st.sampled_from(sorted(adapter_config())), VALUES, max_size=6)
NUMBERS = itertools.count()


@given(
    st.lists(
        st.tuples(ROWS, st.lists(ENTRY | ROOT_ENTRY, max_size=4), CONFIG | VALUES), min_size=8, max_size=12
    )
)
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
def test_case_28_whatever_the_fields_hold_every_repository_is_counted(
    odd_hub: tuple[FaultHub, Engine, Path], drawn: list[tuple[dict[str, Any], list[Any], Any]]
) -> None:
    hub, engine, data = odd_hub
    listed, faults = [], []
    for facts, entries, config in drawn:
        number = next(NUMBERS)
        name = f"odd/r{number}"
        body = json.dumps(config).encode()
        entry = tree_entry("adapter_config.json", oid=git_id(body), size=len(body))
        listed.append(
            {"_id": f"{number:024x}", "id": name, "sha": f"{number:040x}", "tags": ["peft"]} | facts
        )
        faults.append(Fault(f"GET /api/models/{name}/tree", Json([entry, *entries])))
        faults.append(Fault(f"GET /{name}/resolve/.*/adapter_config.json", Status(200, body=body)))
    hub.faults[:] = [Fault(LISTING + ".*filter=peft", EditJson(lambda rows: rows + listed)), *faults]
    report = crawl(hub.url, engine, data, full=True, weights="stream")
    assert all_counted(report), report
    assert (report["pending"], report["quarantined"]) == (0, {})
    names = outcomes(engine)
    assert {names[item["id"]] for item in listed} <= {"new", "gone", "failed"}
    assert {verdicts(engine)[name] for name in GOOD} == {"accepted"}


@pytest.fixture(scope="module")
def odd_hub(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[FaultHub, Engine, Path]]:
    """A Hub of the good repositories, a catalog, and its data folder, for all examples one after another."""
    place = tmp_path_factory.mktemp("odd")
    (place / "hub").mkdir()
    neighbours(place / "hub")
    with FaultHub(place / "hub") as hub, sqlite_catalog(request, place / "data") as engine:
        yield hub, engine, place / "data"


def git_id(content: bytes) -> str:
    """The name that git gives to a file of these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.mark.parametrize(
    ("depth", "listed", "quarantined", "errors"),
    [
        pytest.param(40, 4, 0, {}, id="case-28-card-nested-too-deep"),
        pytest.param(100, 3, 1, {}, id="case-28-row-nested-too-deep"),
        pytest.param(900, 3, 1, {}, id="case-28-row-nested-almost-too-deep-to-parse"),
        pytest.param(100_000, 3, 1, {}, id="case-28-page-nested-too-deep-to-parse"),
    ],
)
def test_a_row_nested_without_end_stops_no_other(
    depth: int,
    listed: int,
    quarantined: int,
    errors: dict[str, int],
    odd_hub: tuple[FaultHub, Engine, Path],
    engine: Engine,
    tmp_path: Path,
) -> None:
    hub, *_ = odd_hub
    nested = b'{"a":' * depth + b"1" + b"}" * depth
    facts = b'"_id": "%s", "id": "odd/deep", "sha": "%s"' % (b"d" * 24, b"d" * 40)
    page = b'[{%s, "cardData": %s}]' % (facts, nested)
    hub.faults[:] = [Fault(LISTING + ".*filter=lora", Status(200, body=page))]
    report = crawl(hub.url, engine, tmp_path)
    assert all_counted(report), report
    assert (report["accepted"], report["listed"], report["errors"]) == (3, listed, errors)
    assert sum(report["quarantined"].values()) == quarantined
