"""Folders that `hub serve` leaves out are named once, when it starts, with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from crawler.localhub import omissions
from crawler.localhub.folder import HubFolder
from tests.edges.rows import row
from tests.hubs import card, lora_files, make_repo
from tests.localhub import FaultHub
from tests.shared_data import shared

Program = Callable[..., Result]
TINY = "acme/tiny"


def left_out(root: Path) -> dict[str, str]:
    result = omissions(HubFolder(root))
    assert len({item.path for item in result}) == len(result)
    return {item.path: item.reason for item in result}


@shared
def test_each_name_has_one_line_on_start(
    tmp_path: Path, run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = (row("29-names-hub-serve-leaves-out") / "names.txt").read_text().splitlines()
    assert len(names) == 4
    for name in (*names, "owner/ordinary"):
        make_repo(tmp_path, name, lora_files(TINY))

    def serve(_root: Path, _host: str, _port: int, announce: Callable[[str], None]) -> None:
        announce("http://127.0.0.1:1")

    monkeypatch.setattr("crawler.localhub.serve", serve)
    result = run("hub", "serve", str(tmp_path))
    lines = result.stderr.splitlines()
    assert lines[:2] == [f"serving {tmp_path} at http://127.0.0.1:1", "export HF_ENDPOINT=http://127.0.0.1:1"]
    for name in names:
        [line] = [line for line in lines if line.startswith(f"left out: {name}: ")]
        assert len(line) > len(f"left out: {name}: ") + 10
    assert len(lines) == 2 + len(names)
    assert run("-q", "hub", "serve", str(tmp_path)).stderr == ""
    with FaultHub(tmp_path) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        report = json.loads(run("crawl", "--any-base", "--weights", "headers", "--json").stdout)
    assert (report["listed"], report["adapters"]) == (1, 1)


PLACES: dict[str, tuple[str, str]] = {
    "dots": ("own/a..b", "contains .."),
    "dash-first": ("own/-x", "begins or ends with"),
    "dash-last": ("own/x-", "begins or ends with"),
    "dot-last": ("own/x.", "begins or ends with"),
    "letters": ("own/caf\u00e9", "characters other than"),
    "long": (f"own/{'x' * 97}", "longer than 96"),
    "owner-with-dashes": ("a--b/name", "the name of an owner"),
    "hidden": ("own/.secret", "hidden"),
    "hidden-owner": (".trash/name", "hidden"),
    "cache": ("models--ann--one/snapshots/0123", "cp -rL models--ann--one/snapshots/0123 ann/one"),
    "flat": ("flat", "directly in it"),
    "deep": ("group/owner/name", "too deep (name)"),
}


@pytest.mark.parametrize("place", PLACES)
def test_where_an_adapter_is_not_found(place: str, tmp_path: Path) -> None:
    path, reason = PLACES[place]
    make_repo(tmp_path, path, {name: text for name, text in lora_files(TINY).items() if name != "README.md"})
    make_repo(tmp_path, "own/good", lora_files(TINY))
    [(by_name, why)] = left_out(tmp_path).items()
    assert path.startswith(by_name)
    assert reason in why


def test_a_whole_folder_of_good_names_has_no_line(tmp_path: Path) -> None:
    make_repo(tmp_path, "ann/one", lora_files(TINY))
    make_repo(tmp_path, "ann/deeper", {f"run/{name}": text for name, text in lora_files(TINY).items()})
    make_repo(tmp_path, "ann/deeper", {"README.md": card(base_model=TINY)})
    (tmp_path / "README.md").write_text("A file beside the owners is nobody's repository.")
    assert left_out(tmp_path) == {}


def test_what_else_is_named(tmp_path: Path) -> None:
    same: dict[str, Any] = {"_id": "0" * 24}
    make_repo(tmp_path / "hub", "ann/first", lora_files(TINY), same)
    make_repo(tmp_path / "hub", "bob/second", lora_files(TINY), same)
    make_repo(tmp_path / "hub", "bob/base", {"config.json": "{}"})
    make_repo(tmp_path / "hub", "adapter_config.json-is-a-folder/x", {"a.txt": "b"})
    (tmp_path / "hub/empty").mkdir()
    (tmp_path / "hub/ann/elsewhere").symlink_to(tmp_path)
    (tmp_path / "hub/ann/nowhere").symlink_to(tmp_path / "none")
    (tmp_path / "hub/adapter_config.json").write_text("{}")
    result = left_out(tmp_path / "hub")
    expected = {
        ".": "the served folder itself",
        "adapter_config.json-is-a-folder/x": "no adapter",
        "ann/elsewhere": "leads out",
        "ann/nowhere": "nowhere",
        "bob/base": "no adapter",
        "bob/second": "the _id of ann/first",
        "empty": "it contains no folder",
    }
    assert result.keys() == expected.keys()
    for path, words in expected.items():
        assert words in result[path]
