"""A merge has one rank that every engine reads; with mixed ranks it says who misreads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Program
from tests.edges.rows import peft_norm, relative_error, row
from tests.merging.adapters import adapter, deltas, distance
from tests.shared_data import shared

ROW = ("rank-4", "rank-8-all", "rslora-16")


def merged(run: Program, *words: str) -> Any:
    done = run("merge", *words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@shared
def test_the_average_of_the_row_has_one_rank_that_every_engine_reads(run: Program, tmp_path: Path) -> None:
    members = [row("16-ranks-of-a-merge") / name for name in ROW]
    out = tmp_path / "out"
    words = (*map(str, members), "--method", "average", "--dtype", "float32", "-o", str(out))
    document = merged(run, *words)
    assert document["misread"] == []
    assert document["form"]["rank"] == 32
    assert {module["rank"] for module in document["modules"].values()} == {8, 16, 28}
    assert peft_norm(out) == pytest.approx(1.9706, abs=5e-5)
    assert relative_error(out, *members) < 1e-6
    assert engine_norms(out) == pytest.approx([1.9706] * 3, abs=5e-5)


@shared
def test_mixed_ranks_are_written_where_they_are_asked_for_and_name_who_misreads_them(
    run: Program, tmp_path: Path
) -> None:
    members = [row("16-ranks-of-a-merge") / name for name in ROW]
    out = tmp_path / "out"
    words = (*map(str, members), "--method", "average", "--dtype", "float32", "-o", str(out), "--mixed-ranks")
    document = merged(run, *words)
    assert "LMDeploy refuses several ranks." in document["misread"]
    assert any(text.startswith("llama.cpp takes alpha over the rank") for text in document["misread"])
    assert "form" not in document
    config = json.loads((out / "adapter_config.json").read_text())
    ranks = {config["r"], *config["rank_pattern"].values()}
    assert (min(ranks), max(ranks)) == (8, 28)
    assert peft_norm(out) == pytest.approx(1.9706, abs=5e-5)
    assert document["misread"][0] in (out / "README.md").read_text()


@pytest.mark.parametrize("ranks", [(8, 8), (3, 5), (16, 4), (40, 8)])
def test_a_sum_is_the_same_in_both_forms(run: Program, tmp_path: Path, ranks: tuple[int, int]) -> None:
    folders = [adapter(tmp_path / f"m{n}", seed=n, rank=rank) for n, rank in enumerate(ranks)]
    words = (*map(str, folders), "--method", "peft-cat", "-o")
    portable = merged(run, *words, str(tmp_path / "portable"))
    compact = merged(run, *words, str(tmp_path / "compact"), "--mixed-ranks")
    assert portable["form"]["rank"] in (8, 16, 32, 64)
    assert not any("rank" in text for text in portable["misread"])
    on_grid = sum(ranks) in (8, 16, 48)
    assert any("ranks other than 8" in text for text in compact["misread"]) is not on_grid
    assert distance(deltas(tmp_path / "portable"), deltas(tmp_path / "compact")) == 0


@shared
@pytest.mark.parametrize(("name", "norm"), [("rank-4", None), ("rank-8-all", None), ("rslora-16", 4.2825)])
def test_a_normalised_adapter_is_the_same_update_to_every_reader(
    run: Program, tmp_path: Path, name: str, norm: float | None
) -> None:
    source, out = row("16-ranks-of-a-merge") / name, tmp_path / "out"
    done = run("normalise", str(source), "-o", str(out), "--dtype", "float32", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["misread"] == []
    assert relative_error(out, source, share=1.0) < 1e-6
    expected = peft_norm(source)
    assert norm is None or expected == pytest.approx(norm, abs=5e-5)
    assert engine_norms(out) == pytest.approx([expected] * 3, rel=1e-5)


def engine_norms(folder: Path) -> list[float]:
    """The norms of the update by PEFT, and by readers that take alpha / r or alpha over the tensor's rank."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert not config["rank_pattern"]
    update = [delta.square().sum() for delta in deltas(folder).values()]
    own = float(sum(update) ** 0.5)
    return [own, own * (config["lora_alpha"] / config["r"]), peft_norm(folder)]
