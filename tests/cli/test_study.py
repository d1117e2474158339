"""`loradex study`: what it prints, what it writes, and what it says to wrong words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("peft")

from tests.cli.conftest import Program
from tests.studies.small import TEXT, make_world
from tests.studies.test_pricing import DOCTOR

# PEFT 0.21 asks a model of transformers 5.23 for an attribute by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of one seed."""
    path = make_world(tmp_path_factory.mktemp("world"))
    text = TEXT.format(base=path.parent / "base").replace("seeds: [0, 1]", "seeds: [0]")
    path.write_text(text)
    return path


def test_a_study_from_the_file_to_the_page(run: Program, world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    counted = run("study", "run", str(world), "-o", str(out), "--dry-run", "--json")
    document = json.loads(counted.stdout)
    assert (document["cells"], document["done"]) == (22, 0)
    assert document["kinds"]["train"] == 4
    assert document["base"] == str(world.parent / "base")
    how = f"`loradex doctor --base {world.parent / 'base'} --json > doctor.json`"
    assert how in run("study", "run", str(world), "-o", str(out), "--dry-run").stdout
    assert not out.exists(), "a dry run writes nothing"
    ran = run("study", "run", str(world), "-o", str(out))
    assert ran.exit_code == 0, ran.output
    assert how in ran.stderr
    assert "22 cells done, 0 failed, 0 missing" in ran.stdout
    reported = run("study", "report", str(out), "--json")
    assert reported.exit_code == 0, reported.output
    document = json.loads(reported.stdout)
    assert any("it helps" in sentence for sentence in document["says"])
    page = Path(document["page"]).read_text()
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert all(row["method"] in page for row in rows)
    assert "| new LoRA |" in Path(document["markdown"]).read_text()
    before = {path: path.read_bytes() for path in out.glob("*.*")}
    assert run("study", "report", str(out)).exit_code == 0
    assert {path: path.read_bytes() for path in out.glob("*.*")} == before


def test_a_study_with_failures_ends_with_three(run: Program, world: Path, tmp_path: Path) -> None:
    path = world.with_name("failing.yaml")
    text = world.read_text().replace("names: [halves, thirds]", "names: [halves]")
    path.write_text(text.replace("[1e-3, 1e-2]", "[1e30, 1e35]"))
    ran = run("study", "run", str(path), "-o", str(tmp_path / "out"), "--json")
    assert ran.exit_code == 3
    assert json.loads(ran.stdout)["failed"] == 3
    assert "failed: The loss became infinite" in ran.stderr
    reported = run("study", "report", str(tmp_path / "out"))
    assert reported.exit_code == 0, reported.output


def test_the_studies_that_come_along_are_listed(run: Program) -> None:
    document = json.loads(run("study", "list", "--json").stdout)
    assert [study["study"] for study in document["studies"]] == [
        "learning_rate", "learning_rate_curvature", "lego", "lego_sets", "recycling", "recycling-8b",
        "recycling-paper", "recycling_claims", "recycling_larger", "small",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "says", "code"),
    [
        (("run", "nothing", "-o", "OUT"), "Study nothing not found", 1),
        (("run", "recycling", "-o", "OUT"), "Task amazon_reviews not found", 1),
        (("run", "STUDY", "-o", "OUT", "--workers", "2"), "belong to Ray", 2),
        (("run", "STUDY", "-o", "OUT", "--ray", "--address", "a:1", "--workers", "2"), "its own workers", 2),
        (("run", "published", "-o", "OUT", "--tables", "EMPTY"), "Published tables are not a study", 2),
        (("run", "published", "-o", "OUT"), "Published tables are not a study", 1),
        (("run", "TABLES", "-o", "OUT"), "line 2: Published tables are not a study", 2),
        (("run", "STUDY", "-o", "LONG"), "is no path: it is too long", 2),
        (("run", "STUDY", "-o", "OUT", "--tasks", "LONG"), "is no path: it is too long", 2),
        (("run", "STUDY", "-o", "OTHER", "--dry-run"), "contains other files", 2),
        (("run", "STUDY", "-o", "OUT", "--ray", "--gpu-share", "nan"), "must be a number from 0 up", 2),
        (("run", "STUDY", "-o", "OUT", "--device", "auto"), "one kind of --device", 2),
        (("report", "OLD"), "Published tables are not a study", 2),
        (("report", "EMPTY"), "not contain a study", 1),
    ],
)
def test_what_makes_no_sense_is_one_sentence(
    run: Program, world: Path, tmp_path: Path, words: tuple[str, ...], says: str, code: int
) -> None:
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "OLD").mkdir()
    (tmp_path / "OLD" / "study.json").write_text('{"study": {"published": "tables", "title": "old"}}')
    (tmp_path / "OLD" / "results.jsonl").touch()
    (tmp_path / "TABLES").write_text("study: published\npublished: tables\n")
    (tmp_path / "OTHER" / "steps").mkdir(parents=True)
    (tmp_path / "OTHER" / "steps" / "one.txt").touch()
    places = {name: str(tmp_path / name) for name in ("OUT", "EMPTY", "OLD", "TABLES", "OTHER")}
    places |= {"STUDY": str(world), "LONG": str(tmp_path / ("x" * 300))}
    result = run("study", *(places.get(word, word) for word in words))
    assert result.exit_code == code, result.output
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "OUT").exists()


def test_a_study_is_priced_without_its_base_model(run: Program, tmp_path: Path) -> None:
    doctor = tmp_path / "doctor.json"
    doctor.write_text(json.dumps(DOCTOR))
    path = make_world(tmp_path / "world")
    path.write_text(TEXT.format(base="no/model"))
    args = ["study", "run", str(path), "-o", str(tmp_path / "out"), "--doctor", str(doctor)]
    ran = run(*args, "--dry-run")
    assert ran.exit_code == 0, ran.output
    assert "on A card with org/model, by its doctor report: adapt " in ran.stdout
    assert "the study asks no/model, for which org/model may be too fast or too slow" in ran.stdout
    assert "not priced: " in ran.stdout
    assert "loradex doctor --base" not in ran.stdout
    document = json.loads(run(*args, "--dry-run", "--json").stdout)
    assert document["price"]["machine"] == "A card"
    assert set(document["price"]["hours"]) == {"adapt", "ensemble", "gradient", "score", "train"}
    refused = run(*args)
    assert refused.exit_code == 2
    assert "add --dry-run" in refused.stderr
    assert not (tmp_path / "out").exists()
