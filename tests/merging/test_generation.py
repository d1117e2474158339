"""Generated answers are the greedy ones, end where they should, whatever is asked together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from catalog.errors import UsageError
from merging.evaluation.generation import end_tokens, generate
from merging.model import LoadedBase, Prompt
from tests.merging.architectures import architecture, some_prompts
from tests.merging.tiny import tiny_base

READ_IN_TREES = ["llama", "gemma3_text", "mistral", "qwen2", "phi3", "gpt2", "opt", "mixtral", "qwen3_moe"]
READ_PLAINLY = ["bloom", "mamba", "lfm2"]


def greedy(base: LoadedBase, prompt: Prompt, most: int) -> list[int]:
    """The definition: the whole text is read again for every token."""
    tokens = list(prompt.question)
    for _ in range(most):
        with torch.no_grad():
            tokens.append(int(base.model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
        if tokens[-1] in end_tokens(base):
            tokens.pop()
            break
    return tokens[len(prompt.question) :]


def greedy_text(base: LoadedBase, prompt: Prompt, most: int) -> str:
    text: str = base.tokenizer.decode(greedy(base, prompt, most), skip_special_tokens=True)
    return text.strip()


def mixed(*, most: int = 13, alike: bool = True) -> list[Prompt]:
    """Questions of several lengths that begin alike, or not; two are equal, one is the start of another."""
    prompts = [*some_prompts(4, 5, most), *some_prompts(2, 3, 5, seed=5)]
    if alike:
        shared = some_prompts(1, 4, 4, seed=6)[0].question
        prompts = [replace(prompt, question=(*shared, *prompt.question)[:most]) for prompt in prompts]
    start = replace(prompts[0], question=prompts[0].question[:-1])
    return [*prompts, prompts[1], start]


@pytest.mark.parametrize("kind", [*READ_IN_TREES, *READ_PLAINLY])
@pytest.mark.parametrize("alike", [True, False])
def test_answers_are_the_greedy_ones(kind: str, alike: bool) -> None:
    base = architecture(kind)
    prompts = mixed(alike=alike)
    limits = [1, 3, 2, 3, 1, 3, 2, 3]
    texts = generate(base, prompts, most=limits)
    assert texts == [greedy_text(base, prompt, limit) for prompt, limit in zip(prompts, limits, strict=True)]


@pytest.mark.parametrize("kind", ["llama", "bloom"])
@pytest.mark.parametrize(
    "setting",
    [
        {"repetition_penalty": 5.0},
        {"no_repeat_ngram_size": 1},
        {"min_length": 40},
        {"num_beams": 3},
        {"suppress_tokens": list(range(200))},
        {"bad_words_ids": [[token] for token in range(200)]},
        {"forced_eos_token_id": 7},
        {"guidance_scale": 2.0},
        {"max_time": 1e-9},
        {"return_dict_in_generate": True},
        {"stop_strings": ["a"]},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_settings_of_a_model_change_no_answer_however_it_is_read(kind: str, setting: dict[str, Any]) -> None:
    base = architecture(kind)
    prompts = mixed()
    expected = [greedy_text(base, prompt, 4) for prompt in prompts]
    own = base.model.generation_config
    own.update(**setting)
    assert generate(base, prompts, most=4) == expected
    assert base.model.generation_config is own


def test_an_answer_ends_before_a_stop_text() -> None:
    base = tiny_base(3, dtype=torch.float64)
    prompts = mixed(most=30)
    complete = [greedy_text(base, prompt, 12) for prompt in prompts]
    stop = [text[5:7] for text in complete if len(text) > 8][:2]
    assert stop
    expected = [min((text.split(word)[0] for word in stop), key=len).strip() for text in complete]
    assert expected != complete
    assert generate(base, prompts, most=12, stop=stop) == expected


def test_a_turn_ends_at_the_token_of_the_template() -> None:
    base = tiny_base(1)
    assert end_tokens(base) == {base.tokenizer.eos_token_id}
    base.tokenizer.add_special_tokens({"additional_special_tokens": ["<|eot_id|>", "<|im_end|>"]})
    base.tokenizer.chat_template = base.tokenizer.chat_template.replace("<|end|>", "<|eot_id|>")
    names = base.tokenizer.convert_tokens_to_ids(["<|end|>", "<|eot_id|>"])
    assert end_tokens(base) == set(names)
    base.model.generation_config.eos_token_id = [7, 8]
    assert end_tokens(base) == {*names, 7, 8}


def test_what_questions_begin_with_is_read_once() -> None:
    base = tiny_base()
    tokens = []
    base.model.register_forward_pre_hook(
        lambda _module, _words, by_name: tokens.append(by_name["input_ids"].tolist()), with_kwargs=True
    )
    shared = tuple(range(20))
    prompts = [Prompt((*shared, *own), ((1,),), 0) for own in ((30, 31), (40,), (50, 51, 52))]
    base.reading.learn(100, True)
    generate(base, prompts, most=1)
    # The prefix, then what is left of every question, padded at its beginning.
    assert tokens == [[[*shared]], [[50, 51, 52], [30, 30, 31], [40, 40, 40]]]
    tokens.clear()
    generate(base, [prompts[1]] * 2, most=1)
    assert tokens == [[[*shared]], [[40], [40]]]


def test_a_row_leaves_its_batch_when_its_answer_ends() -> None:
    base = tiny_base(4)
    rows = []
    base.model.register_forward_pre_hook(
        lambda _module, _words, by_name: rows.append(len(by_name["input_ids"])), with_kwargs=True
    )
    base.reading.learn(100, True)
    generate(base, some_prompts(3, 10, 12), most=[1, 4, 2])
    assert rows == [1, 3, 2, 1, 1]


def test_wrong_limits_are_refused() -> None:
    base, prompts = tiny_base(), some_prompts(2, 4, 5)
    with pytest.raises(UsageError, match="2 questions require as many numbers of tokens, not 3"):
        generate(base, prompts, most=[1, 2, 3])
    with pytest.raises(UsageError, match="at least 1 token"):
        generate(base, prompts, most=0)
    with pytest.raises(UsageError, match="must not be empty"):
        generate(base, prompts, stop=[""])
    assert generate(base, []) == []
