"""What "all-linear" reaches in models of experts, of recurrent layers, and with names of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from catalog.errors import MergeError, UsageError
from merging.evaluation.scores import TaskScore, evaluate
from merging.learning import train, wear_adapter
from merging.learning.gradients import linear_modules
from merging.learning.variants import ALL_LINEAR, reachable
from merging.live import LiveStack
from merging.members import load_member
from merging.model import Task, budget, read_task
from tests.merging.architectures import architecture
from tests.merging.llama import write
from tests.merging.test_evaluate import ROWS
from tests.merging.tiny import tiny_base, write_task

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
SETTINGS: Any = {"learning_rates": [1e-2], "steps": 1, "batch": 2, "rank": 2}


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return read_task(write_task(tmp_path / "tasks" / "choice", ROWS))


@pytest.mark.parametrize(
    ("kind", "trained", "untrained"),
    [
        ("mixtral", "k_proj o_proj q_proj v_proj", ["experts"]),
        ("qwen3_moe", "k_proj o_proj q_proj v_proj", ["experts"]),
        (
            "qwen3_next",
            "in_proj_ba in_proj_qkvz k_proj o_proj out_proj q_proj shared_expert_gate v_proj",
            ["down_proj", "experts", "gate_proj", "up_proj"],
        ),
        (
            "qwen2_moe",
            "down_proj gate_proj k_proj o_proj q_proj shared_expert_gate up_proj v_proj",
            ["experts"],
        ),
        ("llama4_text", "down_proj gate_proj k_proj o_proj q_proj up_proj v_proj", ["experts", "router"]),
        (
            "jamba",
            "down_proj gate_proj in_proj k_proj o_proj out_proj q_proj up_proj v_proj x_proj",
            ["dt_proj", "experts"],
        ),
        ("mamba", "in_proj x_proj", ["dt_proj", "out_proj"]),
        ("falcon_h1", "down_proj gate_proj in_proj k_proj o_proj q_proj up_proj v_proj", ["out_proj"]),
        ("bloom", "dense dense_4h_to_h dense_h_to_4h query_key_value", None),
        ("mpt", "Wqkv down_proj out_proj up_proj", None),
    ],
)
def test_default_targets_are_trained_and_the_rest_is_named(
    kind: str, trained: str, untrained: list[str] | None, task: Task, tmp_path: Path
) -> None:
    report = train(architecture(kind), task, budget(task, 6), tmp_path / "out", **SETTINGS)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == trained.split()
    assert not config["target_parameters"]
    assert report.record.get("untrained") == untrained
    base, adapter = evaluate(architecture(kind), [load_member(tmp_path / "out")], [task], limit=4)
    assert isinstance(base, TaskScore)
    assert isinstance(adapter, TaskScore)
    assert adapter.loss != base.loss


def test_plain_models_are_left_to_peft() -> None:
    assert reachable(tiny_base().model) == (ALL_LINEAR, ())


@pytest.mark.parametrize(
    ("kind", "targets", "sentence"),
    [
        (
            "mixtral",
            ["w1", "w2", "w3"],
            "experts of this model are tensors of three dimensions .*name its other",
        ),
        (
            "qwen3_moe",
            ["q_proj", "gate_proj", "up_proj"],
            "experts of this model are tensors of three dimensions",
        ),
        ("mamba", ["out_proj"], "'out_proj' is incompatible with Mamba-based models"),
        ("mamba", ["q_proj"], "q_proj.* not found in the base model"),
    ],
)
def test_targets_that_cannot_be_trained_are_one_true_sentence(
    kind: str, targets: list[str], sentence: str, task: Task, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=sentence):
        train(architecture(kind), task, budget(task, 6), tmp_path / "out", targets=targets, **SETTINGS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "layer", "sentence"),
    [
        ("jamba", "mamba.dt_proj", "reads the weights of .*dt_proj without calling that layer"),
        (
            "llama4_text",
            "router",
            "router of the base model chooses experts and returns more than",
        ),
    ],
)
def test_layers_that_no_adapter_reaches_are_refused(
    kind: str, layer: str, sentence: str, tmp_path: Path
) -> None:
    base = architecture(kind)
    names = [name for name, _ in base.model.named_modules() if name.endswith(layer)]
    assert names
    assert not set(names) & set(linear_modules(base.model))
    member = write(tmp_path / "out", base.model, 0, targets=(layer.rpartition(".")[2],))
    with pytest.raises(MergeError, match=sentence):
        LiveStack(base.model, [member])


def test_layers_of_single_experts_are_named_where_experts_are_one_tensor(tmp_path: Path) -> None:
    write(tmp_path / "out", tiny_base().model, 0, targets=("q_proj",))
    file = tmp_path / "out" / "adapter_model.safetensors"
    expert = "block_sparse_moe.experts.0.w1"
    tensors = {name.replace("self_attn.q_proj", expert): item for name, item in load_file(file).items()}
    save_file(tensors, file)
    member = load_member(tmp_path / "out")
    with pytest.raises(MergeError, match=r"w1 is a layer of one expert, .*out is loaded by plain PEFT"):
        LiveStack(architecture("mixtral").model, [member])
    with pytest.raises(MergeError, match="belongs to another model"):
        LiveStack(tiny_base().model, [member])


def test_transposed_layers_of_gpt2_are_adapted_as_peft_does(task: Task, tmp_path: Path) -> None:
    train(architecture("gpt2"), task, budget(task, 6), tmp_path / "out", **SETTINGS)
    grow(tmp_path / "out")
    tokens, member = torch.arange(3, 23).reshape(2, 10), load_member(tmp_path / "out")
    mask, base = torch.ones_like(tokens), architecture("gpt2")

    def logits() -> torch.Tensor:
        with torch.no_grad():
            result: torch.Tensor = base.model(tokens, attention_mask=mask, use_cache=False).logits
        return result

    plain = logits()
    with wear_adapter(base, tmp_path / "out"):
        expected = logits()
    assert float((expected - plain).abs().max()) > 0.1
    live = LiveStack(base.model, [member])
    with live.attach():
        assert torch.allclose(logits(), expected, atol=1e-5)
    with live.dense(live.scales_of([1.0])):
        assert torch.allclose(logits(), expected, atol=1e-5)
    assert torch.equal(logits(), plain)
    assert len(linear_modules(base.model)) == 8


def grow(folder: Path) -> None:
    """Gives the B factors of an adapter the size of its A factors."""
    tensors = load_file(folder / "adapter_model.safetensors")
    torch.manual_seed(0)
    grown = {name: torch.randn_like(item.float()) * 0.2 for name, item in sorted(tensors.items())}
    save_file(grown, folder / "adapter_model.safetensors")


def test_an_adapter_of_layers_that_are_no_linear_ones_is_one_true_sentence(tmp_path: Path) -> None:
    base = tiny_base()
    base.model.model.layers[0].mlp.up_proj = torch.nn.Conv1d(32, 64, 1)
    member = write(tmp_path / "out", tiny_base().model, 0, targets=("up_proj",))
    with pytest.raises(MergeError, match="up_proj of the base model is a Conv1d, and only linear layers"):
        LiveStack(base.model, [member])
