"""Layers that were saved whole are left out by name, and the rest is the LoRA that it is (row 07)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import Program
from tests.edges.rows import peft_norm, relative_error, row
from tests.hubs import card, lora_files, lora_tensors, make_repo, safetensors_bytes
from tests.localhub import FaultHub
from tests.shared_data import shared

BASE = "acme/tiny"
HEAD = {"base_model.model.lm_head.weight": np.ones((3, 2), np.float32)}


@shared
@pytest.mark.parametrize("name", ["trained-head", "saved-embeddings"])
def test_what_is_left_of_them_is_the_plain_adapter(run: Program, tmp_path: Path, name: str) -> None:
    folder, out = row("07-saved-beside"), tmp_path / "out"
    words = ("merge", str(folder / name), "--method", "average", "--dtype", "float32", "-o", str(out))
    refused = run(*words)
    assert refused.exit_code != 0
    assert "--without embed_tokens,lm_head leaves out these layers" in " ".join(refused.stderr.split())
    assert not out.exists()
    result = run(*words, "--without", "lm_head,embed_tokens")
    assert result.exit_code == 0, result.output
    assert "lm_head.weight and 1 more" in result.stdout
    assert peft_norm(out) == pytest.approx(1.6199, abs=1e-4)
    assert relative_error(out, folder / "plain") < 1e-6


def test_a_pool_can_hold_them_where_their_layers_are_named(
    run: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, (name, config, neighbour) in enumerate(
        (
            ("ann/plain", {}, {}),
            ("bob/head", {"modules_to_save": ["lm_head"]}, HEAD),
            ("cat/older", {}, HEAD),
            ("dan/norm", {}, HEAD | {"base_model.model.model.norm.weight": np.ones(2, np.float32)}),
            ("eve/dora", {"use_dora": True}, HEAD),
        )
    ):
        files = lora_files(BASE, **config) | {"README.md": card("Mine.\n", base_model=BASE)}
        files["adapter_model.safetensors"] = safetensors_bytes(lora_tensors(seed=number) | neighbour)
        make_repo(tmp_path / "hub", name, files)
    with FaultHub(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert run("crawl", "--any-base", "--weights", "keep").exit_code == 0

        def members(*words: str) -> list[str]:
            result = run("select", "pool", "--by", "random", *words, "--replace", "--json")
            assert result.exit_code == 0, result.output
            return sorted(member["repository"] for member in json.loads(result.stdout)["members"])

        assert members("-k", "1") == ["ann/plain"]
        assert run("select", "pool", "--by", "random", "-k", "2", "--replace").exit_code != 0
        expected = ["ann/plain", "bob/head", "cat/older"]
        assert members("-k", "3", "--without", "lm_head") == expected
        assert members("-k", "4", "--without", "norm,lm_head") == [*expected, "dan/norm"]
        output = run("pool", "show", "pool").stdout
        assert "--without norm,lm_head" in " ".join(output.split())
        merge = ("merge", "pool", "--method", "average", "-o", str(tmp_path / "out"))
        refused = run(*merge)
        assert refused.exit_code != 0
        assert "--without lm_head" in " ".join(refused.stderr.split())
        done = run(*merge, "--without", "lm_head,norm")
        assert done.exit_code == 0, done.output
