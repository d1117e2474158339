"""A printed number says what it leaves out, by the crawl's reason (row 04), and what is refused is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.conftest import Program
from tests.edges.rows import row
from tests.hubs import card, lora_files, lora_tensors, make_repo, safetensors_bytes
from tests.localhub import FaultHub
from tests.merging.adapters import Q, adapter
from tests.shared_data import shared

TINY = "acme/tiny"


def omissions_by_folder(run: Program, *folders: Path) -> dict[str, dict[str, str]]:
    """What `fingerprint` says that its numbers leave out, by folder."""
    result = run("fingerprint", *map(str, folders), "--json")
    assert result.exit_code == 0, result.output
    return {Path(actual["adapter"]).name: actual["partial"] for actual in json.loads(result.stdout)}


@shared
def test_each_folder_of_the_row_names_what_its_number_leaves_out(run: Program) -> None:
    folders = [
        row("04-not-the-whole-update") / name for name in ("plain", "dora", "pissa-raw", "trained-head")
    ]
    experts = row("04-not-the-whole-update") / "experts"
    result = {name: sorted(reasons) for name, reasons in omissions_by_folder(run, *folders, experts).items()}
    assert result == {
        "plain": [],
        "dora": ["use_dora"],
        "pissa-raw": ["relative_init"],
        "trained-head": ["full_weights", "modules_to_save"],
        "experts": ["target_parameters"],
    }
    output = run("fingerprint", *map(str, folders))
    assert "leaves out" in output.stdout
    assert "modules_to_save, full_weights" in output.stdout
    assert "leave out relative_init: its update is relative to a modified base model (pissa)" in output.stderr
    assert "leaves out" not in run("fingerprint", str(folders[0])).stdout


SIBLINGS: dict[str, tuple[dict[str, Any], dict[str, torch.Tensor], list[str]]] = {
    "biases": ({"bias": "all"}, {f"{Q}.base_layer.bias": torch.ones(12)}, ["has_bias"]),
    "tokens": (
        {},
        {"model.embed_tokens.token_adapter.trainable_tokens_delta": torch.ones(1, 12)},
        ["trainable_tokens"],
    ),
    "kasa": (
        {"kasa_config": {}},
        {f"{Q}.lora_diag": torch.ones(3)},
        ["lora_variant", "relative_init", "unknown_tensor"],
    ),
    "activated": ({"alora_invocation_tokens": [1]}, {}, ["alora"]),
    "replicated": ({"layer_replication": [[0, 2], [1, 2]]}, {}, ["layer_replication"]),
    "olora": ({"init_lora_weights": "olora"}, {}, ["relative_init"]),
    "half": ({}, {"model.layers.5.self_attn.q_proj.lora_A.weight": torch.ones(3, 12)}, ["unpaired_factor"]),
    "odd": ({}, {"model.mystery": torch.ones(1)}, ["unknown_tensor"]),
    "infinite": ({}, {"x.lora_A.weight": torch.full((3, 4), torch.inf), "x.lora_B.weight": torch.ones(4, 3)},
                 ["non_finite"]),
    "velora": ({}, {f"{Q}.lora_velora_embed": torch.ones(3)}, []),
    "setting": ({"bias": "all", "modules_to_save": ["classifier"]}, {}, []),
}  # fmt: skip


@pytest.mark.parametrize("name", SIBLINGS)
def test_what_else_an_update_can_be_is_named(run: Program, tmp_path: Path, name: str) -> None:
    config, neighbour, reasons = SIBLINGS[name]
    path = adapter(tmp_path / name, **config) / "adapter_model.safetensors"
    tensors = {f"base_model.model.{tensor}": value for tensor, value in neighbour.items()}
    save_file({**load_file(path), **tensors}, path)
    assert sorted(omissions_by_folder(run, path.parent)[name]) == reasons


def test_a_module_that_is_dropped_is_named(run: Program, tmp_path: Path) -> None:
    """BD-LoRA stores one factor as blocks: the product of such a module is none that could be read."""
    path = adapter(tmp_path / "blocks", use_bdlora={"nblocks": 3}) / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors[f"base_model.model.{Q}.lora_B.weight"] = torch.ones(12, 1)
    save_file(tensors, path)
    result = omissions_by_folder(run, path.parent)["blocks"]
    assert result["lora_variant"] == "use_bdlora"
    assert Q in result["rank_mismatch"]
    assert f"{Q}: A has rank 3, B 1" in run("fingerprint", str(path.parent)).stderr.replace("\n", " ")


def test_what_peft_does_not_load_is_said(run: Program, tmp_path: Path) -> None:
    path = adapter(tmp_path / "wrapped", bias=None) / "adapter_model.safetensors"
    save_file({f"_orig_mod.{name}": value for name, value in load_file(path).items()}, path)
    (result,) = json.loads(run("fingerprint", str(path.parent), "--json").stdout)
    assert "PEFT finds none of its 8 factors under names such as _orig_mod." in result["load_problems"][0]
    assert result["load_problems"][1].endswith("bias null")
    assert result["partial"] == {}
    assert "PEFT finds none of its 8 factors" in " ".join(run("fingerprint", str(path.parent)).stderr.split())
    plain = json.loads(run("fingerprint", str(adapter(tmp_path / "plain")), "--json").stdout)
    assert plain[0]["load_problems"] == []


@pytest.fixture
def everyone(run: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """A catalog of a plain adapter, the same weights as DoRA and for another task, a pickle twice, and one
    that is like nothing else; weights were read.
    """
    weights = safetensors_bytes(lora_tensors(seed=1))
    for name, config, content in (
        ("ann/plain", {}, weights),
        ("bob/dora", {"use_dora": True}, weights),
        ("cat/classifier", {"task_type": "SEQ_CLS"}, weights),
        ("dan/other", {}, safetensors_bytes(lora_tensors(seed=2))),
    ):
        files = lora_files(TINY, **config) | {"adapter_model.safetensors": content}
        make_repo(tmp_path / "hub", name, files | {"README.md": card("Mine.\n", base_model=TINY)})
    for name in ("eve/pickle", "fay/pickle"):
        files = {**lora_files(TINY), "adapter_model.bin": b"\x80\x04 the same pickle"}
        files.pop("adapter_model.safetensors")
        make_repo(tmp_path / "hub", name, files)
    with FaultHub(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert run("crawl", "--any-base").exit_code == 0
    return run


def rows(run: Program, *words: str) -> list[dict[str, Any]]:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    document: list[dict[str, Any]] = json.loads(result.stdout)
    return document


def test_rules_decide_use_and_not_what_is_known(everyone: Program) -> None:
    result = {item["adapter"]: item for item in rows(everyone, "adapters")}
    measured = ("ann/plain", "bob/dora", "cat/classifier", "dan/other")
    assert [result[name]["verdict"] for name in measured] == ["accepted", "skipped", "skipped", "accepted"]
    assert len({result[name]["norm"] for name in measured[:3]}) == 1
    assert [result[name]["partial"] for name in measured] == [[], ["use_dora"], [], []]
    assert result["eve/pickle"]["norm"] is None
    status = json.loads(everyone("status", "--json").stdout)
    assert [status[name] for name in ("measured", "partial", "waiting")] == [4, 1, 0]
    output = everyone("show", "bob/dora").stdout
    assert "partial" in output
    assert rows(everyone, "adapters", "--where", "partial:use_dora") == [result["bob/dora"]]


def test_similar_shows_the_refused_when_asked_and_marks_them(everyone: Program) -> None:
    assert [item["adapter"] for item in rows(everyone, "similar", "ann/plain")] == ["dan/other"]
    result = rows(everyone, "similar", "ann/plain", "--verdict", "any")
    assert [item["adapter"] for item in result] == ["bob/dora", "cat/classifier", "dan/other"]
    assert [item["verdict"] for item in result] == ["skipped", "skipped", "accepted"]
    assert [item["partial"] for item in result] == [["use_dora"], [], []]
    assert "skipped" in everyone("similar", "ann/plain", "--verdict", "any").stdout
    of_dora = everyone("similar", "bob/dora")
    assert "of B A alone, without use_dora" in " ".join(of_dora.stdout.split())
    assert "bob/dora is compared without use_dora: DoRA rescales" in of_dora.stderr


def test_similar_of_a_folder_says_what_it_leaves_out(everyone: Program, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, content in lora_files(TINY, use_dora=True).items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "adapter_model.safetensors").write_bytes(safetensors_bytes(lora_tensors(seed=3)))
    result = everyone("similar", str(folder), "--json")
    assert {tuple(item["subject_partial"]) for item in json.loads(result.stdout)} == {("use_dora",)}
    assert "is compared without use_dora" in result.stderr


def test_duplicates_of_refused_adapters_are_marked(everyone: Program) -> None:
    assert rows(everyone, "duplicates") == []
    result = {item["members"][0]: item for item in rows(everyone, "duplicates", "--verdict", "any")}
    group = result["ann/plain"]
    assert group["members"] == ["ann/plain", "bob/dora", "cat/classifier"]
    assert (group["level"], group["skipped"]) == ("file", ["bob/dora", "cat/classifier"])
    assert group["partial"] == {"bob/dora": ["use_dora"]}
    assert result["eve/pickle"]["members"] == ["eve/pickle", "fay/pickle"]
    output = " ".join(everyone("duplicates", "--verdict", "any").stdout.split())
    assert "bob/dora without use_dora" in output


def test_files_are_compared_that_nobody_has_read(
    run: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = lora_files(TINY) | {"adapter_model.safetensors": safetensors_bytes(lora_tensors(seed=1))}
    for name in ("ann/one", "bob/two"):
        make_repo(tmp_path / "hub", name, files)
    with FaultHub(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert run("crawl", "--any-base", "--weights", "headers").exit_code == 0
    assert json.loads(run("status", "--json").stdout)["waiting"] == 2
    assert "2 adapters wait to be measured" in " ".join(run("status").stdout.split())
    for level in ("file", "delta"):
        (group,) = rows(run, "duplicates", "--level", level)
        assert (group["level"], group["members"]) == ("file", ["ann/one", "bob/two"])


def test_a_map_of_every_adapter_says_how_many_are_skipped(everyone: Program, tmp_path: Path) -> None:
    words = ("map", str(tmp_path / "map.svg"), "--base", TINY)
    assert "2 adapters drawn" in everyone(*words).stderr
    every = everyone(*words, "--verdict", "any", "--colour", "verdict")
    assert every.exit_code == 0, every.output
    expected = "4 adapters drawn into"
    assert expected in every.stderr
    assert "2 of them skipped by the rules, 1 of them by a part of their update" in " ".join(
        every.stderr.split()
    )
    assert "skipped" in (tmp_path / "map.svg").read_text()


def test_a_folder_that_cannot_be_read_costs_no_other(run: Program, tmp_path: Path) -> None:
    plain, null = adapter(tmp_path / "plain"), adapter(tmp_path / "null", lora_alpha=None)
    cut = adapter(tmp_path / "cut") / "adapter_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:40])
    result = run("fingerprint", str(null), str(plain), str(cut.parent), "--json")
    assert result.exit_code == 1
    assert [actual["adapter"] for actual in json.loads(result.stdout)] == [str(plain)]
    message = " ".join(result.stderr.split())
    assert f"{null} cannot be read: lora_alpha of adapter_config.json must be a number, not None." in message
    assert f"Error: {cut.parent} cannot be read: a file of 40 bytes" in message
    assert run("fingerprint", str(null), "--json").stdout == ""
