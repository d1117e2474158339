"""`search`, `select`, `pools` and `pool` on the real adapters of the sample Hub, on both databases."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from peft import PeftConfig
from peft.utils import load_peft_weights
from sqlalchemy import make_url

import loradex as library
from catalog.pools import Manifest, read_manifest
from cli.main import loradex
from crawler.hub.budget import Clock
from tests.cli.conftest import ROOT, Program
from tests.fakes import VirtualClock
from tests.localhub import FaultHub

pytestmark = pytest.mark.slow
SAMPLE = ROOT / "data" / "sample_hub"
LIKE = ("--by", "adapter", "--like", "zoo/banking77", "-k", "3", "--exclude", "zoo/banking77")


@pytest.fixture(scope="module")
def postgres_sample(
    sample_data: Path,
    postgres_template: str,
    postgres_database: Callable[[str], Iterator[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """The name of a PostgreSQL catalog to copy, with the sample Hub crawled into it."""
    data = tmp_path_factory.mktemp("crawled")
    shutil.copytree(sample_data / "blobs", data / "blobs", copy_function=os.link)
    for url in postgres_database(postgres_template):
        with FaultHub(SAMPLE) as hub, pytest.MonkeyPatch.context() as environment:
            environment.setenv("HF_ENDPOINT", hub.url)
            words = ["--data", str(data), "--catalog", url, "-q", "crawl", "--any-base", "--weights", "keep"]
            crawled = CliRunner().invoke(loradex, words)
        assert crawled.exit_code == 0, crawled.output
        yield str(make_url(url).database)


@pytest.fixture
def both(
    backend: str, sample_data: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Program]:
    """The program on a catalog of the sample Hub in one of the two databases, with the kept files."""
    data = tmp_path / "data"
    shutil.copytree(sample_data / "blobs", data / "blobs", copy_function=os.link)
    if backend == "sqlite":
        shutil.copy(sample_data / "catalog.db", data)
        urls = iter([f"sqlite:///{data / 'catalog.db'}"])
    else:
        urls = request.getfixturevalue("postgres_database")(request.getfixturevalue("postgres_sample"))
    base = ["--data", str(data), "--catalog", next(urls)]
    with FaultHub(SAMPLE) as hub, pytest.MonkeyPatch.context() as environment:
        environment.setenv("HF_ENDPOINT", hub.url)
        yield lambda *words: CliRunner().invoke(loradex, [*base, *words])
    next(urls, None)


@pytest.fixture
def mine(sample_data: Path, tmp_path: Path) -> Program:
    """The program on a copy of the sample's catalog, to be changed."""
    data = tmp_path / "mine"
    shutil.copytree(sample_data, data, copy_function=shutil.copy)
    return lambda *words: CliRunner().invoke(loradex, ["--data", str(data), *words])


def ok(run: Program, *words: str) -> Any:
    """What a command says as JSON."""
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_case_86_a_pool_goes_out_and_comes_back_with_the_same_bytes(both: Program, tmp_path: Path) -> None:
    result = ok(both, "select", "near", *LIKE, "--controls")
    assert result["members"][0]["repository"] == "zoo/banking77-seed104"
    out = tmp_path / "out"
    folders = [
        Path(folder)
        for folder in ok(both, "pool", "export", "near", "--to", str(out), "--weights")["folders"]
    ]
    assert [folder.name.rpartition("-")[0] for folder in folders] == [
        *("near", "near-random", "near-matched", "near-shuffled")
    ]
    first = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    ok(both, "pool", "export", "near", "--to", str(out), "--weights")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == first
    assert ok(both, "pool", "verify", str(folders[0])) == {
        "ok": True,
        "problems": [],
        "digest": result["digest"],
    }
    elsewhere = ("--data", str(tmp_path / "elsewhere"))
    words = [*elsewhere, "pool", "import", str(folders[0]), "--weights", "--json"]
    imported = CliRunner().invoke(loradex, words)
    assert imported.exit_code == 0, imported.output
    assert json.loads(imported.stdout)["digest"] == result["digest"]
    again = CliRunner().invoke(
        loradex, [*elsewhere, "pool", "export", "near", "--to", str(tmp_path / "two"), "--weights"]
    )
    assert again.exit_code == 0, again.output
    target = tmp_path / "two" / folders[0].name
    weights = [path for path in first if path.suffix == ".safetensors" and folders[0] in path.parents]
    assert len(weights) == 3
    for path in weights:
        assert (target / path.relative_to(folders[0])).read_bytes() == first[path]


def test_both_databases_choose_the_same_bytes(both: Program, sample: Program, tmp_path: Path) -> None:
    for words in (
        ("near", *LIKE),
        ("drawn", "--by", "random", "-k", "5", "--seed", "3", "--where", "rank:4..8", "--distinct", "delta"),
        ("large", "--by", "rank", "-k", "4", "--per-family", "1"),
        ("words", "--by", "text", "--query", "bank customers", "-k", "2"),
    ):
        here = ok(sample, "select", *words, "--dry-run")
        target = ok(both, "select", *words, "--dry-run")
        assert here == target
        assert len(here["members"]) == here["chosen"]["count"]


def test_an_exported_pool_is_loaded_by_plain_peft(mine: Program, tmp_path: Path) -> None:
    ok(mine, "select", "three", "--by", "random", "-k", "3")
    [folder] = ok(mine, "pool", "export", "three", "--to", str(tmp_path / "out"), "--weights")["folders"]
    adapters = sorted((Path(folder) / "adapters").iterdir())
    assert len(adapters) == 3
    for adapter in adapters:
        assert PeftConfig.from_pretrained(str(adapter)).peft_type == "LORA"
        assert load_peft_weights(str(adapter), device="cpu")


def test_a_pool_as_a_hub_is_served_again(mine: Program, tmp_path: Path) -> None:
    ok(mine, "select", "three", "--by", "random", "-k", "3", "--where", "owner:zoo")
    out = tmp_path / "out"
    [folder] = ok(mine, "pool", "export", "three", "--to", str(out), "--format", "hub", "--weights")[
        "folders"
    ]
    manifest = read_manifest(Path(folder))
    with FaultHub(Path(folder)) as hub, pytest.MonkeyPatch.context() as environment:
        environment.setenv("HF_ENDPOINT", hub.url)
        result = ok(mine, "pool", "verify", "three", "--hub")
        assert result == {"ok": True, "problems": [], "digest": manifest.digest}


def flip_bit(folder: Path, manifest: Manifest) -> None:
    """One bit of the weights of the first member."""
    file = folder / "adapters" / manifest.members[0].folder_name / "adapter_model.safetensors"
    with file.open("r+b") as opened:
        opened.seek(-1, os.SEEK_END)
        last = opened.read(1)
        opened.seek(-1, os.SEEK_END)
        opened.write(bytes([last[0] ^ 1]))


def remove_config(folder: Path, manifest: Manifest) -> None:
    """The configuration of the first member."""
    (folder / "adapters" / manifest.members[0].folder_name / "adapter_config.json").unlink()


@pytest.mark.parametrize(("harm", "kind"), [(flip_bit, "changed"), (remove_config, "missing")])
def test_verify_finds_what_was_done_to_an_export(mine: Program, tmp_path: Path, harm: Any, kind: str) -> None:
    ok(mine, "select", "two", "--by", "random", "-k", "2")
    [folder] = ok(mine, "pool", "export", "two", "--to", str(tmp_path), "--weights")["folders"]
    harm(Path(folder), read_manifest(Path(folder)))
    result = mine("pool", "verify", folder, "--json")
    assert result.exit_code == 1
    assert [problem["kind"] for problem in json.loads(result.stdout)["problems"]] == [kind]
    assert ok(mine, "pool", "verify", "two")["ok"], "the edit reached the kept files"


def test_copy_is_still_an_option_and_says_nothing_new(mine: Program, tmp_path: Path) -> None:
    ok(mine, "select", "one", "--by", "random", "-k", "1")
    export = ("pool", "export", "one", "--to", str(tmp_path), "--weights")
    assert ok(mine, *export, "--copy") == ok(mine, *export)


def test_verify_finds_what_the_hub_lost_and_what_licences_forbid(mine: Program, tmp_path: Path) -> None:
    hub_folder = shutil.copytree(SAMPLE, tmp_path / "hub")
    ok(mine, "select", "two", "--by", "random", "-k", "2", "--where", "name:overruling | name:banking77")
    shutil.rmtree(hub_folder / "zoo" / "overruling")
    card = hub_folder / "zoo" / "banking77" / "README.md"
    card.write_text(card.read_text() + "\nchanged\n")
    with FaultHub(hub_folder) as hub, pytest.MonkeyPatch.context() as environment:
        environment.setenv("HF_ENDPOINT", hub.url)
        result = mine("pool", "verify", "two", "--hub", "--use", "commercial", "--json")
    assert result.exit_code == 1
    kinds = {(problem["member"], problem["kind"]) for problem in json.loads(result.stdout)["problems"]}
    assert {
        ("zoo/overruling", "vanished"),
        ("zoo/banking77", "vanished"),
        ("zoo/banking77", "license"),
    } <= kinds


def test_weights_that_are_not_kept_are_fetched_at_their_commit(
    mine: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = ok(mine, "select", "one", "--by", "random", "-k", "1", "--where", "owner:zoo")
    data = tmp_path / "mine"
    shutil.rmtree(data / "blobs")
    clock = VirtualClock()
    with monkeypatch.context() as patch:
        patch.setattr(Clock, "now", lambda _: clock.now())
        patch.setattr(Clock, "sleep", lambda _, *arguments: clock.sleep(*arguments))
        refused = mine("pool", "export", "one", "--to", str(tmp_path / "out"), "--weights")
    assert sum(clock.sleeps) > 1, "it was not tried again"
    assert refused.exit_code == 1
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())
    with FaultHub(SAMPLE) as hub, pytest.MonkeyPatch.context() as environment:
        environment.setenv("HF_ENDPOINT", hub.url)
        ok(mine, "pool", "export", "one", "--to", str(tmp_path / "out"), "--weights")
        fetched = [request.path for request in hub.log if request.path.endswith(".safetensors")]
    assert len(fetched) == 1
    assert manifest["members"][0]["commit"] in fetched[0]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["select", "x", "--by", "random", "-k", "999"], "Only "),
        (["select", "x", "--by", "random", "-k", "0"], "at least 1"),
        (["select", "x/y", "--by", "random"], "not a valid name for a pool"),
        (["select", "x", "--by", "text", "-k", "1"], "requires --query"),
        (["select", "x", "--by", "text", "--query", "  ", "-k", "1"], "1 to 10,000 characters"),
        (["select", "x", "--by", "random", "--where", "rank:64..8"], "rank"),
        (["select", "x", "--by", "random", "--where", "rank:4 rank:8"], "No adapter satisfies"),
        (["select", "x", "--by", "random", "--exclude", "nobody"], "nobody is not among the adapters"),
        (["select", "x", "--by", "adapter", "--like", "nobody/x"], "not found in the catalog"),
        (["select", "x", "--by", "matched", "--to", "nothing"], "Pool 'nothing' not found"),
        (
            ["select", "x", "--by", "random", "--base", "acme/unknown", "-k", "1"],
            "No base model is known as acme/unknown",
        ),
        (["pool", "show", "nothing"], "Pool 'nothing' not found"),
        (["pool", "import", "nothing"], "does not exist"),
        (["search", ""], "1 to 10,000 characters"),
        (["search", "x", "--weights", "0,0"], "not both zero"),
        (["search", "x", "--words", "--where", "nosuch:1"], "nosuch"),
    ],
    ids=lambda value: "-".join(value)[:40] if isinstance(value, list) else "",
)
def test_what_makes_no_sense_is_one_sentence_and_writes_nothing(
    sample: Program, sample_data: Path, words: list[str], told: str
) -> None:
    result = sample(*words)
    assert result.exit_code in (1, 2), result.output
    assert told in result.stderr
    assert result.stdout == ""
    assert not (sample_data / "pools").exists()
    assert ok(sample, "pools") == []


def test_a_name_is_not_taken_from_another_pool(mine: Program) -> None:
    ok(mine, "select", "one", "--by", "random", "-k", "2")
    ok(mine, "select", "one", "--by", "random", "-k", "2")
    refused = mine("select", "one", "--by", "random", "-k", "2", "--seed", "1")
    assert refused.exit_code == 1
    assert "A different pool called one" in refused.stderr
    ok(mine, "select", "one", "--by", "random", "-k", "2", "--seed", "1", "--replace")
    assert [row["members"] for row in ok(mine, "pools")] == [2]


def test_search_finds_by_words_and_by_meaning(sample: Program) -> None:
    result = ok(sample, "search", "a speaker who corrects a slip of the tongue", "-k", "3")
    assert result[0]["adapter"] == "zoo/disfl_qa"
    assert "meaning" in result[0]["why"]
    by_words = ok(sample, "search", "overruling", "--words", "-k", "3")
    assert {hit["adapter"] for hit in by_words} == {f"zoo/overruling{end}" for end in ("", "-r2", "-r8")}
    assert by_words[0]["adapter"] == "zoo/overruling-r8", "the one whose card says what it is for"
    assert "overruling" in by_words[0]["why"]
    narrowed = ok(sample, "search", "bank", "--where", "rank:16", "-k", "5")
    assert {hit["rank"] for hit in narrowed} <= {16}


SCORES = {
    "zoo/banking77": (0.9, 0.8, 0.1),
    "zoo/clinc_oos": (0.2, 0.9, 0.2),
    "zoo/disfl_qa": (0.5, 0.1, 0.9),
    "zoo/hyperbaton": (0.1, 0.2, 0.3),
    "nobody/elsewhere": (0.95, 0.95, 0.3),
}


@pytest.fixture
def scored(mine: Program, tmp_path: Path) -> Program:
    """The sample's catalog with scores on three tasks, and others on a test split that say the opposite."""
    file = tmp_path / "scores.csv"
    rows = [f"{name},{','.join(map(str, values))}" for name, values in SCORES.items()]
    file.write_text("\n".join(["adapter,bank,intent,speech", *rows]) + "\n")
    saved = ok(mine, "scores", "import", str(file), "--split", "valid", "-n", "100")
    assert saved == {"rows": 15, "new": 15, "changed": 0, "known": 0, "unknown_adapters": 1}
    file.write_text("adapter,bank\nzoo/hyperbaton,1.0\n")
    ok(mine, "scores", "import", str(file), "--split", "test", "-n", "100")
    return mine


def chosen(run: Program, *words: str) -> list[str]:
    return [member["repository"] for member in ok(run, "select", "p", *words, "--dry-run")["members"]]


def test_a_pool_by_measured_scores_never_looks_at_the_test_split(scored: Program) -> None:
    assert chosen(scored, "--by", "score", "--task", "bank", "-k", "2") == ["zoo/banking77", "zoo/disfl_qa"]
    assert chosen(scored, "--by", "worst", "--task", "bank", "-k", "1") == ["zoo/hyperbaton"]
    by_test = chosen(scored, "--by", "score", "--task", "bank", "-k", "1", "--splits", "test")
    assert by_test == ["zoo/hyperbaton"]


def test_a_pool_by_other_tasks_does_not_look_at_the_task(scored: Program, tmp_path: Path) -> None:
    for way in ("prior", "tasks"):
        before = chosen(scored, "--by", way, "--task", "bank", "-k", "3")
        file = tmp_path / "more.csv"
        file.write_text("adapter,bank\nzoo/hyperbaton,1.0\nzoo/banking77,0.0\n")
        ok(scored, "scores", "import", str(file), "--split", "valid", "--source", "scores.csv", "-n", "100")
        assert chosen(scored, "--by", way, "--task", "bank", "-k", "3") == before


def test_a_task_that_nobody_measured_is_known_by_its_words(scored: Program, tmp_path: Path) -> None:
    texts = tmp_path / "tasks.yaml"
    texts.write_text(
        "intent: {instruction: sort the request of a customer}\nspeech: mend a slip of the tongue\n"
    )
    words = (
        "--task",
        "new",
        "--texts",
        str(texts),
        "--query",
        "mend what a speaker says with a slip of the tongue",
    )
    result = ok(scored, "select", "p", "--by", "tasks", *words, "-k", "1", "--dry-run")
    assert result["members"][0]["repository"] == "zoo/disfl_qa"
    assert len(result["chosen"]["texts"]) == 64
    refused = scored("select", "p", "--by", "tasks", "--task", "new", "-k", "1")
    assert refused.exit_code == 1
    assert "new" in refused.stderr


def test_a_pool_by_scores_has_a_control_that_is_blind_to_the_task(scored: Program) -> None:
    result = ok(scored, "select", "best", "--by", "score", "--task", "bank", "-k", "2", "--controls")
    assert [control["kind"] for control in result["controls"]][:4] == [
        "blind",
        "random",
        "matched",
        "shuffled",
    ]
    assert {row["pool"] for row in ok(scored, "pools")} == {
        *("best", "best-blind", "best-random", "best-matched", "best-shuffled")
    }


@pytest.mark.parametrize("form", ["vllm", "sglang", "gguf", "ollama", "mergekit", "lm-eval"])
def test_an_export_for_an_engine_has_its_command_and_verifies(
    mine: Program, tmp_path: Path, form: str
) -> None:
    """Adapters are in the form that the engine reads, and what is written is what export.json has."""
    ok(mine, "select", "three", "--by", "random", "-k", "3")
    words = ("pool", "export", "three", "--to", str(tmp_path), "--format", form, "--weights")
    folder = Path(ok(mine, *words)["folders"][0])
    readme = (folder / "README.md").read_text()
    members = sorted((folder / "adapters").iterdir())
    assert len(members) == 3
    if form == "mergekit":
        assert "mergekit-yaml mergekit.yaml merged --lora-merge-cache" in readme
        models = re.findall(r'model: ".*\+(.*)"', (folder / "mergekit.yaml").read_text())
        assert sorted(models) == [f"adapters/{member.name}" for member in members]
    else:
        assert all(f"adapters/{member.name}" in readme for member in members)
        assert all(
            row.runs
            for m in members
            for row in library.runs_in(m)
            if row.engine in (("peft",) if form == "lm-eval" else ("vllm", "sglang"))
        )
    if form == "vllm":
        listed = [json.loads(line) for line in (folder / "vllm.txt").read_text().splitlines()]
        assert {entry["path"] for entry in listed} == {f"adapters/{member.name}" for member in members}
        rank = max(json.loads((m / "adapter_config.json").read_text())["r"] for m in members)
        assert ("--max-lora-rank" in readme) == (rank > 16)
    if form in ("gguf", "ollama"):
        assert all((m / "adapter.gguf").read_bytes()[:4] == b"GGUF" for m in members)
        assert all("ADAPTER ./adapter.gguf" in (m / "Modelfile").read_text() for m in members)
    assert ok(mine, "pool", "verify", str(folder))["problems"] == []
    if form == "ollama":
        (members[0] / "adapter.gguf").write_bytes(b"GGUF")
        (members[1] / "Modelfile").unlink()
        result = json.loads(mine("pool", "verify", str(folder), "--json").stdout)
        assert sorted(row["kind"] for row in result["problems"]) == ["changed", "missing"]
        assert any("adapter.gguf has 4 bytes where" in row["detail"] for row in result["problems"])


def test_an_export_without_weights_fetches_the_members_at_their_commits(
    mine: Program, tmp_path: Path
) -> None:
    ok(mine, "select", "three", "--by", "random", "-k", "3")
    folder = Path(
        ok(mine, "pool", "export", "three", "--to", str(tmp_path), "--format", "vllm")["folders"][0]
    )
    readme = (folder / "README.md").read_text()
    pool = json.loads((folder / "pool.json").read_text())
    for member in pool["members"]:
        assert f"hf download {member['repository']} --revision {member['commit']}" in readme
    assert mine("pool", "export", "three", "--to", str(tmp_path), "--format", "gguf").exit_code == 1


def test_what_cannot_be_normalised_together_is_one_sentence(mine: Program, tmp_path: Path) -> None:
    ok(mine, "select", "one", "--by", "random", "-k", "1")
    words = ("pool", "export", "one", "--to", str(tmp_path), "--weights", "--normalised")
    refused = mine(*words, "--as-is")
    assert refused.exit_code == 2
    assert "normalised" in refused.stderr
