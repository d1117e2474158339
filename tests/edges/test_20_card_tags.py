"""Foreign bytes at which a parser falls cost the file that they are in: a counted reason, never the crawl."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from catalog.errors import HubPayloadError
from catalog.fingerprints import processes
from crawler.crawl import stages
from crawler.hub import BadRow, parse_row, tree
from crawler.hub import rows as listing
from crawler.hub.tree import read_tree
from crawler.hub.wire import parse_rows
from crawler.reading import cards, parse_card
from tests.edges.rows import row
from tests.hubs import lora_files, lora_tensors, make_repo, safetensors_bytes
from tests.localhub import FaultHub
from tests.localhub.faults import EditJson, Fault
from tests.shared_data import shared

Program = Callable[..., Result]
TINY = "acme/tiny"
CARDS = ("bool-anchor", "bool-empty", "bool-word", "float-empty")


def copies(root: Path, files: dict[str, bytes], cards_: dict[str, bytes]) -> None:
    for name, content in cards_.items():
        make_repo(root, f"maker/{name}", {**files, "README.md": content})


@shared
def test_a_tag_that_its_value_does_not_fit_costs_the_front_matter(
    tmp_path: Path, run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = row("20-card-tags")
    files = {path.name: path.read_bytes() for path in (folder / "adapter").iterdir()}
    texts = {name: (folder / f"{name}.md").read_bytes() for name in CARDS}
    assert {parse_card(text).problems for text in texts.values()} == {("bad_yaml",)}
    copies(tmp_path / "rows", files, texts)
    with FaultHub(tmp_path / "rows") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        first = run("crawl", "--any-base", "--json")
        assert first.exit_code == 0, first.stderr
        report = json.loads(first.stdout)
        assert (report["status"], report["new"], report["failed"]) == ("complete", 4, 0)
        assert (report["adapters"], report["reasons"]["card_unreadable"]) == (4, 4)
        rows = json.loads(run("adapters", "--json").stdout)
        assert {item["adapter"] for item in rows} == {f"maker/{name}" for name in CARDS}
        assert all("card_unreadable" in item["reasons"] for item in rows)
        hub.clear()
        again = json.loads(run("crawl", "--any-base", "--json").stdout)
        assert (again["status"], again["new"], again["unchanged"]) == ("complete", 0, 4)
        assert all("sort=lastModified" in requests.query for requests in hub.log)


class FallError(Exception):
    """What no parser is known to raise."""


def fall(*_: object, **__: object) -> Any:
    raise FallError


# Where each parser is called from, and the reason that its fall becomes.
PARSERS = {
    "config": (stages, "parse_config", "config_unreadable"),
    "card": (cards, "_parse", "card_unreadable"),
    "header": (stages, "parse_header", "weights_unreadable"),
    "names": (stages, "lora_modules", "weights_unreadable"),
    "values": (processes, "fingerprint", "weights_unreadable"),
}


@pytest.mark.parametrize("parser", PARSERS)
def test_a_parser_that_falls_is_a_reason_with_the_class_and_the_rest_is_kept(
    parser: str,
    root: Path,
    hub: FaultHub,
    run: Program,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, function, reason = PARSERS[parser]
    monkeypatch.setattr(module, function, fall)
    first = run("crawl", "--any-base", "--json")
    report = json.loads(first.stdout)
    assert (first.exit_code, report["status"], report["failed"]) == (0, "complete", 0)
    document = json.loads(run("show", "ann/one", "--json").stdout)
    assert reason in document["reasons"]
    assert "FallError" in document["details"][reason]
    assert "Traceback" not in first.stderr
    # All else that was read is there.
    assert (document["card"] == "Made by ann/one.") is (parser != "card")
    assert (document["rank"] == 4) is (parser != "config")
    again = json.loads(run("crawl", "--any-base", "--json").stdout)
    assert (again["status"], again["unchanged"]) == ("complete", 3)


class PanicException(BaseException):
    """What no `except Exception` catches."""


def test_the_panic_of_a_library_is_a_reason_too(
    hub: FaultHub, run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def panic(*_: object) -> Any:
        raise PanicException

    monkeypatch.setattr(processes, "fingerprint", panic)
    report = json.loads(run("crawl", "--any-base", "--json").stdout)
    assert (report["status"], report["reasons"]["weights_unreadable"]) == ("complete", 3)


def test_whoever_asks_for_more_sees_where_the_parser_fell(
    hub: FaultHub, run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "parse_config", fall)
    result = run("-v", "crawl", "--any-base")
    assert "Traceback" in result.stderr
    assert "FallError" in result.stderr


def test_rows_of_listings_and_trees_fall_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_parse", fall)
    bad = parse_row({"_id": "0" * 24, "id": "a/b"})
    assert isinstance(bad, BadRow)
    assert "FallError" in bad.reason
    monkeypatch.setattr(tree, "_entry", fall)
    assert "FallError" in read_tree([{}]).problems[0]


def test_a_want_of_memory_is_no_reason_against_an_adapter(
    hub: FaultHub, run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def starve(*_: object) -> Any:
        raise MemoryError

    monkeypatch.setattr(stages, "parse_config", starve)
    first = run("crawl", "--any-base", "--json")
    report = json.loads(first.stdout)
    assert (first.exit_code, report["errors"]) == (3, {"internal_MemoryError": 3})
    assert "a bug in loradex: MemoryError" in first.stderr
    assert "Traceback" not in first.stderr


HOSTILE = {
    "word-as-bool": "gated: !!bool x",
    "nothing-as-int": "n: !!int ''",
    "base-60": "n: " + ":".join(["59"] * 4000),
    "long-integer": "n: " + "9" * 5000,
    "year-zero": "d: 0000-00-00",
    "far-year": "d: 99999-01-01",
    "offset-of-days": "d: 2024-01-01 00:00:00 +99:99",
    "nul-and-surrogate": 'license: "\\0\\uD800"',
    "float-overflow": "x: 1e999999",
    "key-of-a-list": "? [a, b]\n: c",
    "set-of-itself": "a: &a !!set {? *a}",
    "deep": "a: " + "[" * 3000,
    "bomb": "a: &a [x, x, x, x]\n" + "\n".join(f"k{n}: &k{n} [{'*a, ' * 9}*a]" for n in range(300)),
    "byte-order": "\ufeff\u2028a: b",
    "tabs": "a:\n\t- b\n\t\t- c",
    "merge": "a: &a {<<: *a}",
    "binary": "b: !!binary ////=",
}


def test_any_front_matter_ends_in_a_verdict(
    run: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = lora_files(TINY)
    files["adapter_model.safetensors"] = safetensors_bytes(lora_tensors(seed=7))
    for name, front in HOSTILE.items():
        text = f"---\n{front}\n---\nWords of nobody.\n"
        make_repo(tmp_path / "hostile", f"eve/{name}", files | {"README.md": text.encode()})
    with FaultHub(tmp_path / "hostile") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        report = json.loads(run("crawl", "--any-base", "--json").stdout)
    assert (report["status"], report["adapters"], report["failed"]) == ("complete", len(HOSTILE), 0)


def test_the_fault_of_the_program_itself_is_counted_with_its_class(
    hub: FaultHub, run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "describe", fall)
    first = run("crawl", "--any-base", "--json")
    assert (first.exit_code, json.loads(first.stdout)["errors"]) == (3, {"internal_FallError": 3})


class EditBytes(EditJson):
    """Edits the bytes of a JSON answer as they are."""

    def _edit(self, body: bytes) -> bytes:
        edited: bytes = self.function(body)
        return edited


def test_a_row_of_a_listing_that_json_cannot_hold_costs_that_row(hub: FaultHub, run: Program) -> None:
    deep = b'{"_id": "7", "id": "eve/deep", "config": ' + b"[" * 100_000 + b"]" * 100_000 + b"}, "
    long = b'{"_id": "8", "id": "eve/long", "likes": ' + b"9" * 6000 + b"}, "
    hub.faults.append(Fault("filter=peft", EditBytes(lambda body: b"[" + deep + long + body[1:])))
    first = run("crawl", "--any-base", "--weights", "headers", "--json")
    report = json.loads(first.stdout)
    assert (first.exit_code, report["status"], report["adapters"]) == (0, "complete", 3)
    assert (report["listed"], report["gone"]) == (4, 1)
    assert sum(report["quarantined"].values()) == 1


@pytest.mark.parametrize(
    "body", [b"<html>", b'[{"a": 1}', b'{"a": [1]}', b"[1][2]", b'[{"a": 1},', b"", b"[NaN]", b"[1] x"]
)
def test_what_is_no_list_is_an_error_of_the_hub(body: bytes) -> None:
    with pytest.raises(HubPayloadError):
        parse_rows(body, url="http://hub")


def test_commas_and_brackets_within_texts_divide_no_rows() -> None:
    odd = b'{"b": "],{\\"", "c": [1, {"d": 2}]}'
    assert parse_rows(b'[{"a": NaN}, ' + odd + b"]", url="http://hub") == ['{"a": NaN}', json.loads(odd)]
