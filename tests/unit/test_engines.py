"""Engines: features of an adapter's files, and what the table of rules makes of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import loradex
from catalog.adapters import FEATURES, engine_facts, load_engines, parse_config, verdicts
from catalog.errors import NotFoundError, UsageError
from tests.shared_data import SHARED, data, shared
from tools import documents

HEAD = 'format = "loradex-engines/1"\n'
SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def adapter(
    folder: Path,
    kinds: Mapping[int, Iterable[str]] | Iterable[str] = SEVEN,
    *,
    ranks: Mapping[str, int] | None = None,
    extra: Mapping[str, torch.Tensor] | None = None,
    prefix: str = "base_model.model.",
    **config: Any,
) -> Path:
    """An adapter of an unknown base with these kinds of modules in two layers, or in the layers named."""
    layers = kinds if isinstance(kinds, Mapping) else dict.fromkeys((0, 1), tuple(kinds))
    rank = config.get("r", 16)
    tensors = dict(extra or {})
    for layer, names in layers.items():
        for name in names:
            own = (ranks or {}).get(name, rank)
            part = "self_attn" if name[0] in "qkvo" else "mlp"
            stem = f"{prefix}model.layers.{layer}.{part}.{name}"
            tensors[f"{stem}.lora_A.weight"] = torch.ones(own, 4)
            tensors[f"{stem}.lora_B.weight"] = torch.ones(4, own)
    document = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 32,
        "base_model_name_or_path": "someone/base",
        "target_modules": sorted({name for names in layers.values() for name in names}),
        "task_type": "CAUSAL_LM",
        **config,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(document))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def running(folder: Path) -> set[str]:
    return {row.engine for row in loradex.runs_in(folder) if row.runs}


def test_the_portable_form_runs_in_every_engine_but_ollama(tmp_path: Path) -> None:
    names = {engine.name for engine in load_engines()}
    assert running(adapter(tmp_path, r=16)) == names - {"ollama"}


@pytest.mark.parametrize(
    ("settings", "lost"),
    [
        ({"use_rslora": True}, {"sglang", "llama.cpp", "lmdeploy"}),
        ({"use_dora": True}, {"vllm", "sglang", "llama.cpp", "lmdeploy", "tgi", "lorax"}),
        ({"r": 24}, {"tgi", "lorax"}),
        ({"r": 4}, {"tgi", "lorax"}),
        ({"r": 528}, {"vllm"}),
        ({"bias": "all"}, {"vllm"}),
        ({"modules_to_save": ["classifier"]}, {"vllm"}),
        ({"target_modules": ".*_proj"}, {"sglang", "lmdeploy"}),
        (
            {"init_lora_weights": "pissa"},
            {"vllm", "sglang", "llama.cpp", "lmdeploy", "tgi", "lorax", "tensorrt-llm"},
        ),
        (
            {"alpha_pattern": {"q_proj": 8}},
            {"sglang", "llama.cpp", "lmdeploy", "tgi", "lorax", "tensorrt-llm"},
        ),
        ({"r": 1, "use_rslora": True}, {"tgi", "lorax"}),
        ({"lora_dropout": None}, {"peft", "mergekit"}),
    ],
)
def test_settings_that_engines_do_not_share_with_peft(
    tmp_path: Path, settings: dict[str, Any], lost: set[str]
) -> None:
    names = {engine.name for engine in load_engines()}
    assert running(adapter(tmp_path, **settings)) == names - {"ollama"} - lost


@pytest.mark.parametrize(
    ("kinds", "feature"),
    [
        (("q_proj",), "part_of_qkv"),
        (("q_proj", "k_proj"), "part_of_qkv"),
        (("v_proj",), "part_of_qkv"),
        (("q_proj", "v_proj"), None),
        (("up_proj",), "up_without_gate"),
        (("gate_proj",), None),
        ({1: ("q_proj", "v_proj")}, "uneven_layers"),
        ({0: ("q_proj", "v_proj"), 1: SEVEN}, "uneven_layers"),
        ({0: ("q_proj", "k_proj", "v_proj"), 1: ("q_proj",)}, "part_of_qkv"),
    ],
)
def test_modules_of_each_layer(tmp_path: Path, kinds: Any, feature: str | None) -> None:
    shape = {"part_of_qkv", "up_without_gate", "uneven_layers"} & set(facts_of(adapter(tmp_path, kinds)))
    assert (feature in shape) if feature else not shape


def test_several_ranks_are_told_by_kind_of_module(tmp_path: Path) -> None:
    pattern = {"q_proj": 8}
    by_kind = adapter(tmp_path / "a", ranks=pattern, rank_pattern=pattern, alpha_pattern={"q_proj": 16})
    assert "mixed_ranks_of_a_kind" not in facts_of(by_kind)
    # alpha over the tensor's rank is right by neither value of alpha
    assert {"mixed_ranks", "scale_of_tensors"} <= set(facts_of(by_kind))
    assert {"tgi", "lorax"} <= running(by_kind)
    assert "scale_of_config" not in facts_of(by_kind)


def test_names_other_than_those_of_peft_run_nowhere_until_they_are_written_anew(tmp_path: Path) -> None:
    rows = loradex.runs_in(adapter(tmp_path, prefix="module.base_model.model."))
    assert not any(row.runs for row in rows)
    assert {remedy for row in rows for remedy in row.remedies} == {"normalise", "gguf"}


def test_whole_weights_beside_the_factors(tmp_path: Path) -> None:
    folder = adapter(tmp_path, extra={"base_model.model.lm_head.weight": torch.ones(4, 4)})
    assert running(folder) == {"peft", "mergekit"}


@pytest.mark.parametrize(
    ("rank", "option"), [(16, ""), (20, "--max-lora-rank 32"), (300, "--max-lora-rank 320")]
)
def test_vllm_is_started_with_a_rank_that_it_offers(tmp_path: Path, rank: int, option: str) -> None:
    (row,) = (row for row in loradex.runs_in(adapter(tmp_path, r=rank)) if row.engine == "vllm")
    assert (row.runs, row.option) == (True, option)


def test_without_the_weights_file_nothing_is_said_to_run() -> None:
    plain = parse_config(b'{"peft_type": "LORA", "r": 16, "lora_alpha": 32, "target_modules": ["q_proj"]}')
    assert {row.runs for row in verdicts(engine_facts(plain), load_engines()) if row.engine != "ollama"} == {
        None
    }
    dora = parse_config(b'{"peft_type": "LORA", "r": 16, "lora_alpha": 32, "use_dora": true}')
    by_name = {row.engine: row for row in verdicts(engine_facts(dora), load_engines())}
    assert (by_name["vllm"].runs, by_name["vllm"].remedies) == (False, ("fold",))
    assert by_name["peft"].runs is None


def test_every_feature_of_a_rule_is_explained_and_every_engine_names_its_source() -> None:
    assert {rule.when for engine in load_engines() for rule in engine.rules} <= set(FEATURES)
    assert all(engine.version and engine.source.startswith("github.com/") for engine in load_engines())


def test_newer_rules_in_the_data_folder_take_the_place_of_the_programs(tmp_path: Path) -> None:
    catalog = loradex.open(tmp_path)
    own = f'{HEAD}[[engine]]\nname = "vllm"\ntitle = "vLLM"\nversion = "9"\nsource = "x"\n'
    rule = 'rule = [{when = "use_dora", effect = "refuses", text = "no"}]\n'
    (tmp_path / "engines.toml").write_text(own + rule)
    folder = adapter(tmp_path / "adapter", use_dora=True)
    assert [(row.engine, row.reasons) for row in loradex.runs_in(folder, catalog)] == [("vllm", ("no",))]
    assert [row.version for row in loradex.engines(catalog)] == ["9"]


def test_a_named_table_of_rules_is_used_wherever_rules_are(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    rule = 'rule = [{when = "up_without_gate", effect = "drops", text = "wants gates"}]\n'
    file.write_text(f'{HEAD}[[engine]]\nname = "mine"\ntitle = "Mine"\nversion = "9"\nsource = "x"\n{rule}')
    catalog = loradex.open(tmp_path / "data", engines=file)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "engines.toml").write_text("not this one")
    folder = adapter(tmp_path / "a", ("up_proj",), r=32)
    assert [row.engine for row in loradex.runs_in(folder, catalog)] == ["mine"]
    report = loradex.merge([folder], "sum", out=tmp_path / "merged", catalog=catalog)
    assert report.misread == ("Mine wants gates.",)
    card = (report.folder / "README.md").read_text()
    assert "Mine wants gates." in card
    assert "vllm serve" in card
    assert "--max-lora-rank" not in card
    assert loradex.normalise(folder, out=tmp_path / "n", catalog=catalog).misread == report.misread


@pytest.mark.parametrize(
    "call",
    [
        lambda catalog, folder: loradex.engines(catalog),
        lambda catalog, folder: loradex.runs_in(folder, catalog),
        lambda catalog, folder: loradex.normalise(folder, out=folder / "out", catalog=catalog),
        lambda catalog, folder: loradex.merge([folder], "sum", out=folder / "out", catalog=catalog),
        lambda catalog, folder: catalog.adapters("runs:vllm"),
        lambda catalog, folder: catalog.select("p", by="random", k=1, where="runs:vllm"),
    ],
)
def test_a_missing_or_bad_table_is_one_sentence_before_anything_is_done(tmp_path: Path, call: Any) -> None:
    folder = adapter(tmp_path / "a")
    with pytest.raises(NotFoundError, match=r"rules\.toml does not exist"):
        call(loradex.open(tmp_path, engines=tmp_path / "rules.toml"), folder)
    (tmp_path / "rules.toml").write_text("x = ")
    with pytest.raises(UsageError, match="is not a table of engines"):
        call(loradex.open(tmp_path, engines=tmp_path / "rules.toml"), folder)
    assert not (folder / "out").exists()


def test_layers_of_two_towers_are_not_mixed(tmp_path: Path) -> None:
    """A vision tower that adapts q and v, and a text tower that adapts up and down, have whole groups."""
    stems = [
        f"base_model.model.vision.layers.{n}.attn.{name}" for n in (0, 1) for name in ("q_proj", "k_proj")
    ]
    vision = {f"{stem}.lora_{side}.weight": torch.ones(16, 16) for stem in stems for side in "AB"}
    whole = {key.replace("k_proj", "v_proj"): value for key, value in vision.items()}
    features = {"part_of_qkv", "uneven_layers"}
    names = ["q_proj", "k_proj", "v_proj"]
    both = adapter(tmp_path / "a", dict.fromkeys((0, 1), ("v_proj",)), extra=vision, target_modules=names)
    assert "part_of_qkv" in facts_of(both)
    apart = adapter(tmp_path / "b", dict.fromkeys(range(4), ("o_proj",)), extra=whole, target_modules=names)
    assert not features & set(facts_of(apart))


NO_RULE = 'rule = [{when = "no_such", effect = "refuses", text = ""}]\n'
ENGINE = '[[engine]]\nname = "a"\nversion = ""\nsource = ""\n'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "format = 1",
        f"{HEAD}engine = 3",
        f'{HEAD}engine = ["x"]',
        f'{HEAD}[[engine]]\nname = "a"\n',
        f"{HEAD}{ENGINE}title = 1\n",
        f'{HEAD}[[engine]]\nname = "a b"\ntitle = ""\nversion = ""\nsource = ""\n',
        f'{HEAD}{ENGINE}title = ""\n{ENGINE.replace("a", "A", 1)}title = ""\n',
        f'{HEAD}{ENGINE}title = ""\n{NO_RULE}',
        "\x00",
    ],
)
def test_a_file_that_is_no_table_of_engines_is_one_sentence(tmp_path: Path, text: str) -> None:
    file = tmp_path / "engines.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match="is not a table of engines"):
        load_engines(file)


@shared
def test_cases_of_dora_and_of_the_ranks_of_a_merge() -> None:
    assert SHARED is not None
    cases = SHARED / "cases"
    assert "vllm" not in running(cases / "08-dora" / "dora")
    assert "vllm" in running(cases / "08-dora" / "plain")
    assert running(cases / "16-ranks-of-a-merge" / "rslora-16") == {
        *("peft", "vllm", "tgi", "lorax", "tensorrt-llm", "mergekit")
    }


@shared
def test_the_page_on_engines_has_the_counts_of_the_wild_configurations() -> None:
    text = documents.ENGINES.read_text(encoding="utf-8")
    filled = documents.fill(text, {"wild": lambda: documents.engine_counts(data("wild"))})
    assert filled == text, "run tools.documents.engine_counts over the folder, and put the table in its place"


def facts_of(folder: Path) -> tuple[str, ...]:
    from catalog.adapters import read_folder

    stored = read_folder(folder)
    return engine_facts(stored.config, stored.spec).features
