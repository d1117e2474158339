"""A merge that PEFT reads right and other engines do not says which they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from catalog.adapters import misreadings
from tests.cli.conftest import Program
from tests.edges.rows import peft_norm, row
from tests.merging.adapters import adapter
from tests.shared_data import shared

LLAMA_CPP = "llama.cpp scales them wrongly"


def merged(run: Program, *words: str) -> Any:
    done = run("merge", *words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@shared
def test_the_average_of_the_row_is_right_in_peft_and_names_who_misreads_it(
    run: Program, tmp_path: Path
) -> None:
    members = [str(row("16-ranks-of-a-merge") / name) for name in ("rank-4", "rank-8-all", "rslora-16")]
    words = (*members, "--method", "average", "--dtype", "float32", "-o", str(tmp_path / "out"))
    [document] = merged(run, *words)["misread"]
    assert document.startswith(
        "It has ranks from 8 to 28: llama.cpp scales them wrongly, SGLang and LMDeploy refuse"
    )
    assert document.endswith("vLLM needs --max-lora-rank 28.")
    assert peft_norm(tmp_path / "out") == pytest.approx(1.9706, abs=5e-5)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    ranks = {config["r"], *config["rank_pattern"].values()}
    assert (min(ranks), max(ranks)) == (8, 28)
    result = run("merge", *words, "--overwrite")
    assert LLAMA_CPP in " ".join(result.stdout.split())
    assert document in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("ranks", [(8, 8), (3, 5), (16, 4), (40, 8)])
def test_one_rank_is_misread_by_few_or_by_nobody(
    run: Program, tmp_path: Path, ranks: tuple[int, int]
) -> None:
    folders = [adapter(tmp_path / f"m{n}", seed=n, rank=rank) for n, rank in enumerate(ranks)]
    words = (*map(str, folders), "--method", "peft-cat", "-o", str(tmp_path / "out"))
    result = merged(run, *words)["misread"]
    words = f"It has rank {sum(ranks)}: TGI and LoRAX scale ranks wrongly that are not 8 or 16 times n."
    assert result == ([] if sum(ranks) in (8, 16, 48) else [words])


def test_what_misreads_what() -> None:
    assert misreadings([8, 8]) == misreadings([32]) == misreadings([]) == ()
    assert "TGI and LoRAX" in misreadings([12])[0]
    mixed, alphas, roots = misreadings([4, 8], rslora=True, alpha_pattern=True)
    assert LLAMA_CPP in mixed
    assert "a different alpha" in alphas
    assert "SGLang" in roots
