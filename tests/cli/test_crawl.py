"""`loradex crawl` as a user runs it: what it prints, its exit codes, and what it leaves behind."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from catalog.database import disposing, open_catalog, writer_lock
from catalog.settings import Settings
from tests.cli.conftest import TINY, Program
from tests.hubs import lora_files, make_repo
from tests.localhub import FaultHub
from tests.localhub.faults import Callback, Fault, Html, Status

TOKEN = "hf_ThisIsATokenThatNobodyMaySee"
CRAWL = ("crawl", "--any-base", "--weights", "headers")
COUNTS = ("new", "changed", "unchanged", "gone", "failed", "pending")


def document(result: Result) -> dict[str, Any]:
    """The JSON that a command printed, and nothing else."""
    actual = json.loads(result.stdout)
    assert isinstance(actual, dict)
    return actual


def test_the_numbers_of_a_crawl(hub: FaultHub, run: Program) -> None:
    result = run(*CRAWL, "--json")
    assert result.exit_code == 0
    assert result.stderr == f"Crawling {hub.url} for adapters of every base model\n"
    actual = document(result)
    assert {name: actual[name] for name in COUNTS} == dict.fromkeys(COUNTS, 0) | {"new": 3}
    message = ("status", "listed", "adapters", "accepted", "accepted_by_paper", "unmeasured", "skipped")
    assert [actual[name] for name in message] == ["complete", 3, 3, 2, 2, 2, 1]
    assert (actual["reasons"], actual["errors"], actual["quarantined"]) == (
        {"license_missing": 1, "use_dora": 1},
        {},
        {},
    )
    assert actual["requests"] == {"api": hub.count("api"), "resolver": hub.count("resolver")}
    assert actual["bytes"] > 0
    assert actual["seconds"] > 0


def test_a_second_crawl_fetches_nothing(hub: FaultHub, run: Program) -> None:
    run(*CRAWL)
    hub.clear()
    result = document(run(*CRAWL, "--json"))
    assert (result["status"], result["new"], result["changed"]) == ("complete", 0, 0)
    assert result["requests"]["resolver"] == hub.count("resolver") == 0


def test_the_screen_of_a_crawl(hub: FaultHub, run: Program) -> None:
    lines = run(*CRAWL, "--rules", "licensed").stdout.splitlines()
    assert lines[:5] == [
        "complete: 3 repositories listed · new 3",
        "  adapters       3 · accepted 1 (1 unmeasured) · skipped 2 (rules: licensed)",
        "  paper's rules  accepted 2",
        "  skipped for    license_missing 1 · use_dora 1",
        f"  cost           {lines[4].split(maxsplit=1)[1]}",
    ]
    assert len(lines) == 5


def test_what_does_not_refuse_is_told_apart(hub: FaultHub, root: Path, run: Program) -> None:
    make_repo(root, "dan/four", {"adapter_config.json": '{"peft_type": "IA3"}'})
    lines = run(*CRAWL, "--rules", "paper").stdout.splitlines()
    assert "  adapters     4 · accepted 2 (2 unmeasured) · skipped 2 (rules: paper)" in lines
    assert not any(line.startswith("  paper's rules") for line in lines)
    assert any(line.startswith("  also noted   license_missing 2") for line in lines)


def test_one_base_is_asked_for_under_all_its_names(hub: FaultHub, run: Program) -> None:
    result = run("crawl", "--base", TINY, "--base", "acme/other", "--weights", "headers", "--json")
    assert result.stderr.startswith(f"Crawling {hub.url} for adapters of {TINY}, acme/other\n")
    assert result.stderr.count("No repository lists an adapter of ") == 1
    assert (
        "No repository lists an adapter of acme/other, and no base model is known as acme/other"
        in result.stderr
    )
    assert document(result)["listed"] == 3
    requests = [request.query for request in hub.log if request.path == "/api/models"]
    assert any("base_model%3Aadapter%3Aunsloth%2Ftiny" in query for query in requests)


def test_limit(hub: FaultHub, run: Program) -> None:
    assert document(run(*CRAWL, "--limit", "2", "--json"))["listed"] == 2


@pytest.mark.parametrize("known", [False, True])
def test_a_dry_run_writes_nothing(known: bool, hub: FaultHub, data: Path, run: Program) -> None:
    if known:
        run(*CRAWL)
    before = {file: file.read_bytes() for file in data.rglob("*") if file.is_file()}
    hub.clear()
    result = document(run(*CRAWL, "--dry-run", "--json"))
    assert (result["status"], result["new"]) == ("dry_run", 0 if known else 3)
    assert result["queries"][0] == ["peft"]
    assert result["requests"] == {"api": hub.count("api"), "resolver": 0}
    assert {request.path for request in hub.log} == {"/api/models"}
    assert {file: file.read_bytes() for file in data.rglob("*") if file.is_file()} == before
    assert data.exists() == known


def test_the_screen_of_a_dry_run(hub: FaultHub, run: Program) -> None:
    lines = run("crawl", "--base", TINY, "--dry-run").stdout.splitlines()
    assert lines[0] == "dry run: 3 repositories listed · new 3"
    assert lines[1] == f"  asked for  base_model:adapter:{TINY}"
    assert lines[2].startswith("             base_model:adapter:")
    assert lines[-1] == f"  cost       {hub.count('api')} API and 0 resolver requests"


def test_a_repository_that_cannot_be_read_is_3_and_is_tried_again(hub: FaultHub, run: Program) -> None:
    hub.faults.append(Fault("/ann/one/tree/", Html()))
    first = run(*CRAWL)
    assert first.exit_code == 3
    assert first.stdout.startswith("partial: 3 repositories listed · new 2 · failed 1\n")
    assert "  errors         payload 1\n" in first.stdout
    assert "Not everything could be read; the same command tries the rest again" in first.stderr
    assert "ann/one: " in first.stderr
    hub.faults.clear()
    hub.clear()
    again = run(*CRAWL, "--json")
    assert again.exit_code == 0
    result = document(again)
    assert (result["status"], result["new"], result["unchanged"]) == ("complete", 1, 2)
    assert not any("/bob/two/" in request.path for request in hub.log)


@pytest.mark.parametrize(
    ("listing", "code", "status", "listed", "told"),
    [
        ("lora", 3, "partial", 3, "Not everything could be read"),
        ("peft", 1, "failed", 0, "Nothing could be listed"),
    ],
)
def test_a_listing_that_breaks_off(
    listing: str, code: int, status: str, listed: int, told: str, hub: FaultHub, run: Program
) -> None:
    hub.faults.append(Fault(rf"/api/models\?filter={listing}", Html()))
    result = run(*CRAWL, "--json")
    assert result.exit_code == code
    actual = document(result)
    assert (actual["status"], actual["listed"], actual["errors"]) == (status, listed, {"payload": 1})
    assert result.stderr.splitlines()[-1].startswith(told)


def test_weights_that_are_read_are_measured(hub: FaultHub, run: Program) -> None:
    result = document(run("crawl", "--any-base", "--json"))
    assert (result["accepted"], result["unmeasured"]) == (2, 0)


def test_case_92_a_second_crawl_at_the_same_time_is_1(hub: FaultHub, data: Path, run: Program) -> None:
    run(*CRAWL)
    with disposing(open_catalog(Settings.make(data=data), create=False)) as engine, writer_lock(engine):
        result = run(*CRAWL)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: another process is writing to the catalog ")
    assert result.stderr.count("\n") == 1


@pytest.mark.slow
def test_case_93_an_interrupted_crawl_is_130_and_goes_on(
    hub: FaultHub, run: Program, start: Callable[..., subprocess.Popen[str]]
) -> None:
    interrupt = Callback(lambda _: process.send_signal(signal.SIGINT))
    hub.faults.append(Fault("/resolve/.*/adapter_config.json", interrupt, times=1, skip=1))
    with start(*CRAWL, "--workers", "1", "--json") as process:
        printed, message = process.communicate()
    assert (process.returncode, printed) == (130, "")
    assert message.splitlines()[-1] == "interrupted; run the same command again to continue"
    assert "Traceback" not in message
    again = run(*CRAWL, "--json")
    assert "continuing the crawl that began " in again.stderr
    result = document(again)
    assert (result["status"], result["listed"], result["new"], result["accepted"]) == ("complete", 3, 3, 2)


def test_workers_are_requests_in_flight(hub: FaultHub, root: Path, run: Program) -> None:
    for number in range(7):
        make_repo(root, f"more/of{number}", lora_files(TINY, lora_dropout=number / 100))
    together = threading.Barrier(10)
    hub.faults.append(Fault("/tree/", Callback(lambda _: together.wait(20))))
    assert run(*CRAWL, "--workers", "10").exit_code == 0
    assert not together.broken


@pytest.mark.parametrize(
    ("words", "told"),
    [
        pytest.param(["--base", ""], "'' is not a base model; write owner/name", id="empty-base"),
        pytest.param(["--base", "a b"], "'a b' is not a base model", id="base-with-a-space"),
        pytest.param(["--base", "a/b/c"], "'a/b/c' is not a base model", id="base-with-two-slashes"),
        pytest.param(["--base", "../x"], "'../x' is not a base model", id="base-that-climbs"),
        pytest.param(["--base", "a/\x1b[31m"], r"is not a base model", id="base-that-steers"),
        pytest.param(["--any-base", "--base", "a/b"], "leave out --base", id="any-and-one"),
        pytest.param(["worker", "--weights", "keep"], "A worker takes no --weights", id="worker-weights"),
        pytest.param(["worker", "--dry-run"], "A worker takes no --dry-run", id="worker-dry-run"),
        pytest.param(["worker", "--ray", "0"], "--ray", id="no-ray-workers"),
        pytest.param(["worker", "--address", "a:1"], "--address", id="address-without-ray"),
        pytest.param(["--ray", "2"], "belong to `loradex crawl worker`", id="crawl-by-ray"),
        pytest.param(["--workers", "0"], "--workers must be between 1 and 32", id="no-workers"),
        pytest.param(["--workers", "33"], "--workers must be between 1 and 32", id="many-workers"),
        pytest.param(["--limit", "0"], "--limit must be at least 1", id="no-limit"),
        pytest.param(["--limit", "many"], "is not a valid integer", id="limit-no-number"),
        pytest.param(["--weights", "some"], "is not one of 'keep', 'stream', 'headers'", id="weights"),
        pytest.param(["--rules", "mine"], "is not one of 'paper', 'ours', 'licensed'", id="rules"),
        pytest.param(["--where", "x"], "No such option", id="unknown-option"),
        pytest.param(["--jsonl"], "No such option", id="jsonl-of-no-list"),
    ],
)
def test_wrong_words_are_2_and_ask_nothing(
    words: list[str], told: str, hub: FaultHub, data: Path, run: Program
) -> None:
    result = run("crawl", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr
    assert result.stderr.replace("\n", "").isprintable()
    assert hub.log == []
    assert not data.exists()


@pytest.mark.parametrize(
    ("url", "code"),
    [
        pytest.param("nonsense", 2, id="no-url"),
        pytest.param("mysql://x/y", 2, id="other-database"),
        pytest.param("sqlite://", 2, id="in-memory"),
        pytest.param("postgresql://me:secret@127.0.0.1:9/x", 1, id="nobody-there"),
        pytest.param("sqlite:////dev/null/catalog.db", 1, id="no-folder"),
    ],
)
def test_a_catalog_that_cannot_be(url: str, code: int, hub: FaultHub, run: Program) -> None:
    result = run("--catalog", url, *CRAWL)
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert "secret" not in result.stderr
    assert hub.log == []


def test_quiet_leaves_the_result(hub: FaultHub, run: Program) -> None:
    hub.faults.append(Fault("/ann/one/tree/", Html()))
    result = run("-q", *CRAWL)
    assert (result.exit_code, result.stderr) == (3, "")
    assert result.stdout.startswith("partial: ")


@pytest.mark.parametrize(("option", "shown"), [((), False), (("-v",), True)])
def test_verbose_says_what_is_waited_for(
    option: tuple[str, ...], shown: bool, hub: FaultHub, run: Program
) -> None:
    hub.faults.append(Fault("/ann/one/tree/", Status(503, {"Retry-After": "0"}), times=1))
    result = run(*option, *CRAWL)
    assert result.exit_code == 0
    assert ("retrying in" in result.stderr) == shown


def test_case_94_the_token_is_in_no_output_and_no_file(
    hub: FaultHub, data: Path, run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.faults.append(Fault("/ann/one/tree/", Html()))
    results = [run("-vv", *CRAWL, "--json"), run("-vv", "status", "--json"), run("-vv", "db", "info")]
    assert [result.exit_code for result in results] == [3, 0, 0]
    assert all(request.headers["authorization"] == f"Bearer {TOKEN}" for request in hub.log)
    assert not any(TOKEN in result.stdout + result.stderr for result in results)
    assert not any(TOKEN.encode() in file.read_bytes() for file in data.rglob("*") if file.is_file())
