"""Wrong configurations, cards and pickles: each ends as a reason in the catalog, and the rest is read."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from catalog.adapters import AdapterReference
from catalog.database import make_engine
from catalog.search import browse
from crawler.crawl import refusing
from tests.crawling import crawl, dump, items
from tests.hubs import BASE, adapter_config
from tests.localhub import FaultHub
from tests.localhub.faults import SeenRequest
from tests.neighbours import (
    GOOD,
    TINY,
    all_counted,
    has_document,
    neighbours,
    outcomes,
    repo,
    row,
    sqlite_catalog,
    verdicts,
)

MEBIBYTE = 1024 * 1024
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 700\n"


@pytest.fixture
def backend() -> str:
    """One database is enough for single tests; the crawl of all of this is compared with PostgreSQL."""
    return "sqlite"


def config(**over: Any) -> bytes:
    """A configuration for the tiny base model."""
    return json.dumps(adapter_config(base_model_name_or_path=TINY) | over).encode()


def splice_text(text: bytes) -> bytes:
    """A good configuration with this text put in behind its opening brace."""
    return b"{" + text + b", " + config()[1:]


# A configuration, the reason for which it is refused or noted, and the fields that the catalog holds.
CONFIGS: dict[str, tuple[bytes, str | None, dict[str, Any]]] = {
    "case-66-unknown-keys": (config(of_another_program={"x": [1, None]}), None, {"rank": 4}),
    "case-67-r-0": (config(r=0), "config_unreadable", {"rank": None}),
    "case-67-r-below-0": (config(r=-1), "config_unreadable", {"rank": None}),
    "case-67-r-true": (config(r=True), "config_unreadable", {"rank": None}),
    "case-67-r-text": (config(r="16"), "config_unreadable", {"rank": None}),
    "case-67-r-huge": (config(r=10**9), "config_unreadable", {"rank": None}),
    "case-67-r-float": (config(r=1e9), "config_unreadable", {"rank": None}),
    "case-67-r-null": (config(r=None), "config_unreadable", {"rank": None}),
    "case-67-r-another": (config(r=8), "rank_mismatch", {"rank": 8}),
    "case-68-targets": (config(target_modules="(a+)+$"), None, {"targets": ["q_proj", "v_proj"]}),
    "case-68-targets-no-regex": (config(target_modules="(" * 500), None, {}),
    "case-68-excluded": (config(exclude_modules="((((a*)*)*)*)*b"), None, {}),
    "case-68-ranks": (config(rank_pattern={"(.*)*" * 20 + "x": 4}), "rank_pattern", {}),
    "case-68-alphas": (config(alpha_pattern={"(?=(q))(?:\\1|.)*+": 4}), "bad_pattern", {}),
    "case-69-loha": (config(peft_type="LOHA"), "not_lora", {"peft_type": "LOHA"}),
    "case-69-ia3": (config(peft_type="IA3", r=None), "not_lora", {"peft_type": "IA3"}),
    "case-69-nobody-knows": (config(peft_type="\u0000\ud800"), "config_unreadable", {}),
    "case-69-none": (config(peft_type=None), "config_not_peft", {}),
    "case-69-mlx": (b'{"lora_parameters": {"rank": 8}, "adapter_path": "x"}', "config_not_peft", {}),
    "case-71-empty": (b"", "config_unreadable", {}),
    "case-71-no-json": (b"peft_type: LORA", "config_unreadable", {}),
    "case-71-list": (b"[]", "config_unreadable", {}),
    "case-71-deep": (b'{"a":' * 100_000, "config_unreadable", {}),
    "case-71-deep-and-whole": (splice_text(b'"a": ' + b"[" * 3_000 + b"]" * 3_000), "config_unreadable", {}),
    "case-71-huge": (config() + b" " * MEBIBYTE, "config_unreadable", {}),
    "case-71-keys-twice": (splice_text(b'"r": 64, "lora_alpha": "x"'), None, {"rank": 4, "alpha": 8}),
    "case-71-byte-order-mark": (b"\xef\xbb\xbf" + config(), None, {"rank": 4}),
    "case-71-utf-16": (config().decode().encode("utf-16"), "config_unreadable", {}),
    "case-71-latin-1": (config().replace(b"CAUSAL_LM", b"\xe9"), "config_unreadable", {}),
    "case-71-nan": (config(lora_alpha=float("nan")), "config_unreadable", {}),
    "case-71-infinity": (config(lora_alpha=float("inf")), "config_unreadable", {}),
    "case-71-beyond-floats": (config().replace(b": 8,", b": 1e999,"), "config_unreadable", {}),
    "case-71-5000-digits": (config().replace(b'"r": 4', b'"r": ' + b"9" * 5_000), "config_unreadable", {}),
    "case-71-5000-digits-elsewhere": (splice_text(b'"a": ' + b"9" * 5_000), "config_unreadable", {}),
    "case-71-pointer": (POINTER, "config_lfs_pointer", {}),
    "case-72-rslora": (config(use_rslora=True), None, {"use_rslora": True, "scaling": 4.0}),
    "case-72-dora": (config(use_dora=True), "use_dora", {}),
    "case-72-ranks": (config(rank_pattern={"k_proj": 2}), "rank_pattern", {"rank": 4}),
    "case-72-alphas": (config(alpha_pattern={"q_proj": 16}), "alpha_pattern", {}),
}
NOTED = {"case-68-ranks", "case-72-ranks", "case-72-alphas"}
MIRROR = "NousResearch/Meta-Llama-3.1-8B-Instruct"
# The base model as a configuration spells it → canonical name, kind, words of the evidence, reason.
SPELLINGS: dict[str, tuple[Any, str | None, str | None, str | None]] = {
    "case-70-canonical": (BASE, BASE, "canonical", None),
    "case-70-renamed": ("meta-llama/Meta-Llama-3.1-8B-Instruct", BASE, "renamed", None),
    "case-70-case-variant": ("meta-llama/meta-llama-3.1-8b-instruct", BASE, "case", None),
    "case-70-quantised": ("unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit", BASE, "quantised", None),
    "case-70-mirror": (MIRROR, BASE, "mirror", None),
    "case-70-path-with-a-name": ("/home/me/models/Meta-Llama-3.1-8B-Instruct", BASE, "local_path", None),
    "case-70-path": ("/root/checkpoints/final", None, "local_path", "base_local_path"),
    "case-70-null": (None, None, "local_path", "base_missing"),
    "case-70-blank": ("  ", None, "local_path", "base_missing"),
    "case-70-another": ("acme/other", "acme/other", "canonical", None),
}


def front(text: str) -> bytes:
    """A card with this front matter."""
    return f"---\n{text}\n---\n\n# A card\n".encode()


def bomb() -> str:
    """Front matter of a kilobyte that stands for gigabytes."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    return "\n".join(lines)


CARDS: dict[str, bytes] = {
    "case-73-list": front("- a\n- b"),
    "case-73-words": front("just words"),
    "case-73-bad-yaml": front("a: [1"),
    "case-73-python-tag": front("a: !!python/object/apply:os.abort []"),
    "case-73-key-is-a-number": front("1: x\n2.5: y\ntrue: z"),
    "case-73-key-of-the-client": front("ignore_metadata_errors: true"),
    "case-73-key-is-a-list": front("? [a]\n: b"),
    "case-73-alias-bomb": front(bomb()),
    "case-73-endless-alias": front("a: &a [*a]"),
    "case-73-norway": front("language: no\ntags: x"),
    "case-73-date": front("date: 2024-05-05\nwhen: 2024-13-45"),
    "case-73-index-without-url": front("model-index: [{name: x, results: [{source: {name: y}}]}]"),
    "case-73-deep": front("a: " + "[" * 50_000),
    "case-73-unclosed": b"---\nlicense: mit\n",
    "case-73-not-utf-8": b"\xff\xfe\x00---\nlicense: mit\n---\n",
    "case-73-nul": front('a: "\\0"') + b"\0\0 text \xed\xa0\x80",
    "case-73-pointer": POINTER,
    "case-73-empty": b"",
}
# Front matter → the licence that the catalog holds, and a reason.
LICENCES: dict[str, tuple[str, str | None, str | None]] = {
    "case-74-plain": ("license: llama3.1", "llama3.1", None),
    "case-74-list": ("license: [llama3.1, mit]", "llama3.1", None),
    "case-74-int": ("license: 3", None, "license_missing"),
    "case-74-mapping": ("license: {a: b}", None, "license_missing"),
    "case-74-other-with-a-name": ("license: other\nlicense_name: My-Terms", "my-terms", None),
    "case-74-other-without-a-name": ("license: other", "other", "license_missing"),
    "case-74-none": ("a: b", None, "license_missing"),
    "case-74-conflict": ("license: apache-2.0", "apache-2.0", "license_conflict"),
    "case-74-another-community": ("license: gemma", "gemma", "license_conflict"),
}


class TouchedWhenUnpickled:
    """What touches a file when a pickle of it is opened."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (Path.touch, (self.canary,))


@dataclass(frozen=True)
class Library:
    """One crawl of everything: its Hub, what that was asked for, the catalog, and the report."""

    place: Path
    hub: FaultHub
    engine: Engine
    report: dict[str, Any]
    asked: list[SeenRequest]


def stock(root: Path, canary: Path) -> None:
    """Writes all repositories of this module."""
    neighbours(root)
    for case, (body, *_) in CONFIGS.items():
        repo(root, f"config/{case}", {"adapter_config.json": body})
    for case, (spelling, *_) in SPELLINGS.items():
        spelled = config(base_model_name_or_path=spelling)
        repo(root, f"base/{case}", {"adapter_config.json": spelled, "README.md": None}, tags=["peft"])
    for case, body in CARDS.items():
        repo(root, f"card/{case}", {"README.md": body})
    for case, (text, *_) in LICENCES.items():
        by_name = config(base_model_name_or_path=BASE)
        repo(
            root, f"licence/{case}", {"adapter_config.json": by_name, "README.md": front(text)}, tags=["peft"]
        )
    most = 10 * MEBIBYTE
    start = front("license: mit") + b"Somebody wrote these words about this one adapter.\n"
    repo(root, "card/case-75-ten-megabytes", {"README.md": start + b"a" * (most - len(start))})
    repo(root, "card/case-75-more", {"README.md": start + b"a" * most})
    opened = pickle.dumps(TouchedWhenUnpickled(canary))
    pickles: dict[str, dict[str, bytes | str | None]] = {
        "case-65-pickle-alone": {"adapter_model.safetensors": None, "adapter_model.bin": opened},
        "case-65-pickle-beside": dict.fromkeys(("adapter_model.bin", "training_args.bin", "a.pt"), opened),
        "case-65-pickle-by-another-name": {"adapter_model.safetensors": opened},
        "case-65-pickle-for-a-config": {"adapter_config.json": opened},
    }
    for case, files in pickles.items():
        repo(root, f"pickle/{case}", files)


@pytest.fixture(scope="module")
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    """What one crawl made of all repositories of this module."""
    place = tmp_path_factory.mktemp("library")
    (place / "hub").mkdir()
    stock(place / "hub", place / "canary")
    with FaultHub(place / "hub") as hub, sqlite_catalog(request, place / "data") as engine:
        report = crawl(hub.url, engine, place / "data", weights="headers")
        yield Library(place, hub, engine, report, hub.log)


def test_every_repository_is_counted_once_and_the_good_ones_are_accepted(library: Library) -> None:
    report = library.report
    assert all_counted(report), report
    assert (report["status"], report["errors"], report["quarantined"]) == ("complete", {}, {})
    listed = len(GOOD) + len(CONFIGS) + len(SPELLINGS) + len(CARDS) + len(LICENCES) + 6
    assert report["new"] == report["listed"] == listed
    assert {verdicts(library.engine)[name] for name in GOOD} == {"accepted"}
    assert set(outcomes(library.engine).values()) == {"new"}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_wrong_configuration_is_a_reason(case: str, library: Library) -> None:
    body, reason, fields = CONFIGS[case]
    result = row(library.engine, f"config/{case}")
    assert result["verdict"] == ("accepted" if reason is None or case in NOTED else "skipped")
    assert reason is None or reason in result["reasons"]
    assert {name: result[name] for name in fields} == fields
    assert has_document(library.engine, body) is (len(body) <= MEBIBYTE), "the bytes were not kept"


@pytest.mark.parametrize("case", ["case-72-dora", "case-72-ranks", "case-72-alphas"])
def test_what_the_paper_cannot_merge_is_refused_by_its_rules(case: str, library: Library) -> None:
    with Session(library.engine) as session:
        adapter = browse.find_adapter(session, AdapterReference.parse(f"config/{case}"))
        assert browse.details(session, adapter, refusing("paper"), ()).verdict == "skipped"


@pytest.mark.parametrize("case", SPELLINGS)
def test_a_base_model_has_one_name_however_it_is_spelled(case: str, library: Library) -> None:
    spelling, canonical, kind, reason = SPELLINGS[case]
    result = row(library.engine, f"base/{case}")
    assert (result["base"], result["base_kind"]) == (canonical, kind)
    assert reason is None or reason in result["reasons"]
    assert result["base_raw"] == spelling or canonical is None
    assert canonical is None or result["base_evidence"]


@pytest.mark.parametrize("case", CARDS)
def test_a_card_that_nobody_can_read_costs_the_card_only(case: str, library: Library) -> None:
    result = row(library.engine, f"card/{case}")
    assert result["verdict"] == "accepted"
    assert result["license"] is None
    assert "license_missing" in result["reasons"]
    assert has_document(library.engine, CARDS[case]), "the bytes were not kept as they are"


@pytest.mark.parametrize("case", LICENCES)
def test_a_licence_is_read_and_compared_with_that_of_the_base(case: str, library: Library) -> None:
    _, licence, reason = LICENCES[case]
    result = row(library.engine, f"licence/{case}")
    assert (result["base"], result["license"]) == (BASE, licence)
    message = {"license_missing", "license_conflict"} & set(result["reasons"])
    assert message == ({reason} if reason else set())


@pytest.mark.parametrize(
    ("name", "fetched", "licence"),
    [
        pytest.param("card/case-75-ten-megabytes", 1, "mit", id="case-75-ten-megabytes"),
        pytest.param("card/case-75-more", 0, None, id="case-75-more-is-not-fetched"),
    ],
)
def test_a_card_of_ten_megabytes_is_read_and_cut(
    name: str, fetched: int, licence: str | None, library: Library
) -> None:
    result = row(library.engine, name)
    assert (result["verdict"], result["license"]) == ("accepted", licence)
    assert len(result["card"]) < MEBIBYTE
    requests = [request.path for request in library.asked if request.path.startswith(f"/{name}/")]
    assert sum(path.endswith("README.md") for path in requests) == fetched


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        pytest.param("case-65-pickle-alone", "pickle_only", id="case-65-pickle-alone"),
        pytest.param("case-65-pickle-beside", None, id="case-65-pickle-beside"),
        pytest.param("case-65-pickle-by-another-name", "truncated", id="case-65-pickle-by-another-name"),
        pytest.param("case-65-pickle-for-a-config", "config_unreadable", id="case-65-pickle-for-a-config"),
    ],
)
def test_a_pickle_is_listed_and_never_opened(name: str, reason: str | None, library: Library) -> None:
    result = row(library.engine, f"pickle/{name}")
    assert result["verdict"] == ("skipped" if reason else "accepted")
    assert reason is None or reason in result["reasons"]
    listed = {file["name"]: file for file in result["files"]}
    assert all(file["size"] and file["digest"] for file in listed.values())
    requests = [request.path for request in library.asked if f"/pickle/{name}/resolve" in request.path]
    assert not any(path.endswith((".bin", ".pt")) for path in requests)
    assert not (library.place / "canary").exists(), "somebody opened a pickle"


def test_case_65_the_canary_would_have_been_seen(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(TouchedWhenUnpickled(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


@pytest.mark.postgres
@pytest.mark.slow
def test_case_80_wrong_configurations_and_cards_leave_the_same_rows_on_both_databases(
    library: Library, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    databases = request.getfixturevalue("postgres_database")(request.getfixturevalue("postgres_template"))
    engine = make_engine(next(databases))
    crawl(library.hub.url, engine, tmp_path, weights="headers")
    result = (dump(engine), items(engine))
    engine.dispose()
    databases.close()
    assert result == (dump(library.engine), items(library.engine))
