"""`loradex status`, `adapters` and `show`: what a user sees of a catalog, and what cannot harm them there."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

import loradex as library
from catalog.errors import NotFoundError
from cli.tables import reasons_text, short_count, short_targets, verdict_text
from tests.cli.conftest import ROOT, TINY, Program
from tests.hubs import adapter_config, card, lora_files, lora_tensors, make_repo, safetensors_bytes
from tests.localhub import FaultHub
from tests.localhub.faults import Fault, Html

CRAWL = ("crawl", "--any-base", "--weights", "headers")
EVIL = "\x1b[31mred\x1b]0;title\x07\u202e"
ROW = {
    *("adapter", "commit", "base", "rank", "alpha", "scaling", "targets", "parameters", "license"),
    *("verdict", "reasons", "norm", "health", "partial", "own_tags", "note", "hidden"),
}


def list_rows(run: Program, *words: str) -> list[dict[str, Any]]:
    """The rows of `adapters` as JSON."""
    result = run("adapters", *words, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert isinstance(document, list)
    return document


def names(rows: list[dict[str, Any]]) -> list[str]:
    return [row["adapter"] for row in rows]


# -- status ------------------------------------------------------------------------------------------------


def test_status(crawled: Program) -> None:
    document = json.loads(crawled("status", "--json").stdout)
    message = ("repositories", "gone", "adapters", "accepted", "skipped", "fingerprints", "embeddings")
    assert [document[name] for name in message] == [3, 0, 3, 2, 1, 0, 0]
    assert [document[name] for name in ("measured", "partial", "waiting")] == [0, 0, 3]
    assert document["reasons"] == {"license_missing": 1, "use_dora": 1}
    assert [crawl["state"] for crawl in document["crawls"]] == ["complete"]
    lines = crawled("status").stdout.splitlines()
    assert lines[:3] == [
        "repositories  3",
        "adapters      3 · accepted 2 · skipped 1 (rules: ours)",
        "skipped for   use_dora 1",
    ]
    waiting = "measured      0 · 3 adapters wait to be measured (crawl with --weights stream or keep)"
    assert lines[3:5] == ["also noted    license_missing 1", waiting]
    assert lines[5].startswith("crawl 1       20")
    assert " · complete · " in lines[5]


def test_status_by_other_rules(crawled: Program) -> None:
    lines = crawled("status", "--rules", "licensed").stdout.splitlines()
    assert "adapters      3 · accepted 1 · skipped 2 (rules: licensed)" in lines
    assert "skipped for   license_missing 1 · use_dora 1" in lines


# -- adapters ----------------------------------------------------------------------------------------------


def test_a_list_of_adapters(crawled: Program) -> None:
    rows = list_rows(crawled)
    assert names(rows) == ["ann/one", "bob/two", "cat/three"]
    assert all(set(row) == ROW for row in rows)
    assert rows[0]["targets"] == ["q_proj", "v_proj"]
    assert (rows[0]["rank"], rows[0]["alpha"], rows[0]["scaling"], rows[0]["base"]) == (4, 8, 2, TINY)
    assert [row["verdict"] for row in rows] == ["accepted", "accepted", "skipped"]
    lines = crawled("adapters", "--jsonl").stdout.splitlines()
    assert [json.loads(line) for line in lines] == rows


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--verdict", "accepted"], ["ann/one", "bob/two"]),
        (["--verdict", "skipped"], ["cat/three"]),
        (["--verdict", "accepted", "--rules", "licensed"], ["ann/one"]),
        (["--reason", "license_missing"], ["bob/two"]),
        (["--base", TINY], ["ann/one", "bob/two", "cat/three"]),
        (["--base", "unsloth/Llama-3.1-8B-Instruct"], []),
        (["--sort", "downloads"], ["cat/three", "bob/two", "ann/one"]),
        (["--sort", "downloads", "-k", "1"], ["cat/three"]),
    ],
)
def test_which_adapters_are_listed(words: list[str], expected: list[str], crawled: Program) -> None:
    assert names(list_rows(crawled, *words)) == expected


def test_the_tables_of_adapters(crawled: Program) -> None:
    assert crawled("adapters").stdout.splitlines() == [
        "adapter    rank  targets  size  license  verdict",
        "ann/one       4  q,v       128  mit      accepted",
        "bob/two       4  q,v       128           accepted (license_missing)",
        "cat/three     4  q,v       128  mit      skipped: use_dora",
    ]
    assert crawled("adapters", "--verdict", "accepted").stdout.splitlines() == [
        "adapter  rank  targets  size  license  noted",
        "ann/one     4  q,v       128  mit",
        "bob/two     4  q,v       128           license_missing",
    ]
    assert crawled("adapters", "--verdict", "skipped", "--rules", "licensed").stdout.splitlines() == [
        "adapter    rank  license  reasons",
        "bob/two       4           license_missing",
        "cat/three     4  mit      use_dora",
    ]


def test_an_empty_list_says_so(crawled: Program) -> None:
    result = crawled("adapters", "--reason", "gated")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "nothing to list\n")
    assert crawled("adapters", "--reason", "gated", "--jsonl").stdout == ""


@pytest.mark.parametrize(
    ("reasons", "told", "verdict"),
    [
        ([], "", "accepted"),
        (["not_root"], "(not_root)", "accepted (not_root)"),
        (["gated"], "gated", "skipped: gated"),
        (["not_root", "gated", "a", "use_dora"], "gated, use_dora (not_root, a)", None),
    ],
)
def test_notes_are_told_apart_from_refusals(reasons: list[str], told: str, verdict: str | None) -> None:
    assert reasons_text(reasons, {"gated", "use_dora"}) == told
    assert verdict_text(reasons, {"gated", "use_dora"}) == (verdict or f"skipped: {told}")


@pytest.mark.parametrize(
    ("targets", "shown"),
    [
        (None, ""),
        ([], ""),
        (["v_proj", "q_proj"], "q,v"),
        (["o_proj", "k_proj", "lm_head", "q_proj"], "q,k,o,lm_head"),
        ([f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")], "all-linear"),
        (["q", "k", "v", "o", "gate", "up", "down", "lm_head"], "all-linear, lm_head"),
        ([f"layer{n}" for n in range(1000)], "layer0,layer1,layer10,layer100,and 996 more"),
    ],
)
def test_targets_in_few_letters(targets: list[str] | None, shown: str) -> None:
    assert short_targets(targets) == shown


@pytest.mark.parametrize(
    ("number", "shown"),
    [(None, ""), (0, "0"), (999, "999"), (3840, "3.84k"), (41_943_040, "41.9M"), (1_050_000_000, "1.05G")],
)
def test_counts_as_people_say_them(number: int | None, shown: str) -> None:
    assert short_count(number) == shown


# -- show --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("eighty_columns")
def test_one_adapter_in_full(crawled: Program) -> None:
    document = json.loads(crawled("show", "bob/two", "--json").stdout)
    assert set(document) > ROW | {"hub_id", "files", "card", "details", "training", "other_adapters"}
    assert (document["verdict"], document["reasons"]) == ("accepted", ["license_missing"])
    lines = crawled("show", "bob/two").stdout.splitlines()
    assert lines[:3] == [
        "bob/two  accepted (rules: ours)",
        "  (license_missing)  it states no license",
        f"commit         {document['commit']}",
    ]
    assert "parameters     128" in lines
    assert "files          README.md  " in "\n".join(lines)
    assert lines[-2:] == ["card", "  Made by bob/two."]
    assert max(map(len, lines)) <= 80


def test_an_adapter_that_is_skipped(crawled: Program) -> None:
    lines = crawled("show", "cat/three", "--rules", "paper").stdout.splitlines()
    assert lines[0] == "cat/three  skipped (rules: paper)"
    assert lines[1].startswith("  use_dora  DoRA rescales the base weights")


def test_folders_and_commits_can_be_named(hub: FaultHub, root: Path, run: Program) -> None:
    files = lora_files(TINY)
    parts = {f"checkpoint-10/{name}": content for name, content in files.items()}
    make_repo(root, "dan/four", {**files, **parts}, {"sha": "aaaa1" + "0" * 35})
    run(*CRAWL)
    make_repo(root, "dan/four", lora_files(TINY, r=2), {"sha": "aaaa2" + "0" * 35}, mtime=1_800_000_000)
    run(*CRAWL, "--full")

    def commit(name: str) -> str:
        result = run("show", name, "--json")
        assert result.exit_code == 0, result.stderr
        return str(json.loads(result.stdout)["commit"])[:5]

    assert commit("dan/four") == commit("dan/four:checkpoint-10") == "aaaa2"
    assert commit("dan/four@aaaa1") == commit("dan/four@aaaa1:checkpoint-10") == "aaaa1"
    document = " ".join(run("show", "dan/four@aaaa1").stdout.split())
    assert " current no " in document
    assert " other_adapters checkpoint-10 " in document
    ambiguous = run("show", "dan/four@aaaa")
    assert ambiguous.exit_code == 2
    assert ambiguous.stderr == "Error: dan/four@aaaa matches several commits; give more of its digits.\n"


@pytest.mark.parametrize(
    ("name", "code", "told"),
    [
        ("nobody/nothing", 1, "Adapter nobody/nothing not found in the catalog; `loradex adapters` lists"),
        ("ann/one@ffff", 1, "Adapter ann/one@ffff not found"),
        ("ann/one:folder", 1, "Adapter ann/one:folder not found"),
        ("ann/one@xyz", 2, "'ann/one@xyz' does not name an adapter; write owner/name"),
        ("", 2, "'' does not name an adapter"),
        ("a b", 2, "'a b' does not name an adapter"),
        ("a/b:\x1b[31m", 2, "does not name an adapter"),
    ],
)
def test_an_adapter_that_is_not_there(name: str, code: int, told: str, crawled: Program) -> None:
    result = crawled("show", name)
    assert (result.exit_code, result.stdout) == (code, "")
    assert told in result.stderr
    assert result.stderr.rstrip("\n").isprintable()


@pytest.mark.parametrize("words", [("status",), ("adapters",), ("show", "a/b"), ("db", "check")])
def test_without_a_catalog(words: tuple[str, ...], run: Program, data: Path) -> None:
    result = run(*words)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"Error: no catalog at {data}/catalog.db: run `loradex crawl` first\n"
    assert not data.exists()


# -- hostile repositories, and terminals -------------------------------------------------------------------


@pytest.fixture
def hostile(root: Path, hub: FaultHub, run: Program) -> Program:
    """A catalog with an adapter whose every text tries to steer the terminal."""
    base = f"{EVIL}/base"
    config = adapter_config(base_model_name_or_path=base, target_modules=["q_proj", f"v_proj{EVIL}"])
    body = f"{EVIL}\n\n- learning_rate: 0.1\n- optimizer: {EVIL}\n\n<script>alert(1)</script> [bold]=1+1"
    files: dict[str, bytes | str] = {
        "README.md": card(body, base_model=TINY, license=EVIL, tags=[EVIL]),
        "adapter_config.json": json.dumps(config),
        "adapter_model.safetensors": safetensors_bytes(lora_tensors()),
        f"{EVIL.replace('/', '')}.txt": "a file",
    }
    make_repo(root, "eve/evil", files)
    assert run(*CRAWL).exit_code == 0
    return run


@pytest.mark.usefixtures("eighty_columns")
@pytest.mark.parametrize(
    "words",
    [("status",), ("adapters",), ("adapters", "--verdict", "skipped"), ("show", "eve/evil")],
)
def test_case_76_nothing_from_the_hub_steers_the_terminal(words: tuple[str, ...], hostile: Program) -> None:
    output = hostile(*words)
    assert output.exit_code == 0
    assert all(character.isprintable() for character in output.output.replace("\n", ""))
    assert max(map(len, output.stdout.splitlines())) <= 80
    assert hostile(*words, "--json").stdout.isascii()


def test_case_76_what_was_hostile_is_shown_as_escapes(hostile: Program) -> None:
    output = hostile("show", "eve/evil").stdout
    assert "  \\x1b[31mred\\x1b]0;title\\x07\\u202e\n" in output
    assert "[bold]=1+1" in output
    assert json.loads(hostile("show", "eve/evil", "--json").stdout)["card"].startswith(EVIL)


def in_a_terminal(columns: int, data: Path, *words: str) -> str:
    """What `loradex` writes to a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    command = [sys.executable, "-m", "cli", "--data", str(data), *words]
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(command, cwd=ROOT, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        written = b""
        while piece := _read(ours):
            written += piece
    os.close(ours)
    assert process.returncode == 0
    return written.decode().replace("\r\n", "\n")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # the other side has closed it
        return b""


@pytest.mark.slow
def test_a_table_uses_the_width_of_the_terminal(crawled: Program, data: Path) -> None:
    wide = in_a_terminal(120, data, "adapters")
    assert "\x1b[1madapter    rank  targets" in wide
    assert "cat/three     4  q,v       128  mit      skipped: use_dora\n" in wide
    narrow = in_a_terminal(60, data, "adapters")
    lines = narrow.replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()
    assert max(map(len, lines)) <= 60
    assert "".join(lines).count("(license_missing)") == 1
    assert lines[-1].endswith("skipped: use_dora")


@pytest.mark.slow
@pytest.mark.parametrize("columns", [1, 2, 13])
def test_a_terminal_that_is_too_narrow_gets_a_table_too(crawled: Program, data: Path, columns: int) -> None:
    lines = in_a_terminal(columns, data, "adapters").splitlines()
    assert [line[:2] for line in lines].count("an") == 1
    assert max(map(len, lines)) <= max(columns, 30)


@pytest.mark.slow
def test_a_crawl_in_a_terminal_shows_how_far_it_is(hub: FaultHub, data: Path) -> None:
    output = in_a_terminal(80, data, *CRAWL)
    assert f"Crawling {hub.url} for adapters of every base model\n" in output
    assert "reading" in output
    assert "3/3" in output
    assert "complete: 3 repositories listed · new 3\n" in output


@pytest.mark.slow
def test_quiet_in_a_terminal_draws_nothing(hub: FaultHub, data: Path) -> None:
    assert in_a_terminal(80, data, "-q", *CRAWL).startswith("complete: 3 repositories listed · new 3\n")


@pytest.mark.usefixtures("eighty_columns")
def test_a_name_that_is_listed_is_in_one_piece(root: Path, hub: FaultHub, run: Program) -> None:
    make_repo(root, "some-owner/a-name-of-a-length", lora_files(TINY, rank_pattern={"q_proj": 2}))
    run(*CRAWL)
    lines = run("adapters", "--rules", "paper").stdout.splitlines()
    assert sum(line.startswith("some-owner/a-name-of-a-length ") for line in lines) == 1
    assert max(map(len, lines)) <= 80


def test_status_lists_what_is_tried_again(hub: FaultHub, run: Program) -> None:
    hub.faults.append(Fault("GET /api/models/bob/two/tree", Html()))
    assert run("crawl", "--any-base", "--weights", "headers").exit_code == 3
    [row] = json.loads(run("status", "--json").stdout)["retries"]
    assert (row["repository"], row["error"], row["attempts"]) == ("bob/two", "payload", 1)
    assert row["next_try"].endswith("Z")
    text = run("status").stdout
    assert "to be tried again by the next crawls" in text
    assert "bob/two" in text
    assert "attempts 1" in text
    hub.faults.clear()
    assert run("crawl", "--any-base", "--weights", "headers").exit_code == 0
    assert "tried again" not in run("status").stdout


def test_engines_are_counted_over_the_catalog_or_a_folder(crawled: Program, tmp_path: Path) -> None:
    rows = json.loads(crawled("engines", "--counts", "--json").stdout)
    vllm = next(row for row in rows if row["engine"] == "vllm")
    assert {key: vllm[key] for key in ("runs", "runs_not", "unknown")} == {
        "runs": 2,
        "runs_not": 1,
        "unknown": 0,
    }
    assert vllm["reasons"] == {"refuses DoRA": 1}
    text = crawled("engines", "--counts", "--where", "use:research -runs:vllm").stdout
    assert "refuses DoRA (1)" in text
    below = json.loads(crawled("engines", str(tmp_path), "--counts", "--json").stdout)
    assert {row["runs"] for row in below} == {0}
    (tmp_path / "file").write_text("")
    missing = crawled("engines", str(tmp_path / "nothing"), "--counts")
    assert (missing.exit_code, missing.stdout) == (1, "")
    for wrong in (tmp_path / "nothing", tmp_path / "file"):
        with pytest.raises(NotFoundError, match="cannot be searched for adapters"):
            library.count_engines(wrong)
    refused = crawled("engines", "--where", "runs:vllm")
    assert (refused.exit_code, "--counts" in refused.stderr) == (2, True)


def test_show_says_what_a_license_allows_and_why_not(crawled: Program) -> None:
    uses = json.loads(crawled("show", "bob/two", "--json").stdout)["uses"]
    assert uses["research"] is None
    assert "states no license" in uses["publish"]
    shown = crawled("show", "bob/two").stdout
    assert "not publish or commercial: it states no license" in shown
    assert "research, publish, commercial" in crawled("show", "ann/one").stdout
