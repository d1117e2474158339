"""Log-likelihoods from trees are those of each text alone, and the same whatever is packed with it."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.errors import EvaluationError
from merging.evaluation.generation import generate
from merging.evaluation.scoring import (
    answer_margins,
    candidate_likelihoods,
    entropies,
    greedy_likelihoods,
    likelihoods,
    losses,
    mean_loss,
    right_answers,
    targets_only,
)
from merging.evaluation.trees import pack_prompts, tree_of
from merging.model import LoadedBase, Prompt, ReadingMode
from tests.merging.tiny import tiny_base

BASE = tiny_base(dtype=torch.float64)


def alone(base: LoadedBase, prompt: Prompt) -> list[float]:
    """The definition: one row a text, no mask, no sharing."""
    result = []
    for answer in prompt.answers:
        tokens = torch.tensor([prompt.question + answer])
        logs = base.model(tokens).logits[0].log_softmax(-1)
        start = len(prompt.question) - 1
        result.append(sum(float(logs[start + at, token]) for at, token in enumerate(answer)))
    return result


def some_prompts(count: int, seed: int) -> list[Prompt]:
    draw = random.Random(seed)
    shared = [draw.randrange(256) for _ in range(7)]
    prompts = []
    for _ in range(count):
        question = (*shared[: draw.randint(1, 7)], *(draw.randrange(256) for _ in range(draw.randint(0, 6))))
        answers = [
            tuple(draw.randrange(4) for _ in range(draw.randint(1, 4))) for _ in range(draw.randint(1, 4))
        ]
        prompts.append(Prompt(question, tuple(answers), draw.randrange(len(answers))))
    return prompts


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 8), seed=st.integers(0, 10_000), width=st.integers(1, 80))
def test_every_answer_gets_the_likelihood_that_it_has_alone(count: int, seed: int, width: int) -> None:
    prompts = some_prompts(count, seed)
    result = likelihoods(BASE, prompts, width=width)
    for prompt, values in zip(prompts, result, strict=True):
        assert values == pytest.approx(alone(BASE, prompt), abs=2e-5)


@pytest.mark.parametrize("in_trees", [True, False])
def test_an_answer_is_greedy_where_each_token_is_the_most_likely(in_trees: bool) -> None:
    base = tiny_base(dtype=torch.float64)
    base.reading.learn(40 if in_trees else 0, in_trees)
    prompts = []
    for prompt in some_prompts(6, 3):
        tokens = [*prompt.question]
        for _ in range(3):
            tokens.append(int(base.model(torch.tensor([tokens])).logits[0, -1].argmax()))
        likely = tuple(tokens[-3:])
        unlike = (*likely[:2], (likely[2] + 1) % 256)
        prompts.append(Prompt(prompt.question, (likely, unlike, likely[:1], *prompt.answers), 0))
    result = greedy_likelihoods(base, prompts)
    assert [[greedy for _, greedy in values[:3]] for values in result] == [[True, False, True]] * 6
    sums = [[value for value, _ in values] for values in result]
    assert sums == [pytest.approx(values) for values in likelihoods(base, prompts)]


def test_the_first_answer_of_a_likely_word_is_chosen() -> None:
    prompts = [Prompt((1,), ((2, 3), (4,)), 1), Prompt((1,), ((4,), (2, 3)), 1)]
    result = [(-3.0, -1.0), (-2.0, -2.0)]
    assert right_answers(prompts, result) == [True, False]
    # log p of the best other answer minus the right one's.
    assert answer_margins(prompts, result) == [-2.0, 0.0]
    # (1 nat over one token + 2 nats over two tokens) / 2
    assert mean_loss(prompts, result) == pytest.approx((1.0 + 1.0) / 2)


def test_a_prefix_of_two_prompts_is_read_once() -> None:
    tree = tree_of([Prompt((5, 6, 7), ((1, 2), (1, 3)), 0), Prompt((5, 6, 8), ((9,),), 0)])
    # 5 6 7 8 and the first token of the two answers, which is the same; last tokens are never read.
    assert tree.tokens == [5, 6, 7, 1, 8]
    assert tree.parents == [-1, 0, 1, 2, 1]
    assert tree.depths == [0, 1, 2, 3, 2]
    assert tree.attention_mask()[4].tolist() == [True, True, False, False, True]


def test_groups_hold_every_prompt_once_and_keep_to_the_width() -> None:
    prompts = some_prompts(40, 3)
    groups = pack_prompts(prompts, 50)
    assert sorted(index for group in groups for index in group) == list(range(40))
    sizes = [len(tree_of(prompts[index] for index in group).tokens) for group in groups]
    assert all(size <= 50 for size in sizes)
    assert len(groups) > 1


def test_losses_are_those_of_likelihoods_and_have_gradients() -> None:
    base = tiny_base(1, dtype=torch.float64)
    prompts = some_prompts(5, 4)
    weight = base.model.model.layers[0].mlp.up_proj.weight.requires_grad_(True)
    result = losses(base, prompts)
    expected = [
        -values[prompt.right] / len(prompt.target)
        for prompt, values in zip(prompts, likelihoods(base, prompts), strict=True)
    ]
    assert result.shape == (1, 5)
    assert result[0].tolist() == pytest.approx(expected, abs=1e-5)
    result.mean().backward()
    assert weight.grad is not None
    assert float(weight.grad.abs().sum()) > 0


def test_candidates_are_rows_of_one_batch() -> None:
    prompts = some_prompts(6, 5)
    once, twice = likelihoods(BASE, prompts), candidate_likelihoods(BASE, prompts, 2)
    for values in twice:
        assert [item for row in values for item in row] == pytest.approx(
            [item for row in once for item in row], abs=1e-5
        )


def test_targets_alone_have_the_same_likelihood() -> None:
    prompts = some_prompts(6, 6)
    alone = likelihoods(BASE, targets_only(prompts))
    complete = likelihoods(BASE, prompts)
    assert [item[0] for item in alone] == pytest.approx(
        [values[prompt.right] for prompt, values in zip(prompts, complete, strict=True)], abs=1e-5
    )


def test_generated_text_is_the_greedy_one_whatever_the_batch() -> None:
    prompts = [Prompt(prompt.question, prompt.answers, 0) for prompt in some_prompts(4, 7)]
    together = generate(BASE, prompts, most=5)
    assert together == [generate(BASE, [prompt], most=5)[0] for prompt in prompts]
    tokens = list(prompts[0].question)
    for _ in range(5):
        tokens.append(int(BASE.model(torch.tensor([tokens])).logits[0, -1].argmax()))
        if tokens[-1] == BASE.tokenizer.eos_token_id:
            break
    text = BASE.tokenizer.decode(tokens[len(prompts[0].question) :], skip_special_tokens=True)
    assert together[0] == text.strip()


class _SmallMemory(torch.nn.Module):
    """A model whose device holds so many tokens at once."""

    def __init__(self, model: torch.nn.Module, most: int) -> None:
        super().__init__()
        self.inner, self.most, self.seen = model, most, 0

    def forward(self, input_ids: torch.Tensor, **arguments: object) -> object:
        if input_ids.numel() > self.most:
            raise torch.OutOfMemoryError
        self.seen += 1
        return self.inner(input_ids=input_ids, **arguments)


def test_a_tree_that_does_not_fit_is_halved() -> None:
    prompts = some_prompts(12, 8)
    small = _SmallMemory(BASE.model, 30)
    result = likelihoods(LoadedBase("small", small, BASE.tokenizer, 512), prompts, width=1000)
    assert small.seen > 1
    for values, expected in zip(result, likelihoods(BASE, prompts), strict=True):
        assert values == pytest.approx(expected, abs=1e-5)


def test_a_prompt_that_does_not_fit_alone_is_said() -> None:
    small = LoadedBase("small", _SmallMemory(BASE.model, 3), BASE.tokenizer, 512)
    with pytest.raises(EvaluationError, match="does not fit into memory"):
        likelihoods(small, some_prompts(4, 9))


def test_entropy_is_that_of_the_normalised_answers() -> None:
    prompts = [prompt for prompt in some_prompts(8, 10) if len(prompt.answers) > 1]
    result = entropies(BASE, prompts)
    for at, values in enumerate(likelihoods(BASE, prompts)):
        weights = torch.tensor(values, dtype=torch.float64).softmax(0)
        assert float(result[0, at]) == pytest.approx(float(-(weights * weights.log()).sum()), abs=1e-5)


def test_the_output_head_multiplies_all_rows_at_once() -> None:
    """The values that it gets are contiguous: others are multiplied one by one, with a copy of it each."""
    base, sizes = tiny_base(), []

    def check(_module: Any, inputs: tuple[torch.Tensor]) -> None:
        assert inputs[0].is_contiguous()
        sizes.append(len(inputs[0]))

    base.model.lm_head.register_forward_pre_hook(check)
    prompts = some_prompts(3, 12)
    generate(base, prompts, most=2)
    likelihoods(replace(base, reading=ReadingMode(recurrent=True)), prompts)
    assert max(sizes) >= 3
