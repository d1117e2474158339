"""Tasks of lm-evaluation-harness over our engine: the answers and scores of its own model class."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from click.testing import CliRunner
from peft import PeftModel

import loradex
from catalog.errors import NotFoundError, UsageError
from catalog.scores import from_text, read_scores, unpack_bitmap
from cli.main import loradex as program
from loradex.harness import _has_code, harness_round, load_harness_task
from merging.evaluation import HarnessModel, TaskScore
from tests.merging.test_evaluate import tiny_adapter
from tests.merging.tiny import save_base, tiny_base

pytest.importorskip("lm_eval", reason="the extra harness is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")
SCHEMA = Path(__file__).parents[2] / "docs" / "reference" / "schemas" / "scores.schema.json"
ROWS = [(f"{'ab'[number % 2]}{number}", "yes" if number % 3 else "no") for number in range(12)]
CHOICES = """\
task: NAME
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "Is {{input}} right?"
doc_to_choice: ["yes", "no, never"]
doc_to_target: "{{0 if target == 'yes' else 1}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
TEXTS = """\
task: NAME
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: generate_until
doc_to_text: "{{input}}:"
doc_to_target: "{{target}}"
generation_kwargs: {until: ["a", "e"], max_gen_toks: 7}
metric_list: [{metric: exact_match}]
"""


class Asked:
    """A request as the harness makes them."""

    def __init__(self, kind: str, *args: Any) -> None:
        self.request_type, self.args, self.doc_id = kind, args, 0


@pytest.fixture(scope="module")
def hflm() -> Any:
    """The harness's own model class over the tiny model."""
    return harness_model(tiny_base().model)


def harness_model(model: Any) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tiny_base().tokenizer, max_length=512, batch_size=4, device="cpu")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two tasks of the harness, and data sets kept in the test's own folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    place = tmp_path / "tasks"
    place.mkdir()
    lines = "".join(json.dumps({"input": item, "target": target}) + "\n" for item, target in ROWS)
    (place / "rows.jsonl").write_text(lines)
    for name, text in (("choices", CHOICES), ("texts", TEXTS)):
        write_yaml(place, name, text)
    return place


def write_yaml(place: Path, name: str, text: str) -> None:
    (place / f"{name}.yaml").write_text(text.replace("NAME", name).replace("FILE", str(place / "rows.jsonl")))


def test_likelihoods_are_those_of_the_harness(hflm: Any) -> None:
    draw = random.Random(0)
    words = ["yes", " no", " never more", "?", "ab", "  b", "\n"]
    contexts = ["", "Is it? ", "Is it?", "Question: a\nAnswer:", " x "]
    requests = [Asked("loglikelihood", context, word) for context in contexts for word in words]
    # Answers that are greedy, as far as they go.
    model = tiny_base().model
    tokens = list(tiny_base().tokenizer("Is it?")["input_ids"])
    for _ in range(3):
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    greedy = tiny_base().tokenizer.decode(tokens[6:])
    requests += [Asked("loglikelihood", "Is it?", greedy), Asked("loglikelihood", "Is it?", greedy[:-1])]
    draw.shuffle(requests)
    ours, own = HarnessModel(tiny_base()).loglikelihood(requests), hflm.loglikelihood(requests)
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in own], abs=1e-4)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in own]


def test_long_texts_are_read_in_the_windows_of_the_harness(hflm: Any) -> None:
    texts = ["short", "x" * 511, "y" * 512, "some words " * 150]
    requests = [Asked("loglikelihood_rolling", text) for text in texts]
    ours, own = (
        HarnessModel(tiny_base()).loglikelihood_rolling(requests),
        hflm.loglikelihood_rolling(requests),
    )
    assert ours == pytest.approx(own, rel=1e-5)


def test_an_empty_text_has_no_part_in_the_mark_of_a_model() -> None:
    model = HarnessModel(tiny_base())
    empty, requests = (
        Asked("loglikelihood_rolling", ""),
        [Asked("loglikelihood_rolling", "a" * n) for n in (3, 5)],
    )
    assert model.loglikelihood_rolling([empty]) == [0]
    assert model.mark([empty, *requests]) == model.mark(requests) != HarnessModel(tiny_base(1)).mark(requests)
    assert model.mark([empty]) == ""


def test_generated_texts_end_where_those_of_the_harness_do(hflm: Any) -> None:
    settings = [{"until": ["a", "\n"], "max_gen_toks": 9}, {"until": "e", "max_gen_toks": 5}, {"until": []}]
    requests = [
        Asked("generate_until", context, {"max_gen_toks": 4, "do_sample": False, **setting})
        for setting in settings
        for context in ("Is it?", "a long question of some words:", "b ")
    ]
    assert HarnessModel(tiny_base()).generate_until(requests) == hflm.generate_until(requests)


@pytest.fixture
def adapters(tmp_path: Path) -> list[Path]:
    return [tiny_adapter(tmp_path / f"a{number}", number, rank=number + 1).folder for number in range(2)]


@pytest.mark.parametrize("chat", [False, True])
def test_scores_of_adapters_are_those_of_the_harness_with_peft(
    adapters: list[Path], folder: Path, chat: bool
) -> None:
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    scores = loradex.evaluate(
        tiny_base(), ["harness:choices", "harness:texts"], adapters, folder=folder, chat_template=chat
    )
    rows: dict[tuple[str, str, str], TaskScore] = {(row.adapter, row.task, row.metric): row for row in scores}
    assert len(rows) == 9
    loaded = TaskManager(include_path=str(folder), include_defaults=False).load(["choices", "texts"])
    for place in (None, *adapters):
        model = tiny_base().model if place is None else PeftModel.from_pretrained(tiny_base().model, place)
        settings = {"apply_chat_template": chat, "fewshot_as_multiturn": chat, "bootstrap_iters": 1}
        results = evaluator.evaluate(harness_model(model), loaded, **settings)["results"]
        for task, metric in (("choices", "acc"), ("choices", "acc_norm"), ("texts", "exact_match")):
            row = rows[place.name if place else "base", f"harness:{task}", metric]
            assert row.value == pytest.approx(results[task][f"{metric},none"])
            assert row.stderr == pytest.approx(results[task][f"{metric}_stderr,none"])
            assert (row.n, row.split, row.loss) == (12, "test", None)
            assert row.protocol == f"lm-eval {version('lm_eval')}" + (", chat template" if chat else "")
    assert len({(rows[name, "harness:choices", "acc_norm"].value) for name in ("base", "a0", "a1")}) > 1


def test_a_killed_run_continues_with_whole_tasks(adapters: list[Path], folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"

    def scores() -> list[dict[str, Any]]:
        names = ["harness:choices", "harness:texts"]
        rows = loradex.evaluate(tiny_base(), names, adapters, folder=folder, limit=5, log=log)
        assert {row.n for row in rows} == {5}
        return rows.document()["scores"]

    first, lines = scores(), log.read_text().splitlines(keepends=True)
    assert len(lines) == 9
    for row in first:
        bits = unpack_bitmap(from_text(row["outcomes"], "outcomes", 9), 5)
        assert row["value"] == pytest.approx(bits.mean())
    assert len({row["items_sha"] for row in first}) == 2
    # Between the two metrics of the first adapter.
    log.write_text("".join(lines[:4]))
    assert scores() == first
    assert sorted(set(log.read_text().splitlines(keepends=True))) == sorted(lines)


def test_a_group_has_a_row_of_its_own_and_shots_are_in_the_protocol(folder: Path) -> None:
    text = CHOICES + "fewshot_split: test\n"
    write_yaml(folder, "first", text)
    write_yaml(folder, "second", text + "test_split: test\n")
    mean = "aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]\n"
    (folder / "both.yaml").write_text(f"group: both\ntask: [first, second]\n{mean}")
    scores = loradex.evaluate(tiny_base(), "harness:both", folder=folder, shots=2)
    values = {row.task: (row.value, row.n) for row in scores if row.metric == "acc"}
    assert values["harness:both"] == (pytest.approx(values["harness:first"][0]), 24)
    assert {row.protocol for row in scores} == {f"lm-eval {version('lm_eval')}, 2-shot"}
    plain = loradex.evaluate(tiny_base(), "harness:first", folder=folder)
    assert plain[0].key != next(row.key for row in scores if row.task == "harness:first")


def test_scores_of_texts_are_shares_and_perplexities_have_no_limit(folder: Path) -> None:
    metrics = "metric_list: [{metric: exact_match}, {metric: bleu}, {metric: chrf}, {metric: ter}]"
    text = _with(TEXTS, "metric_list: [{metric: exact_match}]", metrics)
    # Targets that are what the model says, so that the best scores come out.
    texts = loradex.evaluate(tiny_base(), "harness:texts", folder=folder)
    requests = [
        Asked("generate_until", f"{item}:", {"until": ["a", "e"], "max_gen_toks": 7}) for item, _ in ROWS
    ]
    answers = HarnessModel(tiny_base()).generate_until(requests)
    lines = [json.dumps({"input": row[0], "target": text}) for row, text in zip(ROWS, answers, strict=True)]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    write_yaml(folder, "best", _with(text, "max_gen_toks: 7", "max_gen_toks: 7, do_sample: false"))
    values = {row.metric: row.value for row in loradex.evaluate(tiny_base(), "harness:best", folder=folder)}
    assert (values["exact_match"], values["chrf"]) == (1.0, pytest.approx(1.0))
    assert texts[0].value < 1.0
    rolling = "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{input}}'\n"
    head = CHOICES.partition("output_type")[0]
    write_yaml(folder, "rolling", f"{head}{rolling}metric_list: [{{metric: word_perplexity}}]\n")
    (row,) = loradex.evaluate(tiny_base(), "harness:rolling", folder=folder)
    assert row.metric == "word_perplexity"
    assert row.value > 100


def test_documents_that_are_too_long_are_an_error_or_counted(folder: Path) -> None:
    rows = [("x" * 600, "yes"), *ROWS[:4]]
    lines = "".join(json.dumps({"input": item, "target": target}) + "\n" for item, target in rows)
    (folder / "rows.jsonl").write_text(lines)
    for name in ("choices", "texts"):
        with pytest.raises(UsageError, match=rf"Document 0 of harness:{name} has 6\d\d tokens .* 512 that"):
            loradex.evaluate(tiny_base(), f"harness:{name}", folder=folder)
        scores = loradex.evaluate(tiny_base(), f"harness:{name}", folder=folder, too_long="skip")
        assert {(row.n, row.left_out) for row in scores} == {(4, 1)}


def test_examples_before_a_question_are_those_that_were_measured(folder: Path) -> None:
    """Leaving out a document, or building again, draws no others for those that stay."""
    rows = [("x" * 600, "yes"), *ROWS]
    lines = "".join(json.dumps({"input": item, "target": target}) + "\n" for item, target in rows)
    (folder / "rows.jsonl").write_text(lines)
    shown = ", ".join(f"{{input: s{number}, target: 'no'}}" for number in range(8))
    write_yaml(folder, "few", f"{CHOICES}fewshot_config: {{samples: [{shown}]}}\n")
    task = load_harness_task("few", folder, shots=2)
    subtask = task.tasks["few"]
    harness_round(task, replace(tiny_base(), limit=2048))
    texts = [str(request.args[0]) for request in subtask.instances]
    assert len({text.partition(" right?")[0] for text in texts[2:]}) > 2
    first = harness_round(task, tiny_base(), too_long="skip")
    assert [str(request.args[0]) for request in subtask.instances] == texts[2:]
    assert [request.doc_id for request in subtask.instances] == sorted([*range(12)] * 2)
    assert (first.left_out, first.documents) == (1, {"few": [*range(1, 13)]})
    assert {row.n for row in first.score(tiny_base(), "base", "base")} == {12}
    assert harness_round(task, tiny_base(), too_long="skip").identity == first.identity


def _with(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


REFUSED = {
    "unsafe": (CHOICES + "unsafe_code: true\n", "runs code that a model writes"),
    "function": (CHOICES + "process_docs: !function code.fill\n", "function.yaml contains Python functions"),
    "python": (CHOICES + "description: !!python/name:os.system\n", "python.yaml is not a task of lm-eval"),
    "included": ("include: function.yaml\ntask: included\n", "included.yaml contains Python functions"),
    "metric": (
        _with(CHOICES, "metric: acc}", "metric: unheard}"),
        "metric unheard of harness:metric is code that would be fetched",
    ),
    "template": (
        _with(CHOICES, "{{input}}", "{{input.__class__.__mro__}}"),
        "harness:template cannot be loaded: access to attribute '__class__' of 'str' object is unsafe",
    ),
    "sampled": (
        _with(TEXTS, "max_gen_toks: 7", "do_sample: true, temperature: 0.7"),
        "samples its answers; only greedy",
    ),
    "pictures": (CHOICES + "doc_to_image: input\n", "has pictures or sounds"),
    "hub": (
        _with(_with(CHOICES, "dataset_kwargs: {data_files: {test: FILE}}\n", ""), "path: json", "path: a/b"),
        "harness:hub cannot be loaded: Couldn't reach 'a/b' on the Hub",
    ),
    "files": (
        _with(CHOICES, "FILE", "/nowhere/rows.jsonl"),
        "harness:files cannot be loaded: Unable to find",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_task_that_runs_code_or_has_no_data_is_one_sentence(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    for other in ("function", name):
        write_yaml(folder, other, REFUSED[other][0])
    (folder / "code.py").write_text("raise SystemExit('run')\n")
    with pytest.raises(UsageError, match=REFUSED[name][1]):
        loradex.evaluate(tiny_base(), f"harness:{name}", folder=folder)


def test_an_unknown_name_and_a_split_are_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.tasks import _index

    # All files of the harness take ten seconds to read.
    monkeypatch.setattr(_index.TaskIndex, "build", staticmethod(lambda paths, **_: {}))
    with pytest.raises(NotFoundError, match=r"Task harness:choice not found; its tasks are listed by"):
        loradex.evaluate(tiny_base(), "harness:choice", folder=folder)
    with pytest.raises(UsageError, match="have a split of their own; leave out `split`"):
        loradex.evaluate(tiny_base(), "harness:choices", folder=folder, split="valid")


def test_the_command_shows_protocol_and_error(folder: Path, tmp_path: Path) -> None:
    base, out = save_base(tiny_base(), tmp_path / "base"), tmp_path / "scores.json"
    arguments = ["evaluate", "--base", str(base), "--task", "harness:choices", "--tasks", str(folder)]
    result = CliRunner().invoke(program, [*arguments, "--limit", "6", "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert "stderr" in result.stdout.splitlines()[0]
    assert "protocol" in result.stdout.splitlines()[0]
    assert f"lm-eval {version('lm_eval')}" in result.stdout
    document = json.loads(out.read_text())
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(document)
    scores = document["scores"]
    assert [(row["task"], row["metric"], row["n"]) for row in scores] == [
        ("harness:choices", "acc", 6),
        ("harness:choices", "acc_norm", 6),
    ]
    assert len(read_scores(out, source="s", split="test", metric="accuracy", n=None)) == 2


def test_a_file_whose_alias_leads_back_to_itself_is_read_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "loop.yaml"
    file.write_text("task: x\nloop: &a [*a]\n")
    assert not _has_code(file, set())
    file.write_text("task: x\nloop: &a [*a, !function f]\n")
    assert _has_code(file, set())
