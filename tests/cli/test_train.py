"""`loradex train`: what it prints, what it writes, and what it says to wrong words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from merging.members import load_member
from merging.model.base import kept_name
from tests.cli.conftest import Program
from tests.merging.tiny import NAME, save_base, tiny_base, write_task

pytest.importorskip("peft")

ROWS = [(f"item {number}", "yes" if number % 3 else "no") for number in range(24)]
QUICK = ("--rank", "2", "--steps", "2", "--batch", "2", "--samples", "5", "--evaluate-every", "1")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    write_task(folder / "thirds", ROWS)
    return folder


@pytest.fixture
def train(run: Program, tasks: Path, data: Path) -> Program:
    """`loradex train` with a base that is kept, the task and settings for a second of work."""
    folder = data / "bases" / kept_name(NAME)
    folder.mkdir(parents=True)
    save_base(tiny_base(), folder)
    words = ("--base", NAME, "--tasks", str(tasks), *QUICK)
    return lambda *more: run("train", *words, *more)


def test_the_document_is_train_json(train: Program, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = train("--task", "thirds", "--lr", "1e-3,1e-2", "-o", str(out), "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document.pop("folder") == str(out)
    assert document == json.loads((out / "train.json").read_text())
    assert [rate["learning_rate"] for rate in document["rates"]] == [1e-3, 1e-2]
    assert document["budget"] == {"train": 4, "valid": 1, "seed": 0}
    assert load_member(out).config.base_model == NAME


def test_the_table_has_a_row_for_every_rate(train: Program, tmp_path: Path) -> None:
    rates = ("--lr", "1e-5,1e-2,1e12")
    result = train("--task", "thirds", *rates, "-o", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    header, low, best, high, *remaining = result.stdout.splitlines()
    assert header.split() == ["learning", "rate", "best", "step", "valid", "loss", "verdict"]
    assert low.split()[:2] == ["1e-05", "2"]
    assert best.split()[0] == "0.01"
    assert best.endswith("chosen")
    assert "diverged at step" in high
    assert any(line.startswith("loss after") and line.endswith("as stored") for line in remaining)
    assert "".join(remaining).replace(" ", "").endswith(f"folder{tmp_path / 'out'}")


def test_a_best_rate_at_the_edge_is_said(train: Program, tmp_path: Path) -> None:
    result = train("--task", "thirds", "--lr", "1e-6,1e-2", "-o", str(tmp_path / "out"))
    assert result.stderr.splitlines()[1:] == [
        "the best rate is the highest tried; --lr with higher ones may do better"
    ]


def test_without_rates_four_of_the_grid_are_tried(train: Program, tmp_path: Path) -> None:
    result = train("--task", "thirds", "-o", str(tmp_path / "out"), "--targets", "q_proj, v_proj", "--json")
    document = json.loads(result.stdout)
    assert [rate["learning_rate"] for rate in document["rates"]] == [6.3246e-4, 1.1247e-3, 2e-3, 3.5566e-3]
    assert document["settings"]["targets"] == ["q_proj", "v_proj"]


def test_a_preset_gives_the_options_that_are_not_written(train: Program, tmp_path: Path) -> None:
    words = ("--task", "thirds", "--preset", "recycling-paper", "--alpha", "4")
    result = train(*words, "-o", str(tmp_path / "out"), "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    # --rank, --steps, --batch, --samples and --evaluate-every are written.
    settings = document["settings"]
    assert (settings["rank"], settings["alpha"], settings["dropout"]) == (2, 4.0, 0.1)
    assert (settings["recipe"]["steps"], document["learning_rate"]) == (2, 3e-4)
    assert (document["preset"], document["protocol"]) == ("recycling-paper", "recycling-paper")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--task", "nope"), 1, "Task nope not found"),
        (("--task", "thirds", "--samples", "25"), 2, "24 training examples, fewer than the requested 25"),
        (("--task", "thirds", "--lr", "fast"), 2, "write rates with commas between them"),
        (("--task", "thirds", "--variant", "lola"), 2, "Unknown variant 'lola'"),
        (("--task", "thirds", "--base", "no/such/base/"), 2, "neither a folder with a model nor an id"),
        (("--task", "thirds", "--lr", "1e12"), 1, "choose lower ones"),
    ],
)
def test_wrong_words(words: tuple[str, ...], code: int, message: str, train: Program, tmp_path: Path) -> None:
    result = train(*words, "-o", str(tmp_path / "out"))
    assert result.exit_code == code
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_the_help_names_every_variant(train: Program) -> None:
    from merging.learning import VARIANTS

    # Lines are broken after hyphens too.
    text = " ".join(train("--help").stdout.split()).replace("- ", "-")
    assert all(name in text for name in VARIANTS)
