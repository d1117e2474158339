"""`merge` and `inspect-merge` on folders: stand-ins, what is left out, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from cli.main import loradex
from tests.merging.adapters import adapter
from tests.merging.test_controls import layer_up


def run(tmp_path: Path, *words: object) -> Result:
    return CliRunner().invoke(loradex, ["--data", str(tmp_path / "data"), *map(str, words)])


def ok(tmp_path: Path, *words: object) -> Any:
    """What a command says as JSON."""
    result = run(tmp_path, *words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    """Two adapters."""
    return [layer_up(tmp_path / f"m{n}", n) for n in range(2)]


@pytest.fixture
def headed(tmp_path: Path) -> Path:
    """An adapter with the copy of the output head that PEFT saves beside a LoRA of it."""
    path = layer_up(tmp_path / "headed") / "adapter_model.safetensors"
    copy = {"base_model.model.lm_head.base_layer.weight": torch.ones(5, 24)}
    save_file({**load_file(path), **copy}, path)
    return path.parent


def test_stand_ins_are_merged_in_place_of_the_members(pair: list[Path], tmp_path: Path) -> None:
    words = ("merge", *pair, "--method", "average", "--control", "random-each", "--seed", 4)
    result = ok(tmp_path, *words, "-o", tmp_path / "out")
    assert [member["source"]["control"] for member in result["members"]] == ["random-each"] * 2
    assert [member["name"] for member in result["members"]] == ["m0:random-each:4", "m1:random-each:4"]
    paths = sorted(path.name for path in (tmp_path / "out-members").iterdir())
    assert paths == ["001-m0", "002-m1"]
    again = ok(tmp_path, *words, "-o", tmp_path / "out", "--overwrite")
    assert again["members"] == result["members"]


def test_a_price_of_stand_ins_writes_nothing(pair: list[Path], tmp_path: Path) -> None:
    words = ("merge", *pair, "--method", "average", "--control", "random-each", "-o", tmp_path / "out")
    before = sorted(tmp_path.iterdir())
    assert ok(tmp_path, *words, "--dry-run")["members"] == 2
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "data"] == before


def test_a_price_needs_no_folder_and_a_merge_does(pair: list[Path], tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    priced = ok(tmp_path, "merge", *pair, "--method", "sum", "--dry-run")
    assert priced == {
        **ok(tmp_path, "merge", *pair, "--method", "sum", "--dry-run", "-o", tmp_path / "x"),
        **{name: priced[name] for name in ("seconds", "memory")},
    }
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "data"] == before
    refused = run(tmp_path, "merge", *pair, "--method", "sum")
    assert refused.exit_code == 2
    assert "Name the folder to write the merge to, by -o DIR." in " ".join(refused.output.split())


def test_energy_kept_is_printed_where_it_was_measured(tmp_path: Path) -> None:
    high = [adapter(tmp_path / f"h{n}", seed=n, rank=40) for n in range(2)]
    words = ("merge", *high, "-o", tmp_path / "out", "--overwrite", "--method", "peft-cat")
    assert ok(tmp_path, *words)["kept"] is None
    assert "energy kept" not in run(tmp_path, *words).stdout
    words = (*words[:-1], "svd", "--rank", 3)
    assert 0 < ok(tmp_path, *words)["kept"] < 1
    assert "energy kept" in run(tmp_path, *words).stdout


def test_a_control_that_is_none_is_one_sentence(pair: list[Path], tmp_path: Path) -> None:
    result = run(tmp_path, "merge", *pair, "--method", "sum", "--control", "chance", "-o", tmp_path / "out")
    assert result.exit_code != 0
    assert "'chance' is not a control; use one of random-pooled" in result.output
    assert not (tmp_path / "out").exists()


def test_what_is_left_out_is_said(headed: Path, tmp_path: Path) -> None:
    done = run(tmp_path, "merge", headed, "--method", "sum", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "lm_head.base_layer.weight, in 1 of 1 members" in " ".join(done.output.split())
    record = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert record["members"][0]["left_out"] == ["base_model.model.lm_head.base_layer.weight"]


def test_members_with_copies_can_be_compared(headed: Path, pair: list[Path], tmp_path: Path) -> None:
    result = ok(tmp_path, "inspect-merge", headed, *pair, "--without", "embed_tokens, lm_head")
    assert result["names"] == ["headed", "m0", "m1"]
    assert result["cosines"][0][1] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("dry", [True, False])
def test_a_base_that_the_merge_cannot_be_added_to_is_refused_before_it(
    dry: bool, pair: list[Path], tmp_path: Path
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    save_file({"other.weight": torch.ones(2, 2)}, base / "model.safetensors")
    words = ("--method", "average", "--apply-to", base, "-o", tmp_path / "out", *["--dry-run"][: int(dry)])
    result = run(tmp_path, "merge", *pair, *words)
    assert result.exit_code == 1
    assert "m0 belongs to another model" in " ".join(result.stderr.split())
    assert not list(tmp_path.glob("out*"))


def test_a_base_folder_without_a_model_is_said_to_be_none(pair: list[Path], tmp_path: Path) -> None:
    result = run(tmp_path, "merge", *pair, "--method", "average", "--base", tmp_path, "--dry-run")
    assert result.exit_code == 0
    assert "does not contain config.json, so that its modules" in " ".join(result.stderr.split())


@pytest.mark.parametrize("command", [["merge", "--method", "average", "--dry-run"], ["inspect-merge"]])
def test_a_layer_of_which_nothing_is_left_out_is_named(
    command: list[str], headed: Path, pair: list[Path], tmp_path: Path
) -> None:
    result = run(tmp_path, *command, headed, *pair, "--without", "lm_head,lm_haed")
    assert result.exit_code == 0
    message = " ".join(result.stderr.split())
    assert "No member holds anything of lm_haed, which --without names." in message
    assert "anything of lm_head" not in message
