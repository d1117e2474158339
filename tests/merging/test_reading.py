"""A model reads prompts as a tree only where this gives what each prompt gives alone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from merging.evaluation.generation import generate
from merging.evaluation.questions import check_reading, reads_plainly
from merging.evaluation.scores import TaskScore, evaluate
from merging.evaluation.scoring import candidate_likelihoods, entropies, likelihoods, losses
from merging.learning.course import gradients
from merging.live import LiveStack
from merging.members import load_member
from merging.model import LoadedBase, Prompt, load_base, read_task
from merging.model.reading import reading_of
from tests.merging.architectures import architecture, plain_likelihoods, some_prompts
from tests.merging.test_evaluate import ROWS, tiny_adapter
from tests.merging.tiny import save_base, tiny_base, write_task

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*falling back to its reference:UserWarning"),
]
WINDOWS = ("gemma3_text", "mistral", "qwen2", "phi3", "llama4_text")
RECURRENT = ("qwen3_next", "lfm2", "mamba", "falcon_h1", "rwkv")
# Positions by the place in the row, and no mask of four dimensions: only reading both ways tells.
OTHERS = ("mpt", "gpt_neo", "bloom")
TREES = ("llama", "gpt2", "mixtral")


def agree(base: LoadedBase, prompts: list[Prompt]) -> None:
    """Checks the likelihoods against the definition."""
    check_reading(base, prompts)
    for prompt, values in zip(prompts, likelihoods(base, prompts), strict=True):
        assert values == pytest.approx(plain_likelihoods(base, prompt), abs=1e-4)


@pytest.mark.parametrize("kind", [*WINDOWS, *RECURRENT, *OTHERS, *TREES])
def test_likelihoods_are_those_of_each_text_alone(kind: str) -> None:
    base = architecture(kind)
    agree(base, some_prompts(4, 8, 12))
    agree(base, some_prompts(6, 20, 60, seed=1))
    assert base.reading.recurrent is (kind in RECURRENT)
    assert reads_plainly(base, some_prompts(2, 30, 40)) is (kind not in TREES)


@pytest.mark.parametrize("kind", WINDOWS)
def test_prompts_within_the_window_are_read_as_a_tree(kind: str) -> None:
    base, calls = architecture(kind), []
    counted = base.model.register_forward_hook(lambda _, __, out: calls.append(out.logits.shape[0]))
    short = [replace(prompt, answers=((1, 2), (3,))) for prompt in some_prompts(6, 14, 15)]
    assert max(prompt.depth for prompt in short) == 16
    likelihoods(base, short)
    counted.remove()
    assert calls == [1]
    assert not reads_plainly(base, short)
    longer = [replace(prompt, question=(9, 9, *prompt.question)) for prompt in short]
    assert reads_plainly(base, longer)
    both = likelihoods(base, [*short, *longer])
    assert both[0] == pytest.approx(plain_likelihoods(base, short[0]), abs=1e-4)
    assert both[-1] == pytest.approx(plain_likelihoods(base, longer[-1]), abs=1e-4)


@pytest.mark.parametrize(
    ("kind", "extra", "window"),
    [
        ("llama", {}, math.inf),
        ("mistral", {"sliding_window": None}, math.inf),
        ("qwen2", {"use_sliding_window": False}, math.inf),
        ("gemma3_text", {"layer_types": ["full_attention"] * 4}, math.inf),
        ("gemma3_text", {"sliding_window": 24}, 24),
        ("llama4_text", {"attention_chunk_size": 32}, 32),
    ],
)
def test_the_configuration_says_the_window(kind: str, extra: dict[str, Any], window: float) -> None:
    assert architecture(kind, **extra).reading.window == window


def test_a_window_in_a_nested_configuration_counts() -> None:
    text = architecture("gemma3_text").model.config

    class Outer:
        def get_text_config(self) -> Any:
            return text

    class Model:
        config = Outer()

    assert reading_of(Model()).window == 16


def test_a_model_whose_window_nobody_told_is_found_out_by_length() -> None:
    base = architecture("mistral")
    base.reading.window = math.inf
    prompts = some_prompts(3, 8, 13) + some_prompts(3, 20, 60)
    agree(base, prompts)
    assert 8 <= base.reading.right <= 16 < base.reading.wrong <= 60
    assert not reads_plainly(base, prompts[:3])
    assert reads_plainly(base, prompts[3:])


def test_a_check_is_made_once_for_each_model(tmp_path: Path) -> None:
    save_base(tiny_base(), tmp_path / "tiny")
    prompts, counts = some_prompts(4, 20, 40), []
    for _ in range(2):
        base = load_base("tiny", bases=tmp_path)
        calls: list[int] = []
        base.model.register_forward_hook(lambda *_, requests=calls: requests.append(1))
        check_reading(base, prompts)
        check_reading(base, prompts[:2])
        counts.append(len(calls))
    assert counts[0] > 0
    assert counts[1] == 0
    assert len(list((tmp_path / ".reading").iterdir())) == 1
    for damaged in (tmp_path / ".reading").iterdir():
        damaged.write_text("[")
    assert load_base("tiny", bases=tmp_path).reading.right == 0


def test_a_check_that_cannot_be_kept_is_made_anew(tmp_path: Path) -> None:
    save_base(tiny_base(), tmp_path / "tiny")
    (tmp_path / ".reading").write_text("a file, where a folder would be")
    base = load_base("tiny", bases=tmp_path)
    check_reading(base, some_prompts(4, 20, 40))
    assert base.reading.right > 0


def test_weights_that_give_no_number_say_nothing_of_trees() -> None:
    base = tiny_base()
    base.model.lm_head.weight.data.fill_(float("nan"))
    check_reading(base, some_prompts(4, 20, 40))
    assert (base.reading.right, base.reading.wrong) == (0, math.inf)


def test_gradients_and_losses_are_those_of_each_text_alone() -> None:
    base = architecture("gemma3_text")
    prompts = some_prompts(3, 8, 12) + some_prompts(3, 20, 60)
    weight = base.model.model.layers[0].mlp.up_proj.weight.requires_grad_()

    def by_definition() -> torch.Tensor:
        values = []
        for prompt in prompts:
            logs = base.model(torch.tensor([prompt.question + prompt.target])).logits[0].log_softmax(-1)
            start = len(prompt.question) - 1
            values.append(
                -sum(logs[start + at, token] for at, token in enumerate(prompt.target)) / len(prompt.target)
            )
        return torch.stack(values)

    requested = by_definition()
    (expected,) = torch.autograd.grad(requested.mean(), weight)
    assert losses(base, prompts)[0].tolist() == pytest.approx(requested.tolist(), abs=1e-5)
    assert gradients(base, prompts, base.model.zero_grad) == pytest.approx(
        float(requested.detach().mean()), abs=1e-5
    )
    torch.testing.assert_close(weight.grad, expected, rtol=1e-4, atol=1e-6)


def test_entropies_read_all_answers_plainly() -> None:
    base, prompts = architecture("lfm2"), some_prompts(4, 20, 40)
    for prompt, value in zip(prompts, entropies(base, prompts)[0], strict=True):
        weights = torch.tensor(plain_likelihoods(base, prompt), dtype=torch.float64).softmax(0)
        assert float(value) == pytest.approx(float(-(weights * weights.log()).sum()), abs=1e-5)


def test_candidates_of_a_stack_are_rows_where_prompts_are_read_plainly(tmp_path: Path) -> None:
    base = architecture("mistral", num_attention_heads=4, intermediate_size=64)
    live = LiveStack(base.model, [tiny_adapter(tmp_path / "one", 1)])
    prompts = some_prompts(3, 20, 40)
    expected = []
    for weight in (0.0, 1.0):
        live.set_scales(live.scales_of([weight]))
        with live.attach():
            expected.append([plain_likelihoods(base, prompt) for prompt in prompts])
    sets = [live.scales_of([weight]) for weight in (0.0, 1.0)]
    live.set_scales({name: torch.stack([item[name] for item in sets]) for name in sets[0]}, torch.arange(2))
    with live.attach():
        result = candidate_likelihoods(base, prompts, 2)
    assert expected[0] != expected[1]
    for candidate, row in zip(result, expected, strict=True):
        for values, requested in zip(candidate, row, strict=True):
            assert values == pytest.approx(requested, abs=1e-4)


@pytest.mark.parametrize("kind", [*RECURRENT, "gemma3_text", "bloom"])
def test_generated_text_is_the_greedy_one(kind: str) -> None:
    base = architecture(kind)
    prompts = [*some_prompts(2, 9, 9), *some_prompts(2, 20, 30)]
    texts = generate(base, prompts, most=4)
    for prompt, text in zip(prompts, texts, strict=True):
        tokens = list(prompt.question)
        for _ in range(4):
            with torch.no_grad():
                tokens.append(int(base.model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
            if tokens[-1] == base.tokenizer.eos_token_id:
                break
        result = base.tokenizer.decode(tokens[len(prompt.question) :], skip_special_tokens=True)
        assert text == result.strip()


def test_only_scores_that_a_tree_would_spoil_have_another_key(tmp_path: Path) -> None:
    task = read_task(write_task(tmp_path / "choice", ROWS))
    scores = {}
    for window in (16, 400):
        base = architecture("mistral", sliding_window=window)
        (scores[window],) = evaluate(base, [], [task], limit=4)
    llama, same = (next(iter(evaluate(tiny_base(), [], [task], limit=4))) for _ in range(2))
    short, long = scores[16], scores[400]
    assert isinstance(short, TaskScore)
    assert isinstance(long, TaskScore)
    assert short.plain
    assert short.document()["plain"] is True
    assert not long.plain
    assert "plain" not in long.document()
    assert llama == same


def test_an_adapter_that_a_model_would_not_call_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from catalog.errors import MergeError

    base = architecture("mamba")
    rank = base.model.config.time_step_rank
    name = "base_model.model.backbone.layers.0.mixer.dt_proj"
    (tmp_path / "one").mkdir()
    save_file(
        {f"{name}.lora_A.weight": torch.ones(1, rank), f"{name}.lora_B.weight": torch.ones(64, 1)},
        tmp_path / "one" / "adapter_model.safetensors",
    )
    (tmp_path / "one" / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["dt_proj"]}'
    )
    with pytest.raises(MergeError, match="without calling that layer"):
        LiveStack(base.model, [load_member(tmp_path / "one")])
