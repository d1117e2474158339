"""Protocols: prompts of each family by hand, extraction, choices, losses, and keys that stay the same."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from catalog.errors import UsageError
from merging.evaluation import TaskScore, ask, generate, measure, measurement, scores
from merging.evaluation.scores import evaluate
from merging.learning import adapt, train
from merging.learning.course import gradients, mean_of
from merging.model import (
    OWN,
    PROTOCOLS,
    RECYCLING_PAPER,
    Example,
    LoadedBase,
    Prompt,
    Protocol,
    Task,
    budget,
    chat_format,
    examples,
    final_answer,
    find_protocol,
    normalise_text,
    read_task,
)
from merging.model.prompts import encode_each, folds_instruction, question_text
from tests.merging.test_evaluate import tiny_adapter
from tests.merging.tiny import tiny_base, tiny_tokenizer, write_task

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

ROWS = [(f" question {n}\n", ("yes", "no")[n % 2]) for n in range(12)]
# Templates in the style of each family, with what they write for a system message, a question and an answer.
_LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_QWEN_3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think>\n\n</think>\n\n"
    "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
_GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
_GEMMA_3 = (
    "{{ bos_token }}{% set first = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
    "{% for m in messages if m.role != 'system' %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ first if loop.first }}"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
_PHI = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end_of_turn|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
# Its system message is dropped, and its answers end with the end of sequence.
_SILENT = (
    "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
_BOS, _SYSTEM = "<|begin|>", "Answer yes or no."
FAMILIES: Mapping[str, tuple[str, str, str, str]] = {
    # template, the end of an answer, a prompt with a system message, one of the user alone
    "llama 3": (
        _LLAMA_3,
        "<|eot_id|>",
        (
            f"{_BOS}<|start_header_id|>system<|end_header_id|>\n\n{_SYSTEM}<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nquestion 0<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n"
        ),
        (
            f"{_BOS}<|start_header_id|>user<|end_header_id|>\n\n{_SYSTEM}\n\n question 0<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n"
        ),
    ),
    "qwen 3": (
        _QWEN_3,
        "<|im_end|>",
        (
            f"<|im_start|>system\n{_SYSTEM}<|im_end|>\n<|im_start|>user\nquestion 0<|im_end|>\n"
            "<|im_start|>assistant\n<think>\n\n</think>\n\n"
        ),
        (
            f"<|im_start|>user\n{_SYSTEM}\n\n question 0\n<|im_end|>\n"
            "<|im_start|>assistant\n<think>\n\n</think>\n\n"
        ),
    ),
    "gemma 2": (
        _GEMMA,
        "<end_of_turn>",
        f"{_BOS}<start_of_turn>user\n{_SYSTEM}\n\nquestion 0<end_of_turn>\n<start_of_turn>model\n",
        f"{_BOS}<start_of_turn>user\n{_SYSTEM}\n\n question 0<end_of_turn>\n<start_of_turn>model\n",
    ),
    "gemma 3": (
        _GEMMA_3,
        "<end_of_turn>",
        f"{_BOS}<start_of_turn>user\n{_SYSTEM}\n\nquestion 0<end_of_turn>\n<start_of_turn>model\n",
        f"{_BOS}<start_of_turn>user\n{_SYSTEM}\n\n question 0<end_of_turn>\n<start_of_turn>model\n",
    ),
    "phi": (
        _PHI,
        "<|end_of_turn|>",
        f"<|system|>\n{_SYSTEM}<|end_of_turn|>\n<|user|>\nquestion 0<|end_of_turn|>\n<|assistant|>\n",
        f"<|user|>\n{_SYSTEM}\n\n question 0\n<|end_of_turn|>\n<|assistant|>\n",
    ),
    "silent": (
        _SILENT,
        "<|end|>",
        f"[INST] {_SYSTEM}\n\nquestion 0 [/INST]",
        f"[INST] {_SYSTEM}\n\n question 0\n [/INST]",
    ),
    "no template": ("", "<|end|>", f"{_SYSTEM}\n\nquestion 0\n\n", f"{_SYSTEM}\n\n question 0\n\n\n"),
}
_ADDED = (_BOS, "<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end_of_turn|>")


def family(name: str) -> Any:
    """The tokenizer of bytes with a template of this family; its end of sequence is "<|end|>"."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"bos_token": _BOS})
    tokenizer.add_special_tokens({"additional_special_tokens": list(_ADDED)})
    tokenizer.chat_template = FAMILIES[name][0] or None
    return tokenizer


def family_base(name: str) -> LoadedBase:
    tokenizer, base = family(name), tiny_base()
    base.model.resize_token_embeddings(len(tokenizer))
    return replace(base, tokenizer=tokenizer)


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return read_task(write_task(tmp_path / "tasks" / "parity", ROWS))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_of_each_family_is_the_one_written_by_hand(name: str, task: Task) -> None:
    tokenizer, example = family(name), examples(task, "test")[0]
    _, end, system, user = FAMILIES[name]
    assert question_text(tokenizer, task, example, protocol=RECYCLING_PAPER) == system
    assert question_text(tokenizer, task, example) == user
    by_task = replace(task, instruction_role="system")
    assert folds_instruction(tokenizer, by_task, OWN) == folds_instruction(tokenizer, task, RECYCLING_PAPER)
    assert folds_instruction(tokenizer, by_task, OWN) == (name in ("gemma 2", "silent", "no template"))
    assert not folds_instruction(tokenizer, task, OWN)
    for protocol in PROTOCOLS.values():
        (prompt,) = encode_each(tokenizer, task, [example], protocol=protocol)
        text = system if protocol.name == "recycling-paper" else user
        assert tokenizer.decode(prompt.question) == text
        assert [tokenizer.decode(answer) for answer in prompt.answers] == [f"yes{end}", f"no{end}"]


@pytest.mark.parametrize("pattern", ["$A", "<|user|> $A", "$A <|end|>", "<|user|> $A <|end|> <|end|>"])
def test_a_question_without_a_template_does_not_end_a_text(pattern: str, task: Task) -> None:
    """Some tokenizers begin every text with a token, and some end it with one."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    special = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<|user|>", "<|end|>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=pattern, special_tokens=special)
    (prompt,) = encode_each(tokenizer, task, examples(task, "test")[:1])
    start = "<|user|>" if "user" in pattern else ""
    assert tokenizer.decode(prompt.question) == f"{start}Answer yes or no.\n\n question 0\n\n\n"
    assert [tokenizer.decode(answer) for answer in prompt.answers] == ["yes<|end|>", "no<|end|>"]


def test_answers_lose_the_white_space_that_the_papers_template_trims(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "text", [("a", " b\n")], choices=None, metric="exact_match")
    task, tokenizer = read_task(folder), tiny_tokenizer()
    some = examples(task, "test")
    assert tokenizer.decode(encode_each(tokenizer, task, some)[0].target) == " b\n<|end|>"
    trimmed = encode_each(tokenizer, task, some, protocol=RECYCLING_PAPER)
    assert tokenizer.decode(trimmed[0].target) == "b<|end|>"


@pytest.mark.parametrize(
    ("template", "end"),
    [
        ("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}", "<|im_end|>"),
        ("{% for m in messages %}{{ m.content }} \n<|im_end|>{% endfor %}", "<|im_end|>"),
        # What a text closes, and what no answer is part of, is closed by the end of sequence.
        ("{% for m in messages %}{{ m.content }} END <|im_end|>{% endfor %}", "<|end|>"),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "<|end|>"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}<|im_end|>{% endfor %}", "<|end|>"),
        ("{{ raise_exception('no') if messages | length > 1 }}{{ messages[0].content }}", "<|end|>"),
        # Tokens that are not of the tokenizer.
        ("{% for m in messages %}{{ m.content }}<|im_over|>{% endfor %}", "<|end|>"),
    ],
)
def test_the_closing_token_is_what_the_template_closes_an_answer_with(template: str, end: str) -> None:
    tokenizer = family("phi")
    tokenizer.chat_template = template
    assert tokenizer.decode([chat_format(tokenizer).closing_token]) == end


def test_generation_ends_at_the_closing_token(task: Task) -> None:
    base = family_base("gemma 2")
    closing, passes = chat_format(base.tokenizer).closing_token, []
    assert closing != base.tokenizer.eos_token_id

    def close(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        passes.append(1)
        return output * 0 + torch.nn.functional.one_hot(torch.tensor(closing), output.shape[-1])

    prompts = ask(base, task, examples(task, "test")[:1]).prompts
    base.model.lm_head.register_forward_hook(close)
    counts = []
    for most in (1, 30):
        passes.clear()
        assert generate(base, prompts, most=most) == [""]
        counts.append(len(passes))
    # As many tokens as where only one is allowed.
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("answer", "target", "same"),
    [
        ("3 + 4 = 7 #### 7", "7", True),
        ("#### 5 no, #### 7.", "steps #### 7", True),
        ("7", "so #### 7", True),
        ("####", "#### ", True),
        ("7 ####", "7", False),
        ("The answer is 7", "7", False),
        ("### 7", "7", False),
        ("##### 7", "7", False),
        ("##### 7", "# 7", True),
        ("######## 7", "7", True),
        ("12.5", "125", False),
        (" New  York.\n", "newyork", True),
    ],
)
def test_what_follows_the_last_marker_is_compared(answer: str, target: str, same: bool) -> None:
    def paper(text: str) -> str:
        text = text.split("####")[-1]
        return text.replace(" ", "").strip().strip(".").lower()

    ours = [normalise_text(final_answer(text, RECYCLING_PAPER.marker)) for text in (answer, target)]
    assert ours == [paper(answer), paper(target)]
    assert (ours[0] == ours[1]) is same
    assert final_answer(answer, OWN.marker) == answer


def test_choices_are_answered_by_text_and_the_score_names_the_rule(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = []

    def answer(_base: LoadedBase, prompts: Sequence[Prompt], *, most: int) -> list[str]:
        requests.append(most)
        return ["Yes."] * len(prompts)

    monkeypatch.setattr(measurement, "generate", answer)
    some = replace(task, max_new_tokens=7)
    (score,) = evaluate(tiny_base(), [], [some], protocol=RECYCLING_PAPER)
    assert isinstance(score, TaskScore)
    assert (score.metric, score.protocol, score.value) == ("exact_match_stripped", "recycling-paper", 0.5)
    assert requests == [7]


# By the sum with the closing token, the sum, the sum a token and the sum a character, another choice each.
_CHOICES = ("aaaa", "bb", "cccccc", "d")
_SUMS = {"closed": (-9.0, -9.5, -9.2, -5.0), "open": (-6.0, -2.0, -5.9, -2.1)}


@pytest.mark.parametrize(
    ("name", "choice"),
    [("", "d"), ("likelihood-open", "bb"), ("likelihood-per-token", "cccccc")],
)
def test_each_rule_takes_the_choice_that_its_sums_give(
    name: str, choice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sums(_base: LoadedBase, prompts: Sequence[Prompt]) -> list[tuple[float, ...]]:
        closed = prompts[0].answers[0][-1] == tiny_tokenizer().eos_token_id
        return [_SUMS["closed" if closed else "open"] for _ in prompts]

    monkeypatch.setattr(measurement, "likelihoods", sums)
    hits = {}
    for target in _CHOICES:
        folder = write_task(tmp_path / target, [("a", target), ("b", target)], choices=_CHOICES)
        hits[target] = measure(
            tiny_base(), read_task(folder), examples(read_task(folder), "test"), protocol=find_protocol(name)
        )
    assert {target: score.value for target, score in hits.items()} == {
        target: float(target == choice) for target in _CHOICES
    }
    # The loss counts the tokens that the protocol counts.
    lengths = {target: len(target) + (name == "") for target in _CHOICES}
    row = _SUMS["open" if name else "closed"]
    for target, value in zip(_CHOICES, row, strict=True):
        assert hits[target].loss == pytest.approx(-value / lengths[target])


def test_likelihoods_by_length_are_those_of_a_plain_pass(tmp_path: Path) -> None:
    # Letters of two bytes: characters and tokens differ.
    choices = ("éé", "no way", "maybe")
    rows = [(f"q{n}", choices[n % 3]) for n in range(9)]
    task = read_task(write_task(tmp_path / "letters", rows, choices=choices))
    base, some = tiny_base(3), examples(task, "test")
    expected: dict[str, list[bool]] = {name: [] for name in PROTOCOLS if name != "recycling-paper"}
    for example in some:
        question = base.tokenizer(question_text(base.tokenizer, task, example), add_special_tokens=False)
        values: dict[str, list[float]] = {name: [] for name in expected}
        for choice in choices:
            answer = base.tokenizer(choice)["input_ids"]
            tokens = [*question["input_ids"], *answer, base.tokenizer.eos_token_id]
            logs = base.model.double()(torch.tensor([tokens])).logits[0].log_softmax(-1)
            each = [float(logs[at - 1, tokens[at]]) for at in range(len(question["input_ids"]), len(tokens))]
            values[""].append(math.fsum(each))
            values["likelihood-open"].append(math.fsum(each[:-1]))
            values["likelihood-per-token"].append(math.fsum(each[:-1]) / len(answer))
            values["likelihood-per-character"].append(math.fsum(each[:-1]) / len(choice))
        for name, row in values.items():
            expected[name].append(choices[row.index(max(row))] == example.target)
    base = tiny_base(3)
    for name, hits in expected.items():
        assert measure(base, task, some, protocol=find_protocol(name)).value == sum(hits) / len(hits)
    assert len({tuple(hits) for hits in expected.values()}) > 1


def test_only_the_question_counts_against_the_limit_of_the_paper(tmp_path: Path) -> None:
    task = read_task(write_task(tmp_path / "long", [("a" * 10, "yes"), ("a" * 11, "yes")]))
    some = examples(task, "test")
    base = tiny_base()
    lengths = [len(prompt.question) for prompt in ask(base, task, some, protocol=RECYCLING_PAPER).prompts]
    short = replace(base, limit=lengths[1])
    # A question of as many tokens as the limit is dropped, whatever its answer.
    assert ask(short, task, some, "skip", RECYCLING_PAPER).examples == some[:1]
    with pytest.raises(UsageError, match=rf"Example 2 of long has {lengths[1] + 1} tokens, more than"):
        ask(short, task, some, "error", RECYCLING_PAPER)
    assert ask(replace(base, limit=lengths[1] + 1), task, some, "skip", RECYCLING_PAPER).left_out == 0
    # By the project's own protocol the longest answer counts too.
    with pytest.raises(UsageError, match="All 2 examples of long are longer"):
        ask(replace(base, limit=lengths[0] + 3), task, some, "skip")


def test_tokens_weigh_the_same_in_the_papers_loss(tmp_path: Path) -> None:
    base = tiny_base(1)
    rows = [("a", "b"), ("cc", "a long answer")]
    task = read_task(write_task(tmp_path / "text", rows, choices=None, metric="exact_match"))
    prompts = ask(base, task, examples(task, "test")).prompts
    weight = base.model.lm_head.weight.requires_grad_(True)
    rows_of = []
    for prompt in prompts:
        tokens = torch.tensor([[*prompt.question, *prompt.target]])
        logs = base.model(tokens).logits[0].log_softmax(-1)
        at = range(len(prompt.question), tokens.shape[1])
        rows_of.append(torch.stack([-logs[place - 1, tokens[0, place]] for place in at]))
    for objective, expected in (
        ("token_loss", torch.cat(rows_of).mean()),
        ("loss", torch.stack([row.mean() for row in rows_of]).mean()),
    ):
        (wanted,) = torch.autograd.grad(expected, weight, retain_graph=True)
        value = gradients(base, prompts, lambda: None, objective)  # type: ignore[arg-type]
        assert value == pytest.approx(expected.item(), abs=1e-5)
        assert weight.grad is not None
        assert torch.allclose(weight.grad, wanted, atol=1e-5)
        weight.grad = None
        assert mean_of(base, prompts, objective) == pytest.approx(expected.item(), abs=1e-5)  # type: ignore[arg-type]


def test_records_say_the_protocol_and_the_preset_only_where_there_is_one(task: Task, tmp_path: Path) -> None:
    base, some = tiny_base(), budget(task, 10)
    settings: Any = {"learning_rates": [1e-3], "steps": 1, "batch": 2, "rank": 2}
    usual = train(base, task, some, tmp_path / "usual", **settings).record
    extra: Any = {"protocol": RECYCLING_PAPER, "preset": "recycling-paper"}
    record = train(base, task, some, tmp_path / "paper", **settings, **extra).record
    assert (record["protocol"], record["preset"]) == ("recycling-paper", "recycling-paper")
    assert set(record) - set(usual) == {"protocol", "preset"}
    members = [tiny_adapter(tmp_path / "one", 1)]
    adapted = adapt(base, members, task, some, "recycling", steps=1).record
    other = adapt(base, members, task, some, "recycling", steps=1, **extra).record
    assert set(other) - set(adapted) == {"protocol", "preset"}
    assert other["course"]["valid_before"] == pytest.approx(
        mean_of(base, ask(base, task, some.valid, protocol=RECYCLING_PAPER).prompts, "token_loss"), abs=1e-6
    )
    folded = train(
        replace(base, tokenizer=family("silent")), task, some, tmp_path / "folded", **settings, **extra
    )
    assert folded.record["folded"] is True


def test_a_key_changes_with_the_protocol_and_with_what_the_template_changes(task: Task) -> None:
    keys = {}
    for name, protocol in PROTOCOLS.items():
        (score,) = evaluate(tiny_base(), [], [task], limit=2, protocol=protocol)
        assert isinstance(score, TaskScore)
        keys[name] = score.key
    assert len(set(keys.values())) == len(PROTOCOLS)
    parts = {name: scores._format_parts(family(name)) for name in FAMILIES}
    assert parts == {
        name: [
            *([f"closed by {chat_format(family(name)).closing_token}"] if end != "<|end|>" else []),
            *(["without thoughts"] if name == "qwen 3" else []),
        ]
        for name, (_, end, _, _) in FAMILIES.items()
    }


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("max_new_tokens", 0, "max_new_tokens must be a whole number from 1 to 8192"),
        ("max_new_tokens", True, "max_new_tokens must be a whole number"),
        ("max_new_tokens", "30", "max_new_tokens must be a whole number"),
        ("max_new_tokens", 10**9, "max_new_tokens must be a whole number"),
        ("instruction_role", "assistant", "instruction_role must be user or system"),
        ("instruction_role", None, "instruction_role must be user or system"),
    ],
)
def test_a_task_says_how_long_answers_are_and_where_its_instruction_stands(
    key: str, value: object, problem: str, task: Task
) -> None:
    assert (task.max_new_tokens, task.instruction_role) == (30, "user")
    file = task.folder / "task.json"
    document = json.loads(file.read_text())
    file.write_text(json.dumps(document | {"max_new_tokens": 500, "instruction_role": "system"}))
    changed = read_task(task.folder)
    assert (changed.max_new_tokens, changed.instruction_role) == (500, "system")
    assert changed.digest != task.digest
    file.write_text(json.dumps(document | {key: value}))
    with pytest.raises(UsageError, match=problem):
        read_task(task.folder)


def test_the_projects_own_protocol_has_no_name_and_is_the_default() -> None:
    assert PROTOCOLS[""] == OWN == Protocol()
    assert find_protocol("recycling-paper") is RECYCLING_PAPER
    with pytest.raises(UsageError, match=r"paper is not a protocol; use one of .*recycling-paper"):
        find_protocol("paper")


def test_a_score_names_its_protocol_only_where_it_is_not_the_default() -> None:
    fields: Any = {"adapter": "a", "task": "t", "split": "test", "metric": "accuracy", "value": 0.5, "n": 2}
    fields |= {"loss": 1.0, "base": "b", "seed": 0, "key": "k"}
    assert "protocol" not in TaskScore(**fields).document()
    assert TaskScore(**fields, protocol="recycling-paper").document()["protocol"] == "recycling-paper"


def test_examples_keep_their_choices_for_methods_that_need_them(task: Task) -> None:
    prompts = ask(tiny_base(), task, [Example("a", "no", ("yes", "no"))], protocol=RECYCLING_PAPER).prompts
    assert [len(prompt.answers) for prompt in prompts] == [2]
