"""DoRA and factors of experts are applied by PEFT's own layers, alone, and the base is what it was before."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

import loradex
from catalog.errors import LoradexError, MergeError
from merging.evaluation import Sampler, TaskScore
from merging.evaluation.scores import evaluate
from merging.learning import Continuation, adapt
from merging.learning.course import valid_loss
from merging.live import LiveStack, apply_with_peft, calm
from merging.members import load_member, load_members
from merging.model import LoadedBase, Task, budget, encode, read_task
from tests.merging.architectures import architecture
from tests.merging.test_evaluate import ROWS, tiny_adapter
from tests.merging.tiny import tiny_base, write_task

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
LLAMA = ["q_proj", "v_proj", "down_proj"]
QUESTION = torch.arange(3, 35).reshape(2, 16)


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return read_task(write_task(tmp_path / "tasks" / "choice", ROWS))


def logits(base: LoadedBase) -> Tensor:
    with torch.no_grad():
        result: Tensor = base.model(QUESTION, use_cache=False).logits
    return result


def write_dora(folder: Path, base: LoadedBase, seed: int = 0, **options: Any) -> Tensor:
    """Saves an adapter by PEFT, of random factors and magnitudes; the logits that plain PEFT has with it.

    Changes the base model.
    """
    settings = {"r": 3, "lora_alpha": 6, "use_dora": True, "target_modules": LLAMA, **options}
    torch.manual_seed(seed)
    with calm():
        model = get_peft_model(base.model, LoraConfig(task_type="CAUSAL_LM", **settings))
        for name, item in model.named_parameters():
            if "lora_magnitude" in name:
                item.data *= 1 + 0.1 * torch.randn_like(item)
            elif "lora_" in name:
                item.data = torch.randn_like(item) * 0.2
        model.save_pretrained(folder, save_embedding_layers=False)
        again = PeftModel.from_pretrained(model.unload(), folder)
    assert again.peft_config["default"].use_dora == settings["use_dora"]
    return logits(base)


def gpt2() -> LoadedBase:
    return architecture("gpt2")


def coarse() -> LoadedBase:
    return tiny_base(dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("make_base", "options"),
    [
        (tiny_base, {}),
        (tiny_base, {"r": 8, "lora_alpha": 3, "use_rslora": True}),
        (tiny_base, {"r": 1, "target_modules": "all-linear"}),
        (tiny_base, {"rank_pattern": {"q_proj": 5, r"layers\.1\..*v_proj": 2}, "alpha_pattern": {"down": 1}}),
        (tiny_base, {"target_modules": ["q_proj", "embed_tokens"]}),
        (coarse, {}),
        (gpt2, {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
        (gpt2, {"target_modules": ["c_attn", "c_proj"], "rank_pattern": {"mlp.c_proj": 7}}),
    ],
)
def test_logits_are_those_of_plain_peft_and_the_base_is_restored(
    tmp_path: Path, make_base: Callable[[], LoadedBase], options: dict[str, Any]
) -> None:
    expected = write_dora(tmp_path / "dora", make_base(), **options)
    member = load_member(tmp_path / "dora", purpose="evaluated", peft_layers=True)
    base = make_base()
    plain, state = logits(base), {name: item.clone() for name, item in base.model.state_dict().items()}
    kinds = [(name, type(module)) for name, module in base.model.named_modules()]
    with apply_with_peft(base.model, member):
        assert torch.equal(logits(base), expected)
    assert not torch.equal(plain, expected)
    assert torch.equal(logits(base), plain)
    assert [(name, type(module)) for name, module in base.model.named_modules()] == kinds
    assert all(torch.equal(item, state[name]) for name, item in base.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert not hasattr(base.model, "peft_config")


def test_factors_that_were_written_elsewhere_are_found(tmp_path: Path) -> None:
    expected = write_dora(tmp_path / "dora", tiny_base())
    file = tmp_path / "dora" / "adapter_model.safetensors"
    tensors = load_file(file)
    renamed = {
        name.replace("base_model.model.", "module.base_model.model.").replace(
            "magnitude_vector", "magnitude_vector.default.weight"
        ): item
        for name, item in tensors.items()
    }
    save_file(renamed, file)
    base = tiny_base()
    with apply_with_peft(base.model, load_member(tmp_path / "dora", peft_layers=True)):
        assert torch.equal(logits(base), expected)


def test_scores_of_many_adapters_in_sequence(tmp_path: Path, task: Task) -> None:
    write_dora(tmp_path / "one", tiny_base(), 1)
    write_dora(tmp_path / "two", tiny_base(), 2, r=2)
    tiny_adapter(tmp_path / "plain", 3, size=0.2)
    members = [load_member(tmp_path / name, peft_layers=True) for name in ("one", "plain", "two", "one")]
    base, log = tiny_base(), tmp_path / "log.jsonl"
    state = {name: item.clone() for name, item in base.model.state_dict().items()}
    scores = list(evaluate(base, members, [task], limit=6, log=log))
    losses: dict[str, list[float]] = {}
    for score in scores:
        assert isinstance(score, TaskScore)
        losses.setdefault(score.adapter, []).append(score.loss)
    assert [(name, len(values)) for name, values in losses.items()] == [
        ("base", 1),
        ("plain", 1),
        ("one", 2),
        ("two", 1),
    ]
    assert len(set(losses["one"])) == 1
    assert len({values[0] for values in losses.values()}) == 4
    assert all(torch.equal(item, state[name]) for name, item in base.model.state_dict().items())
    again = list(evaluate(base, members, [task], limit=6, log=log))
    assert {score.key for score in again} == {score.key for score in scores}  # type: ignore[union-attr]


def test_layers_are_freed_when_the_block_ends(tmp_path: Path) -> None:
    write_dora(tmp_path / "dora", tiny_base())
    base, member = tiny_base(), load_member(tmp_path / "dora", peft_layers=True)
    with apply_with_peft(base.model, member):
        layers = [weakref.ref(module) for module in base.model.modules() if hasattr(module, "lora_A")]
    assert len(layers) == 6
    gc.collect()
    assert [layer() for layer in layers] == [None] * 6


def test_a_race_measures_dora_too(tmp_path: Path, task: Task) -> None:
    write_dora(tmp_path / "dora", tiny_base())
    tiny_adapter(tmp_path / "plain", 3, size=0.2)
    members = {name: load_member(tmp_path / name, peft_layers=True) for name in ("dora", "plain")}
    sampler = Sampler(tiny_base(), task, members.__getitem__)
    assert all(score is not None for score in sampler(["dora", "plain", "dora"], 3))
    assert sampler.spent == 9
    assert not sampler.left_out


def test_what_adds_updates_refuses_dora_in_one_sentence(tmp_path: Path, task: Task) -> None:
    write_dora(tmp_path / "dora", tiny_base())
    tiny_adapter(tmp_path / "plain", 3, size=0.2)
    with pytest.raises(MergeError, match="dora cannot be merged: DoRA rescales the base weights"):
        load_members([tmp_path / "plain", tmp_path / "dora"])
    members = [load_member(tmp_path / name, peft_layers=True) for name in ("plain", "dora")]
    with pytest.raises(MergeError, match=r"dora cannot be merged or weighted: DoRA .*evaluate it alone"):
        load_members(members)
    with pytest.raises(MergeError, match="evaluate it alone"):
        LiveStack(tiny_base().model, members)
    with pytest.raises(MergeError, match=r"dora cannot be adapted by recycling: DoRA .*evaluate it alone"):
        adapt(tiny_base(), members, task, budget(task, 6), "recycling")


def test_a_target_is_trained_on_and_written_as_dora(tmp_path: Path, task: Task) -> None:
    make_base = tiny_base
    write_dora(tmp_path / "dora", make_base(), rank_pattern={"q_proj": 5})
    base, target = make_base(), load_member(tmp_path / "dora", peft_layers=True)
    plain, start = logits(base), load_file(tmp_path / "dora" / "adapter_model.safetensors")
    options: Any = {"target": target, "steps": 6, "rate": 1e-2, "batch": 4, "evaluate_every": 2}
    result = adapt(base, [], task, budget(task, 10), "target-continued", **options)
    assert isinstance(result, Continuation)
    assert result.valid_loss < result.valid_before
    with apply_with_peft(base.model, target):
        prompts = encode(base.tokenizer, task, budget(task, 10).valid, base.limit)
        assert valid_loss(base, prompts) == pytest.approx(result.valid_before)
    with result.apply():
        assert valid_loss(base, prompts) == pytest.approx(result.valid_loss, abs=1e-6)
        expected = logits(base)
    result.write(tmp_path / "out")
    assert torch.equal(logits(base), plain)
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert written.keys() == start.keys()
    kinds = {
        kind
        for name in written
        for kind in ("lora_A", "lora_B", "magnitude")
        if kind in name and not torch.equal(written[name], start[name])
    }
    assert kinds == {"lora_A", "lora_B", "magnitude"}
    record = json.loads((tmp_path / "out" / "adapt.json").read_text())
    assert record["target"] == "dora"
    assert record["course"]["valid_loss"] == result.valid_loss
    with calm():
        PeftModel.from_pretrained(base.model, tmp_path / "out")
    assert torch.equal(logits(base), expected)
    with pytest.raises(MergeError, match="keeps its ranks"):
        result.write(tmp_path / "other", rank=2)
    with pytest.raises(MergeError, match=r"by target-rescaled: DoRA .*train it on by target-continued"):
        adapt(make_base(), [], task, budget(task, 10), "target-rescaled", target=target)


def test_the_library_scores_what_it_has_written(tmp_path: Path, task: Task) -> None:
    write_dora(tmp_path / "dora", tiny_base())
    options: Any = {"method": "target-continued", "samples": 10, "steps": 2, "split": "test"}
    report = loradex.adapt([], tiny_base(), task, target=tmp_path / "dora", out=tmp_path / "out", **options)
    assert report.folder == tmp_path / "out"
    assert report.score is not None
    scores = loradex.evaluate(tiny_base(), task, [tmp_path / "out"], without_base=True)
    assert [row.loss for row in scores] == [pytest.approx(report.score.loss)]


def without(tensors: dict[str, Tensor], document: dict[str, Any]) -> None:
    del tensors[next(name for name in tensors if "magnitude" in name)]


def too_short(tensors: dict[str, Tensor], document: dict[str, Any]) -> None:
    name = next(name for name in tensors if "magnitude" in name)
    tensors[name] = tensors[name][:-1].clone()


def of_integers(tensors: dict[str, Tensor], document: dict[str, Any]) -> None:
    name = next(name for name in tensors if "magnitude" in name)
    tensors[name] = tensors[name].int()


def plain_config(tensors: dict[str, Tensor], document: dict[str, Any]) -> None:
    document["use_dora"] = False


def no_magnitudes(tensors: dict[str, Tensor], document: dict[str, Any]) -> None:
    for name in [name for name in tensors if "magnitude" in name]:
        del tensors[name]


def a_bias(tensors: dict[str, Tensor], document: dict[str, Any]) -> None:
    tensors["base_model.model.model.layers.0.self_attn.q_proj.bias"] = torch.zeros(32)
    document["bias"] = "lora_only"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without, "magnitude vector of .*layers.0.mlp.down_proj is absent, not one number for each output"),
        (too_short, r"magnitude vector of .*down_proj is F32 of \[31\], not one number"),
        (of_integers, r"magnitude vector of .*down_proj is I32 of \[32\], not one number"),
        (plain_config, "DoRA rescales the base weights by learned magnitudes"),
        (no_magnitudes, "DoRA rescales the base weights by learned magnitudes"),
        (a_bias, "it trains biases of the base model"),
    ],
)
def test_what_is_not_whole_dora_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], None], sentence: str
) -> None:
    folder = tmp_path / "dora"
    write_dora(folder, tiny_base())
    tensors = load_file(folder / "adapter_model.safetensors")
    document = json.loads((folder / "adapter_config.json").read_text())
    change(tensors, document)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(document))
    with pytest.raises(MergeError, match=f"dora cannot be evaluated: .*{sentence}"):
        load_member(folder, purpose="evaluated", peft_layers=True)


@pytest.mark.parametrize(
    ("make_base", "sentence"),
    [
        (lambda: tiny_base(hidden=16), "use the model that it was trained on"),
        (gpt2, "belongs to another model"),
    ],
)
def test_another_base_is_an_error_of_the_adapter(
    tmp_path: Path, task: Task, make_base: Callable[[], LoadedBase], sentence: str
) -> None:
    write_dora(tmp_path / "dora", tiny_base())
    member = load_member(tmp_path / "dora", peft_layers=True)
    (error,) = evaluate(make_base(), [member], [task], limit=4, with_base=False)
    assert isinstance(error, LoradexError)
    assert sentence in str(error)


def test_values_that_are_not_finite_and_torn_files_are_errors_of_the_adapter(
    tmp_path: Path, task: Task
) -> None:
    write_dora(tmp_path / "dora", tiny_base())
    write_dora(tmp_path / "torn", tiny_base())
    file = tmp_path / "dora" / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors[next(name for name in tensors if "magnitude" in name)][3] = torch.nan
    save_file(tensors, file)
    members = [load_member(tmp_path / name, peft_layers=True) for name in ("dora", "torn")]
    file = tmp_path / "torn" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    base = tiny_base()
    plain = logits(base)
    first, second = evaluate(base, members, [task], limit=4, with_base=False)
    assert "contains NaN or infinity" in str(first)
    assert "truncated" in str(second)
    assert torch.equal(logits(base), plain)


EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("mixtral", {"target_modules": ["q_proj"], "target_parameters": EXPERTS}),
        ("mixtral", {"target_modules": [], "target_parameters": EXPERTS[1:], "use_rslora": True}),
        (
            "gpt_oss",
            {"target_modules": ["o_proj"], "target_parameters": EXPERTS, "rank_pattern": {"o_proj": 1}},
        ),
        ("qwen3_moe", {"target_modules": ["v_proj"], "target_parameters": ["0.mlp.experts.gate_up_proj"]}),
    ],
)
def test_factors_of_stacked_experts_are_applied_as_peft_does(
    tmp_path: Path, task: Task, kind: str, options: dict[str, Any]
) -> None:
    folder = tmp_path / "experts"
    expected = write_dora(folder, architecture(kind), use_dora=False, **options)
    with pytest.raises(MergeError, match="it adapts parameters, not modules"):
        load_member(folder)
    base, member = architecture(kind), load_member(folder, peft_layers=True)
    plain, state = logits(base), {name: item.clone() for name, item in base.model.state_dict().items()}
    names = [(name, type(module)) for name, module in base.model.named_modules()]
    with apply_with_peft(base.model, member):
        assert torch.equal(logits(base), expected)
    assert not torch.allclose(plain, expected, atol=1e-2)
    assert torch.equal(logits(base), plain)
    assert [(name, type(module)) for name, module in base.model.named_modules()] == names
    assert all(torch.equal(item, state[name]) for name, item in base.model.state_dict().items())
    with pytest.raises(MergeError, match="it adapts parameters, not modules, and only updates"):
        LiveStack(base.model, [member])
    plain_score, score = evaluate(base, [member], [task], limit=2)
    assert isinstance(plain_score, TaskScore)
    assert isinstance(score, TaskScore)
    assert score.loss != plain_score.loss


def test_experts_of_another_model_are_refused(tmp_path: Path) -> None:
    options = {"use_dora": False, "target_modules": ["q_proj"], "target_parameters": EXPERTS}
    write_dora(tmp_path / "experts", architecture("mixtral"), **options)
    member = load_member(tmp_path / "experts", peft_layers=True)
    wide = architecture("mixtral", intermediate_size=64).model
    for model, sentence in ((tiny_base().model, "has no parameter"), (wide, "does not match the factors")):
        with pytest.raises(MergeError, match=sentence), apply_with_peft(model, member):
            pass
