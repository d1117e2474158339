"""What "all-linear" reaches in models of experts, of recurrent layers, and with names of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from catalog.errors import MergeError, UsageError
from merging.evaluation.scores import TaskScore, evaluate
from merging.learning import train
from merging.learning.variants import ALL_LINEAR, reachable
from merging.members import load_member
from merging.model import Task, budget, read_task
from tests.merging.architectures import architecture
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


def test_an_adapter_of_layers_that_are_no_linear_ones_is_one_true_sentence(
    task: Task, tmp_path: Path
) -> None:
    train(architecture("gpt2"), task, budget(task, 6), tmp_path / "out", **SETTINGS)
    (result,) = evaluate(
        architecture("gpt2"), [load_member(tmp_path / "out")], [task], limit=4, with_base=False
    )
    assert isinstance(result, MergeError)
    assert "is a Conv1D, and only linear layers" in str(result)
