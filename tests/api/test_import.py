"""Tasks from tables, data sets of the Hub, lm-evaluation-harness and the recycling paper's checkout."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from click.testing import CliRunner

import loradex
from catalog.errors import NotFoundError, UsageError
from cli.main import loradex as program
from crawler.localhub import LocalHub
from loradex.columns import _find_choice
from loradex.hubdata import SourceFacts
from loradex.papertasks import paper_splits, read_paper_tasks
from merging.model import Example, examples, read_task

pytestmark = pytest.mark.filterwarnings("ignore")
ASK = {"instruction": "Good?", "inputs": "text", "target": "label"}


def write_rows(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def reviews(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"text": f"number {n}", "label": "yes" if n % 3 else "no"} for n in range(start, start + count)]


def test_a_table_becomes_a_task_with_drawn_splits(tmp_path: Path) -> None:
    rows = "".join(f'"a, {n}",{"yes" if n % 3 else "no"}\n' for n in range(40))
    file = tmp_path / "reviews.csv"
    file.write_text(f"text,label\n{rows}")
    task = loradex.import_task(file, tmp_path / "out", **ASK, valid=0.1, test=0.25, license="CC0-1.0")
    assert (task.name, task.metric, task.choices, task.license) == (
        "out",
        "accuracy",
        ("no", "yes"),
        "CC0-1.0",
    )
    assert task.source.startswith("reviews.csv (sha256 ")
    parts = [examples(task, split) for split in ("train", "valid", "test")]
    assert [len(part) for part in parts] == [26, 4, 10]
    assert Counter(row.input for part in parts for row in part) == Counter(f"a, {n}" for n in range(40))
    again = loradex.import_task(file, tmp_path / "again", **ASK, name="out", valid=0.1, test=0.25)
    assert examples(again, "test") == parts[2]
    other = loradex.import_task(file, tmp_path / "other", **ASK, name="out", valid=0.1, test=0.25, seed=1)
    assert examples(other, "test") != parts[2]
    with pytest.raises(UsageError, match=r"out exists; use another folder or `overwrite=True`"):
        loradex.import_task(file, tmp_path / "out", **ASK)
    assert loradex.import_task(file, tmp_path / "out", **ASK, overwrite=True, limit=3).license == "unknown"
    assert [row.train for row in loradex.list_tasks(tmp_path / "out")] == [3]


def test_a_folder_has_a_file_a_split(tmp_path: Path) -> None:
    write_rows(tmp_path / "data" / "train.jsonl", reviews(9))
    (tmp_path / "data" / "validation.json").write_text(json.dumps(reviews(4, 20), indent=1))
    (tmp_path / "data" / "test.tsv").write_text("label\ttext\nyes\tlast\n")
    task = loradex.import_task(tmp_path / "data", tmp_path / "out", **ASK)
    assert [len(examples(task, split)) for split in ("train", "valid", "test")] == [9, 4, 1]
    swapped = loradex.import_task(tmp_path / "data", tmp_path / "two", **ASK, splits={"test": "validation"})
    assert examples(swapped, "test") == examples(task, "valid")
    assert len(examples(swapped, "train")) + len(examples(swapped, "valid")) == 9


@pytest.mark.parametrize(
    ("choices", "target"),
    [
        (["red", "blue"], "blue"),
        (["red", "blue"], 1),
        (["red", "blue"], "B"),
        ({"text": ["red", "blue"], "label": ["1", "2"]}, "2"),
    ],
)
def test_a_target_names_its_choice(tmp_path: Path, choices: Any, target: Any) -> None:
    rows = [
        {"q": {"stem": "Sky?"}, "c": choices, "t": target},
        {"q": {"stem": "Sea?"}, "c": ["a", "b", "c"], "t": 0},
    ]
    file = write_rows(tmp_path / "rows.jsonl", rows * 10)
    task = loradex.import_task(
        file, tmp_path / "out", instruction="?", inputs=["q.stem", "t"], target="t", choices="c"
    )
    rows_read = [row for split in ("train", "valid", "test") for row in examples(task, split)]
    assert {(row.input, row.target, row.choices) for row in rows_read} == {
        (f"q.stem: Sky?\nt: {target}", "blue", ("red", "blue")),
        ("q.stem: Sea?\nt: 0", "a", ("a", "b", "c")),
    }
    assert (task.metric, task.choices) == ("accuracy", ())


@pytest.mark.parametrize(
    ("target", "counted", "choices", "names", "choice"),
    [
        ("2", True, ("8", "2", "24", "120"), (), "24"),
        ("1", False, ("4", "3", "2", "1"), ("1", "2", "3", "4"), "4"),
        ("A", False, ("B", "A"), ("A", "B"), "B"),
        ("True", False, ("False", "True"), (), "True"),
    ],
)
def test_choices_that_look_like_numbers(
    target: str, counted: bool, choices: tuple[str, ...], names: tuple[str, ...], choice: str
) -> None:
    assert _find_choice(target, counted, choices, names, "row 1") == choice


@pytest.mark.parametrize(("target", "counted"), [("2", False), ("9", True), ("E", False)])
def test_a_target_that_means_two_choices_or_none_is_refused(target: str, counted: bool) -> None:
    with pytest.raises(UsageError, match=r"row 1: the target"):
        _find_choice(target, counted, ("8", "2", "24", "120"), (), "row 1")


@pytest.mark.parametrize("name", ["../../evil", "/abs", ".hidden", "a b"])
def test_a_task_of_the_paper_has_a_name_that_is_a_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "tasks.yaml").write_text(json.dumps({name: {"path": ["x"]}}))
    with pytest.raises(UsageError, match="is not a name of a folder"):
        read_paper_tasks(tmp_path)


def test_few_targets_are_choices_and_many_are_texts(tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "label": n % 11, "name": f"n{n}"} for n in range(60)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    ask = {"instruction": "?", "inputs": "text"}
    assert loradex.import_task(file, tmp_path / "a", **ask, target="label").choices == tuple(
        map(str, range(11))
    )
    labels = [f"kind {n}" for n in range(11)]
    assert set(
        loradex.import_task(file, tmp_path / "b", **ask, target="label", labels=labels).choices
    ) == set(labels)
    free = loradex.import_task(file, tmp_path / "c", **ask, target="name", max_new_tokens=5)
    assert (free.metric, free.choices) == ("exact_match", ())
    assert json.loads((tmp_path / "c" / "task.json").read_text())["max_new_tokens"] == 5
    forced = loradex.import_task(file, tmp_path / "d", **ask, target="label", metric="exact_match")
    assert (forced.metric, forced.choices) == ("exact_match", ())


def test_choices_are_those_that_are_named(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", reviews(30))
    task = loradex.import_task(file, tmp_path / "out", **ASK, choice=["yes", "no", "perhaps"])
    assert (task.metric, task.choices) == ("accuracy", ("yes", "no", "perhaps"))
    with pytest.raises(UsageError, match="has the target 'no', which is not a choice"):
        loradex.import_task(file, tmp_path / "two", **ASK, choice=["yes", "perhaps"])
    assert not (tmp_path / "two").exists()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no columns": ({"inputs": ()}, "Name the columns of the input and of the right answer"),
    "no instruction": ({"instruction": ""}, "requires an instruction"),
    "column": (
        {"target": "kind"},
        "train row 1 has no column kind; its columns are label, list,",
    ),
    "list": ({"inputs": "list"}, "train row 1: the column list is not a text or a number"),
    "choices": ({"choices": "text"}, "train row 1, text is not a list of choices"),
    "not chosen": ({"choices": "list", "target": "number"}, "target '7' is none of its 2 choices"),
    "labels": ({"labels": ["no"], "target": "number"}, "target '7' is not the number of one of 1 labels"),
    "accuracy": ({"metric": "accuracy", "target": "text"}, "Accuracy requires choices"),
    "shares": ({"valid": 0.6, "test": 0.4}, "leave train empty"),
    "split": ({"splits": {"test": "dev"}}, "There is no split dev; there are train"),
    "our split": ({"splits": {"exam": "train"}}, "exam is not a split of a task"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_one_sentence_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    rows = [{**row, "list": ["x", "y"], "number": 7} for row in reviews(20)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    settings, words = REFUSED[name]
    with pytest.raises(UsageError, match=words):
        loradex.import_task(file, tmp_path / "out", **{**ASK, **settings})
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"text,label\nonly\n", "line 2: requires 2 cells"),
        ("a.csv", b"text,text\na,b\n", "line 1: a column has no name, or two have the same"),
        ("a.csv", b"text,label\n\xff,b\n", "is not a table in UTF-8"),
        ("a.jsonl", b'{"text": "a", "label": "b"}\n[1]\n', "line 2 is not a JSON object"),
        ("a.json", b"{", "is not JSON"),
        ("a.parquet", b"PAR1PAR1", "is not a Parquet file"),
        ("a.pkl", b"", "is not a table; give a .csv"),
        ("a.jsonl", b'{"text": "", "label": "b"}\n' * 9, "row 1: the column text is empty"),
    ],
)
def test_a_file_that_is_not_a_table_is_one_sentence(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=words):
        loradex.import_task(tmp_path / name, tmp_path / "out", **ASK)
    with pytest.raises(NotFoundError, match=r"none.csv does not exist; give a"):
        loradex.import_task(tmp_path / "none.csv", tmp_path / "out", **ASK)


def test_parquet_is_read(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(reviews(20)), tmp_path / "rows.parquet")
    task = loradex.import_task(tmp_path / "rows.parquet", tmp_path / "out", **ASK)
    assert {row.target for row in examples(task, "train")} == {"yes", "no"}


CHOICE_TASK = """\
task: local
dataset_path: json
dataset_kwargs: {data_files: {test: FILE, train: FILE}}
training_split: train
test_split: test
output_type: multiple_choice
description: "Answer."
doc_to_text: "Is {{text}} good?"
doc_to_choice: ["no", " yes"]
doc_to_target: "{{label}}"
metadata: {version: 2.0}
"""


def test_a_task_of_the_harness_becomes_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval", reason="the extra harness is not installed")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    file = write_rows(tmp_path / "yaml" / "rows.jsonl", reviews(30))
    for kind in ("multiple_choice", "loglikelihood"):
        text = CHOICE_TASK.replace("FILE", str(file)).replace("multiple_choice", kind)
        (file.parent / f"{kind}.yaml").write_text(text.replace("local", kind))
    task = loradex.import_task("harness:multiple_choice", tmp_path / "out", tasks=file.parent, limit=20)
    assert (task.instruction, task.metric, task.choices) == ("Answer.", "accuracy", ("no", "yes"))
    assert task.source.startswith("lm-evaluation-harness 0.4")
    assert examples(task, "test")[1].input == "Is number 1 good?"
    assert [len(examples(task, split)) for split in ("train", "valid", "test")] == [20, 3, 20]
    with pytest.raises(UsageError, match="has neither choices nor text answers"):
        loradex.import_task("harness:loglikelihood", tmp_path / "two", tasks=file.parent)
    with pytest.raises(UsageError, match="only be evaluated; make a task of it with `import_task`"):
        loradex.train("nowhere", "harness:multiple_choice", out=tmp_path / "trained")


PAPER = """\
plain:
    json_file: "data/plain.json"
    instruction: "Count.\\n"
    user_input: input
    assistant_output: target
    answer_len: long
pairs:
    path: ["owner/pairs", "small"]
    split: {train: train, valid: validation}
    instruction: Compare.
    user_input:
        PREMISE: one
        HYPOTHESIS: two
    assistant_output: label
    answer_len: short
options:
    path: ["owner/options"]
    instruction: Choose.
    user_input:
        QUESTION: q
        CHOICES: {key_name: c, fields: ["label", "text"], concat_symbol: ":"}
    assistant_output: a
    answer_len: short
unused: {path: ["owner/gone"], instruction: "-", user_input: q, assistant_output: a}
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with the layout of the paper's, made for this test."""
    place = tmp_path / "checkout"
    write_rows(place / "data" / "plain.json", [{"input": f"how many {n}", "target": n} for n in range(30)])
    (place / "tasks.yaml").write_text(PAPER)
    (place / "LICENSE").write_text("MIT License\n")
    (place / "experiments").mkdir()
    lists = "# export tasks=(unused)\nexport tasks=(plain pairs options)\nexport tasks_more=(unused)\n"
    (place / "experiments" / "task_info.sh").write_text(lists)
    for name, valid in (("plain", "train_9"), ("pairs", "valid_1"), ("options", "train_2")):
        ids = {"train": ["train_7", "train_3"], "valid": [valid], "test": ["train_11", "train_12", "train_0"]}
        (place / "data" / f"subset_idx_{name}_size100.json").write_text(json.dumps(ids))
    return place


def paper_data(name: str, config: str | None) -> Any:
    """Rows of the two data sets as the Hub would have them."""
    facts = SourceFacts(f"{name} {config}", "mit")
    if name == "owner/pairs":
        rows = [{"one": f"a{n}", "two": f"b{n}", "label": n % 2} for n in range(20)]
        return {"train": rows, "validation": rows[::-1]}, facts
    rows = [
        {"q": f"q{n}", "c": {"label": ["A", "B"], "text": ["first", "second"]}, "a": "B"} for n in range(20)
    ]
    return {"train": rows}, facts


def test_paper_tasks_have_the_stored_examples_in_the_words_of_the_paper(checkout: Path) -> None:
    tasks = {task.name: task for task in read_paper_tasks(checkout)}
    assert list(tasks) == ["plain", "pairs", "options"]
    plain, facts = paper_splits(tasks["plain"], paper_data)
    # Sorted by number, as their code selects rows.
    assert plain["train"] == [Example("how many 3", "3"), Example("how many 7", "7")]
    assert [example.target for example in plain["test"]] == ["0", "11", "12"]
    assert (facts.license, tasks["plain"].max_new_tokens) == ("MIT", 500)
    pairs, _ = paper_splits(tasks["pairs"], paper_data)
    assert pairs["valid"] == [Example("PREMISE - a18 [SEP] \nHYPOTHESIS - b18", "0")]
    options, _ = paper_splits(tasks["options"], paper_data)
    # Their code cuts five characters from the end, which here are those of the last choice.
    text = "QUESTION - q2 [SEP] \n\nCHOICES - \nA : first\nB : s"
    assert options["valid"] == [Example(text, "B")]


def test_paper_tasks_that_cannot_be_reached_are_named_and_others_go_on(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loradex.importing.dataset_splits", paper_data)
    (checkout / "data" / "subset_idx_pairs_size100.json").unlink()
    arguments = ["task", "import-paper", str(checkout), "-o", str(tmp_path / "tasks"), "--json"]
    result = CliRunner().invoke(program, arguments)
    assert result.exit_code == 3, result.output
    assert "left out: " in result.stderr
    assert (
        "subset_idx_pairs_size100.json does not exist; extract data.tar.gz in the checkout" in result.stderr
    )
    rows = json.loads(result.stdout)
    assert [(row["task"], row["train"], row["valid"], row["test"]) for row in rows] == [
        ("plain", 2, 1, 3),
        ("options", 2, 1, 3),
    ]
    document = json.loads((tmp_path / "tasks" / "plain" / "task.json").read_text())
    assert (document["metric"], document["choices"]) == ("exact_match", None)
    assert (document["max_new_tokens"], document["instruction_role"]) == (500, "system")
    for test_id, words in (
        ("train_99", "name row 99 of train"),
        ("dev_0", "name the split dev"),
        ("x", "ids"),
    ):
        ids = {"train": ["train_1"], "valid": ["train_2"], "test": [test_id]}
        (checkout / "data" / "subset_idx_pairs_size100.json").write_text(json.dumps(ids))
        (failure,) = loradex.import_paper_tasks(checkout, tmp_path / "tasks", tasks=["pairs"]).failures
        assert words in str(failure)
    with pytest.raises(NotFoundError, match=r"has no task none; it has plain, pairs, options, unused"):
        loradex.import_paper_tasks(checkout, tmp_path / "tasks", tasks=["none"])
    with pytest.raises(NotFoundError, match=r"give a checkout of https://github\.com/r-three"):
        loradex.import_paper_tasks(tmp_path, tmp_path / "tasks")


def test_the_list_has_a_row_a_task_and_names_what_cannot_be_read(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", reviews(30))
    loradex.import_task(file, tmp_path / "tasks" / "one", **ASK, license="mit")
    (tmp_path / "tasks" / "two").mkdir()
    (tmp_path / "tasks" / "two" / "task.json").write_text("{}")
    result = CliRunner().invoke(program, ["task", "list", str(tmp_path / "tasks")])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[1].split() == ["one", "accuracy", "2", "24", "3", "3", "mit"]
    assert "two/task.json" in result.stderr
    with pytest.raises(NotFoundError, match="contains no task"):
        loradex.list_tasks(tmp_path)


def test_the_command_makes_a_task(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", reviews(30))
    words = ["task", "import", str(file), "-o", str(tmp_path / "out"), "--instruction", "Good?"]
    result = CliRunner().invoke(program, [*words, "--input", "text", "--target", "label", "--test", "0.5"])
    assert result.exit_code == 0, result.output
    assert "out is in" in result.stderr
    assert loradex.list_tasks(tmp_path / "out")[0].test == 15
    result = CliRunner().invoke(program, [*words, "--input", "text", "--split", "test"])
    assert result.exit_code == 2
    assert "'test' is not a pair; write one such as test=validation" in result.stderr


def as_datasets(app: Any, moved: Mapping[str, str] = MappingProxyType({})) -> Any:
    """The local Hub, whose repositories are data sets for clients that ask for such; some have `moved`."""

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            for old, new in moved.items():
                path = path.replace(old, new)
            for prefix, other in (("/api/datasets/", "/api/models/"), ("/datasets/", "/")):
                if path.startswith(prefix):
                    scope = {**scope, "path": other + path.removeprefix(prefix), "raw_path": b""}
        await app(scope, receive, send)

    return serve


def test_tasks_of_the_paper_are_read_from_the_hub(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data sets with configurations, one of them under its old name without an owner."""
    pytest.importorskip("datasets", reason="the extra harness is not installed")
    import datasets
    import huggingface_hub

    file = checkout / "tasks.yaml"
    file.write_text(file.read_text().replace("owner/pairs", "pairs"))
    for name, config in (("owner/pairs", "small"), ("owner/options", "default")):
        place = tmp_path / "hub" / name
        splits, _ = paper_data(name, config)
        files = [f"    - {{split: {split}, path: {split}.jsonl}}" for split in splits]
        card = [
            "---",
            "license: mit",
            "configs:",
            f"- config_name: {config}",
            "  data_files:",
            *files,
            "---",
            "",
        ]
        for split, rows in splits.items():
            write_rows(place / f"{split}.jsonl", rows)
        (place / "README.md").write_text("\n".join(card))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    moved = {"/api/datasets/pairs/": "/api/datasets/owner/pairs/"}
    with LocalHub(tmp_path / "hub", wrap=lambda app: as_datasets(app, moved)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
        tasks = loradex.import_paper_tasks(checkout, tmp_path / "tasks")
    assert tasks.failures == ()
    assert [(row.task, row.train, row.valid, row.test, row.license) for row in tasks] == [
        ("plain", 2, 1, 3, "MIT"),
        ("pairs", 2, 1, 3, "mit"),
        ("options", 2, 1, 3, "mit"),
    ]
    assert re.search(r"datasets/owner/pairs at [0-9a-f]{40} \(small\)", tasks[1].source)
    pairs = read_task(tmp_path / "tasks" / "pairs")
    assert examples(pairs, "valid") == (Example("PREMISE - a18 [SEP] \nHYPOTHESIS - b18", "0"),)


def test_a_data_set_of_the_hub_is_pinned_and_has_its_license(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets", reason="the extra harness is not installed")
    import datasets
    import huggingface_hub

    place = tmp_path / "hub" / "owner" / "reviews"
    write_rows(place / "train.jsonl", reviews(30))
    write_rows(place / "test.jsonl", reviews(6, 50))
    (place / "README.md").write_text("---\nlicense: cc-by-4.0\n---\nReviews.\n")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    with LocalHub(tmp_path / "hub", wrap=as_datasets) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
        task = loradex.import_task("hf:owner/reviews", tmp_path / "out", **ASK)
    assert (task.license, task.metric, task.choices) == ("cc-by-4.0", "accuracy", ("no", "yes"))
    assert re.fullmatch(r"https://huggingface.co/datasets/owner/reviews at [0-9a-f]{40}", task.source)
    assert [len(examples(task, split)) for split in ("train", "valid", "test")] == [27, 3, 6]
