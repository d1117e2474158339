"""A selected pool merges, however its members spell their base; bases that differ are refused by name."""

from __future__ import annotations

import json
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest

from catalog.adapters import BaseSpelling, BaseTable, initial_spellings, initial_table, table_with
from catalog.errors import MergeError
from catalog.pools import Manifest, parse_manifest
from merging.learning.combination import combine
from merging.members import base_note, load_member, load_members
from merging.model.base import kept_name
from merging.static import KINDS, plan, stand_ins
from merging.static.inspection import inspect
from tests.cli.conftest import Program
from tests.edges.rows import peft_norm, relative_error, row
from tests.hubs import card, lora_files, lora_tensors, make_repo, safetensors_bytes
from tests.localhub import FaultHub
from tests.merging.adapters import adapter, deltas, distance, merge, total
from tests.merging.test_controls import layer_up
from tests.merging.test_evaluate import ROWS, tiny_adapter
from tests.merging.tiny import save_base, tiny_base, write_task
from tests.shared_data import index, shared

INSTRUCT = "meta-llama/Llama-3.1-8B-Instruct"
BASE = "meta-llama/Llama-3.1-8B"
# As the configurations of real adapters of one base model spell it.
SPELLINGS = (
    INSTRUCT,
    "meta-llama/Meta-Llama-3.1-8B-Instruct",
    "NousResearch/Meta-Llama-3.1-8B-Instruct",
    "unsloth/meta-llama-3.1-8b-instruct-bnb-4bit",
    "unsloth/meta-llama-3.1-8b-instruct-unsloth-bnb-4bit",
    "/kaggle/input/llama-3.1/transformers/8b-instruct/2",
)
ATTENTION = {"q_proj": (4096, 4096), "v_proj": (4096, 1024)}


def make_adapters(place: Path, *names: str | None) -> list[Path]:
    """Adapters whose configurations name these bases."""
    return [
        adapter(place / f"m{number}", number, base_model_name_or_path=name)
        for number, name in enumerate(names)
    ]


def written_base(folder: Path) -> Any:
    return json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]


@shared
@pytest.mark.parametrize(
    ("names", "norm", "base"),
    [
        (("instruct-4bit", "instruct-canonical", "instruct-old-name"), 37.1485, INSTRUCT),
        (("small-canonical", "small-mirror"), 9.5357, "HuggingFaceTB/SmolLM2-135M-Instruct"),
    ],
)
def test_the_folders_of_the_row(
    names: tuple[str, ...], norm: float, base: str, run: Program, tmp_path: Path
) -> None:
    folders, out = [row("01-mixed-spelling") / name for name in names], tmp_path / "out"
    words = ["merge", *map(str, folders), "--method", "average", "--dtype", "float32", "-o", str(out)]
    assert run(*words, "--dry-run").exit_code == 0
    done = run(*words)
    assert done.exit_code == 0, done.output
    assert written_base(out) == base
    assert peft_norm(out) == pytest.approx(norm, abs=1e-4)
    if base != INSTRUCT:  # PEFT's layers of an 8B model take long to build
        assert relative_error(out, *folders) < 1e-6
    assert run("inspect-merge", *map(str, folders)).exit_code == 0


@shared
def test_the_bases_of_the_row_that_differ_are_refused(run: Program, tmp_path: Path) -> None:
    folders = [str(row("01-mixed-spelling") / name) for name in ("small-canonical", "instruct-canonical")]
    refused = run("merge", *folders, "--method", "average", "-o", str(tmp_path / "out"))
    assert refused.exit_code == 1
    document = " ".join(refused.output.split())
    assert f"belongs to HuggingFaceTB/SmolLM2-135M-Instruct and instruct-canonical to {INSTRUCT}" in document


def test_thirty_adapters_of_six_spellings_merge(tmp_path: Path) -> None:
    folders = make_adapters(tmp_path, *islice(cycle(SPELLINGS), 30))
    report = merge(folders, "average", tmp_path / "out", dtype="float32")
    assert distance(deltas(tmp_path / "out"), total([1 / 30] * 30, folders)) < 1e-6
    assert written_base(tmp_path / "out") == report.record["base_model"] == INSTRUCT
    document = [member.get("base_model") for member in report.record["members"][:6]]
    assert document == [None, *SPELLINGS[1:]], "the record lost how members spell their base"


@shared
def test_all_real_spellings_of_one_base_model_are_one(tmp_path: Path) -> None:
    """Seventy-two real configurations and cards of Llama-3.1-8B-Instruct, in five spellings."""
    message = [item["base_model"] or item["card_base_model"] for item in index("wild")]
    names = [
        name for name in message if isinstance(name, str) and initial_table().canonical(name) == INSTRUCT
    ]
    assert (len(names), len(set(names))) == (72, 5)
    assert plan(make_adapters(tmp_path, *names), "average").base == INSTRUCT


@pytest.mark.parametrize("kind", KINDS)
def test_stand_ins_of_six_spellings_are_made_and_merge(kind: str, tmp_path: Path) -> None:
    folders = [
        layer_up(tmp_path / f"m{number}", number, base_model_name_or_path=name)
        for number, name in enumerate(SPELLINGS)
    ]
    result = stand_ins(folders, kind, tmp_path / "stand-ins")
    assert plan(result, "average").base == INSTRUCT


def test_six_spellings_are_inspected_and_combined(tmp_path: Path) -> None:
    folders = make_adapters(tmp_path, *SPELLINGS)
    assert inspect(folders).interference > 0
    members = load_members(folders)
    names = members[0].modules
    combine(members, {name: [1.0] * 6 for name in names}, tmp_path / "out", base=SPELLINGS[3])
    assert written_base(tmp_path / "out") == INSTRUCT


def test_quantised_copies_that_nobody_listed_are_the_base(tmp_path: Path) -> None:
    names = ("RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8", INSTRUCT, "x/Llama-3.1-8B-Instruct-GGUF")
    assert plan(make_adapters(tmp_path, *names), "average").base == INSTRUCT


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ((BASE, INSTRUCT), f"m0 belongs to {BASE} and m1 to {INSTRUCT}; .* \\(`base`\\)"),
        (("unsloth/Meta-Llama-3.1-8B-bnb-4bit", INSTRUCT), f"m0 belongs to {BASE} and m1 to {INSTRUCT}"),
        (("meta-llama/Meta-Llama-3-8B", BASE), f"m0 belongs to meta-llama/Meta-Llama-3-8B and m1 to {BASE}"),
        (("./flan", INSTRUCT), f"m0 belongs to ./flan and m1 to {INSTRUCT}"),
        (("a/B", "c/B"), "m0 belongs to a/B and m1 to c/B"),
    ],
)
def test_bases_that_differ_are_refused_by_name(names: tuple[str, str], told: str, tmp_path: Path) -> None:
    with pytest.raises(MergeError, match=told):
        load_members(make_adapters(tmp_path, *names))


def test_a_base_that_is_given_is_that_of_all(run: Program, tmp_path: Path) -> None:
    folders = [str(folder) for folder in make_adapters(tmp_path, "./flan", None, "None", SPELLINGS[3])]
    words = ("merge", *folders, "--method", "average", "-o", str(tmp_path / "out"))
    assert run(*words).exit_code == 1
    done = run(*words, "--base", SPELLINGS[1])
    assert done.exit_code == 0, done.output
    assert "are taken as" not in done.stderr
    assert written_base(tmp_path / "out") == INSTRUCT
    assert run("inspect-merge", *folders, "--base", INSTRUCT).exit_code == 0


def test_a_base_that_contradicts_a_member_is_told_in_one_sentence(run: Program, tmp_path: Path) -> None:
    folders = [str(folder) for folder in make_adapters(tmp_path, BASE, INSTRUCT, "unsloth/Llama-3.1-8B")]
    done = run("merge", *folders, "--method", "average", "-o", str(tmp_path / "out"), "--base", INSTRUCT)
    assert done.exit_code == 0, done.output
    document = " ".join(done.stderr.split())
    sentence = f"are taken as adapters of {INSTRUCT}, but m0 names {BASE}, and 1 more name another base"
    assert sentence in document
    inspected = run("inspect-merge", *folders, "--base", INSTRUCT)
    assert inspected.exit_code == 0
    assert sentence in " ".join(inspected.stderr.split())
    assert written_base(tmp_path / "out") == INSTRUCT


def test_a_base_that_nobody_knows_is_told(run: Program, tmp_path: Path) -> None:
    (folder,) = make_adapters(tmp_path, None)
    words = ("merge", str(folder), "--method", "sum", "-o", str(tmp_path / "out"))
    done = run(*words, "--base", f"{INSTRUCT}s")
    assert f"No base model is known as {INSTRUCT}s; the nearest known names are {INSTRUCT}, " in done.stderr
    assert written_base(tmp_path / "out") == f"{INSTRUCT}s"
    assert "is known as" not in run(*words, "--overwrite", "--base", INSTRUCT).stderr


@pytest.mark.parametrize("word", ["None", "", "null"])
def test_a_word_for_nothing_is_no_base_to_give(word: str, run: Program, tmp_path: Path) -> None:
    (folder,) = make_adapters(tmp_path, INSTRUCT)
    words = ("merge", str(folder), "--method", "sum", "-o", str(tmp_path / "out"), "--base", word)
    refused = run(*words)
    assert (refused.exit_code, (tmp_path / "out").exists()) == (2, False)
    assert "names no base model" in refused.output


def test_names_that_a_catalog_adds_count(run: Program, tmp_path: Path) -> None:
    folders = [str(folder) for folder in make_adapters(tmp_path, "someone/my-copy", INSTRUCT)]
    words = ("merge", *folders, "--method", "average", "-o", str(tmp_path / "out"))
    assert run(*words).exit_code == 1
    assert run("base", "add", INSTRUCT, "someone/my-copy").exit_code == 0
    done = run(*words)
    assert done.exit_code == 0, done.output
    assert written_base(tmp_path / "out") == INSTRUCT
    assert run("merge", *words[1:], "--overwrite", "--control", "random-each").exit_code == 0


def test_a_row_of_a_catalog_outweighs_what_is_known_from_the_start() -> None:
    table = table_with([BaseSpelling("a/B", INSTRUCT, "mirror")])
    assert table.canonical(INSTRUCT) == "a/B"
    assert table.canonical(f"/disk/{BASE}") == BASE
    assert BaseTable(initial_spellings()).canonical(INSTRUCT) == INSTRUCT


def test_a_pool_has_the_canonical_base_and_its_bytes_stay() -> None:
    older = Manifest("old", SPELLINGS[3], (), {}, ())
    read = parse_manifest(older.canonical())
    assert (read.base, read.canonical_base()) == (SPELLINGS[3], INSTRUCT)
    assert read.canonical() == older.canonical()
    assert read.digest == older.digest
    assert Manifest("none", None, ()).canonical_base() is None
    table = table_with([BaseSpelling(INSTRUCT, "someone/my-copy", "mirror")])
    assert Manifest("mine", "someone/my-copy", ()).canonical_base(table) == INSTRUCT


def test_what_a_pool_says_of_the_base_counts_for_its_members(tmp_path: Path) -> None:
    folders = make_adapters(tmp_path, "/home/x/mine", "someone/my-copy", INSTRUCT)
    members = [load_member(folder, base=INSTRUCT) for folder in folders]
    assert plan(members, "average").base == INSTRUCT
    assert base_note(members, INSTRUCT) == (
        f"The members are taken as adapters of {INSTRUCT}, but m1 names someone/my-copy."
    )


@pytest.fixture
def six(root: Path, hub: FaultHub) -> FaultHub:
    """Twelve adapters of one base model in six spellings, and two of another, beside those of the Hub."""
    for number, name in enumerate((*SPELLINGS, *SPELLINGS, BASE, BASE)):
        files = lora_files(name, r=1, lora_alpha=2 + number)
        files["README.md"] = card("Some words.\n", base_model=name, license="llama3.1")
        tensors = lora_tensors(hidden=ATTENTION, r=1, seed=number)
        files["adapter_model.safetensors"] = safetensors_bytes(tensors)
        make_repo(root, f"six/m{number:02}", files, {})
    return hub


def test_a_selected_pool_merges(six: FaultHub, run: Program, tmp_path: Path) -> None:
    def ok(*words: str) -> Any:
        done = run(*words)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout) if "--json" in words else None

    ok("-q", "crawl", "--any-base", "--weights", "keep")
    selected = ok("select", "all", "--by", "random", "-k", "12", "--base", INSTRUCT, "--json")
    assert {member["repository"] for member in selected["members"]} == {f"six/m{n:02}" for n in range(12)}
    for words in (("--dry-run",), ("--control", "random-pooled"), ()):
        ok("merge", "all", "--method", "average", "-o", str(tmp_path / "out"), "--overwrite", *words)
        if not words:
            assert written_base(tmp_path / "out") == INSTRUCT
    ok("inspect-merge", "all", "--result", str(tmp_path / "out"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_six_spellings_are_evaluated_and_adapted(run: Program, data: Path, tmp_path: Path) -> None:
    save_base(tiny_base(), data / "bases" / kept_name(INSTRUCT))
    task = write_task(tmp_path / "task", ROWS)
    folders = []
    for number, name in enumerate(SPELLINGS[:4]):
        config = tiny_adapter(tmp_path / f"a{number}", number, size=0.3).folder / "adapter_config.json"
        document = json.loads(config.read_text())
        config.write_text(json.dumps({**document, "base_model_name_or_path": name}))
        folders.append(str(config.parent))
    requests = ("--base", INSTRUCT, "--task", str(task))
    by_name = [word for folder in folders for word in ("--adapter", folder)]
    assert run("evaluate", *requests, *by_name, "--limit", "2").exit_code == 0
    for words in ((), ("--control", "random-each")):
        out = tmp_path / f"out{len(words)}"
        course = ("--samples", "10", "--steps", "2", "-o", str(out))
        done = run("adapt", *folders, *requests, *course, *words)
        assert done.exit_code == 0, done.output
        assert written_base(out) == INSTRUCT
