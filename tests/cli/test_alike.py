"""`similar`, `duplicates`, `fingerprint`, `map`, `index` on the real adapters of the sample Hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import ROOT, Program

pytestmark = pytest.mark.slow
ZOO = ROOT / "data" / "sample_hub" / "zoo"


def rows(run: Program, *words: str) -> list[dict[str, Any]]:
    """What a command lists, as JSON."""
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert isinstance(document, list)
    return document


@pytest.mark.parametrize(("by", "between"), [("output", 0.45), ("delta", 0.14)])
@pytest.mark.parametrize("exact", [False, True], ids=["sketched", "exact"])
def test_the_twin_from_another_seed_is_nearest(sample: Program, by: str, between: float, exact: bool) -> None:
    result = rows(sample, "similar", "zoo/banking77", "--by", by, "-k", "4", *["--exact"] * exact)
    assert len(result) == 4
    assert result[0]["adapter"] == "zoo/banking77-seed104"
    assert "zoo/banking77" not in {row["adapter"] for row in result}
    assert [row["exact"] for row in result] == [exact] * 4
    assert result[0]["score"] > between > result[1]["score"]
    assert [row["score"] for row in result] == sorted((row["score"] for row in result), reverse=True)


def test_a_folder_outside_the_catalog_is_compared(sample: Program, tmp_path: Path) -> None:
    folder = shutil.copytree(ZOO / "overruling", tmp_path / "mine")
    result = rows(sample, "similar", str(folder), "-k", "2", "--exact")
    assert result[0]["adapter"] == "zoo/overruling"
    assert result[0]["same_tensors"]
    assert result[0]["score"] == pytest.approx(1, abs=1e-6)
    assert result[0]["norm_ratio"] == pytest.approx(1, abs=1e-6)


def test_the_same_question_has_the_same_answer(sample: Program) -> None:
    requests = ("similar", "zoo/clinc_oos", "--json")
    assert sample(*requests).stdout == sample(*requests).stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["similar", "nobody/nothing"], "nobody/nothing not found"),
        (["similar", "made-here/pickle-only"], "has no fingerprint"),
        (["similar", "huggingface/peft-ia3"], "has no fingerprint"),
        (["show", "made-here/pickle-only", "--plot", "x.png"], "has no fingerprint"),
        (["map", "x.txt"], ".svg"),
        (["map", "x.png", "--base", "acme/unknown"], "No base model is known as acme/unknown"),
        (["fingerprint", str(ROOT / "docs")], "does not contain adapter_config.json"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(sample: Program, words: list[str], told: str) -> None:
    result = sample(*words)
    assert result.exit_code in (1, 2)
    assert result.stdout == ""
    assert told in result.stderr
    assert result.stderr.count("\n") == 1


def test_duplicates_of_the_sample(sample: Program) -> None:
    result = rows(sample, "duplicates")
    for group in result:
        assert group["size"] == len(group["members"]) >= 2
        assert group["level"] in {"file", "tensor", "delta"}
    assert not any("zoo/banking77" in group["members"] for group in result), "a twin is no duplicate"


def test_families_of_the_sample(sample: Program) -> None:
    result = rows(sample, "duplicates", "--level", "family")
    checkpoints = [family for family in result if any("checkpoints" in name for name in family["members"])]
    assert len(checkpoints) == 1
    assert len(checkpoints[0]["members"]) >= 2


def test_a_local_folder_is_measured(sample: Program) -> None:
    [result] = rows(sample, "fingerprint", str(ZOO / "banking77"))
    document = json.loads(sample("show", "zoo/banking77", "--json").stdout)
    assert result["norm"] == pytest.approx(document["norm"], rel=1e-6)
    assert (result["rank"], result["health"]) == (document["rank"], "healthy")
    assert result["parameters"] == document["parameters"]


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_pictures_are_drawn_and_drawn_again_the_same(sample: Program, tmp_path: Path, suffix: str) -> None:
    for words in (["show", "zoo/clinc_oos", "--plot"], ["map"]):
        first, second = tmp_path / f"1{suffix}", tmp_path / f"2{suffix}"
        for file in (first, second):
            result = sample(*words, str(file))
            assert result.exit_code == 0, result.output
        assert first.read_bytes() == second.read_bytes()
        assert len(first.read_bytes()) > 2000


def test_case_83_the_index_is_checked_and_mended(sample: Program, sample_data: Path) -> None:
    rebuilt = rows(sample, "index", "rebuild")
    assert {row["state"] for row in rebuilt} == {"current"}
    assert {row["space"] for row in rebuilt} == {"delta", "output", "words"}
    assert sample("index", "check").exit_code == 0
    usual = rows(sample, "similar", "zoo/banking77", "--by", "delta", "-k", "1")
    base = json.loads(sample("show", usual[0]["adapter"], "--json").stdout)["base"]
    delta = next(row for row in rebuilt if (row["space"], row["base"]) == ("delta", base))
    assert (delta["type"], delta["recall"]) == ("flat", 1.0)
    Path(delta["file"]).write_bytes(b"not an index")
    broken = sample("index", "check")
    assert broken.exit_code == 1
    assert "corrupt" in broken.stdout
    result = rows(sample, "similar", "zoo/banking77", "--by", "delta", "-k", "1")
    assert result[0]["adapter"] == "zoo/banking77-seed104"
    assert sample("index", "check").exit_code == 0


def test_neighbours_of_a_filter(sample: Program) -> None:
    rows = json.loads(
        sample("similar", "zoo/banking77", "--where", "use:commercial", "-k", "3", "--json").stdout
    )
    assert len(rows) == 3
    assert all(row["license"] is not None for row in rows)
    every = json.loads(sample("similar", "zoo/banking77", "-k", "40", "--json").stdout)
    assert [row["adapter"] for row in every if row["license"] is not None][:3] == [
        row["adapter"] for row in rows
    ]
    result = sample("similar", "zoo/banking77", "--where", "rnk:4")
    assert result.exit_code == 2
    assert "No field is called" in result.stderr


def test_adapters_without_any_weights_file_are_compared_with_nothing(sample: Program) -> None:
    """Of some repositories of the sample the Hub names no digest at all."""
    groups = json.loads(sample("duplicates", "--verdict", "any", "--json").stdout)
    assert sum(group["size"] for group in groups) < 43
