"""What the weights file holds decides: settings of which it holds nothing change nothing, for all commands.

Rows 05 (bias), 06 (modules_to_save of no module), 14 (an empty list is off) and 15 (VeLoRA) of the table.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.cli.conftest import Program
from tests.edges.rows import peft_norm, relative_error, row
from tests.hubs import make_repo
from tests.localhub import FaultHub
from tests.shared_data import shared

HARMLESS = (
    "05-bias-setting/bias-all",
    "05-bias-setting/bias-lora-only",
    "06-modules-to-save-of-no-module/classifier-score",
    "14-empty-list-is-off/invocation-tokens",
    "15-velora/velora",
)
PLAIN_NORM = 1.6199


def rows_of(run: Program, *words: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run(*words, "--jsonl").stdout.splitlines()]


@shared
def test_the_crawl_accepts_and_measures_them_as_the_plain_one(
    run: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*HARMLESS, "05-bias-setting/plain"):
        files = {file.name: file.read_bytes() for file in row(name).iterdir()}
        make_repo(tmp_path / "hub", f"made/{Path(name).name}", files)
    with FaultHub(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert run("crawl", "--any-base").exit_code == 0
    result = rows_of(run, "adapters")
    assert len(result) == 1 + len(HARMLESS)
    assert {item["verdict"] for item in result} == {"accepted"}
    assert [item["norm"] for item in result] == pytest.approx([PLAIN_NORM] * len(result), abs=1e-4)


@shared
@pytest.mark.parametrize("name", HARMLESS)
def test_merge_takes_them_as_the_plain_one(run: Program, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    words = ("--method", "average", "--dtype", "float32", "-o", str(out))
    result = run("merge", str(row(name)), *words)
    assert result.exit_code == 0, result.output
    plain = row(name).parent / "plain"
    assert peft_norm(plain) == pytest.approx(PLAIN_NORM, abs=1e-4)
    assert relative_error(out, plain) < 1e-6


@shared
@pytest.mark.parametrize("place", ["q_proj.base_layer.bias", "q_proj.bias", "norm.bias"])
def test_a_file_that_holds_biases_stays_refused(run: Program, tmp_path: Path, place: str) -> None:
    import torch

    source, folder = row("05-bias-setting/bias-all"), tmp_path / "biased"
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    bias = {f"base_model.model.model.layers.0.self_attn.{place}": torch.ones(32)}
    save_file(
        {**load_file(source / "adapter_model.safetensors"), **bias}, folder / "adapter_model.safetensors"
    )
    result = run("merge", str(folder), "--method", "average", "-o", str(tmp_path / "out"))
    assert result.exit_code != 0
    assert "it trains biases of the base model (has_bias" in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()
