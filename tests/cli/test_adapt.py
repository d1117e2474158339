"""`evaluate` and `adapt` as a user runs them, on a small model in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from peft import PeftModel

from catalog.adapters import engine_problems
from merging.model.base import kept_name
from tests.merging.test_evaluate import ROWS, tiny_adapter
from tests.merging.tiny import NAME, save_base, tiny_base, write_task

Program = Callable[..., Result]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]


@pytest.fixture
def place(tmp_path: Path, data: Path) -> Path:
    """A base that is kept, two tasks and three adapters."""
    save_base(tiny_base(), data / "bases" / kept_name(NAME))
    for name in ("first", "second"):
        write_task(tmp_path / "tasks" / name, ROWS)
    for number in range(3):
        tiny_adapter(tmp_path / f"a{number}", number, size=0.3)
    return tmp_path


def test_evaluate_prints_scores_that_can_be_imported(run: Program, place: Path) -> None:
    words = ["evaluate", "--base", NAME, "--task", "all", "--tasks", str(place / "tasks"), "--limit", "6"]
    adapters = [word for number in range(2) for word in ("--adapter", str(place / f"a{number}"))]
    file, log = place / "scores.json", place / "log.jsonl"
    result = run(*words, *adapters, "-o", str(file), "--log", str(log), "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert [(row["adapter"], row["task"]) for row in document["scores"]] == [
        (adapter, task) for adapter in ("base", "a0", "a1") for task in ("first", "second")
    ]
    assert json.loads(file.read_text()) == document
    assert len(log.read_text().splitlines()) == 6
    again = run(*words, *adapters, "--log", str(log), "--json")
    assert json.loads(again.stdout) == document
    assert "a1" in run(*words, *adapters, "--log", str(log)).stdout
    imported = run("scores", "import", str(file), "--json")
    assert json.loads(imported.stdout)["rows"] == 6


def test_an_adapter_of_another_base_is_left_out_with_exit_code_3(run: Program, place: Path) -> None:
    config = place / "a0" / "adapter_config.json"
    config.write_text(config.read_text().replace("q_proj", "k_proj"))
    weights = place / "a0" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes().replace(b"q_proj", b"k_proj"))
    words = ["evaluate", "--base", NAME, "--task", str(place / "tasks" / "first"), "--limit", "3"]
    result = run(*words, "--adapter", str(place / "a0"), "--adapter", str(place / "a1"), "--json")
    assert result.exit_code == 3
    assert "left out:" in result.stderr
    assert [row["adapter"] for row in json.loads(result.stdout)["scores"]] == ["base", "a1"]


def test_adapt_writes_an_adapter_that_peft_loads(run: Program, place: Path) -> None:
    out = place / "adapted"
    words = ["adapt", str(place / "a1"), str(place / "a2"), "--base", NAME, "--task", "first", "--tasks"]
    words += [str(place / "tasks"), "--with", str(place / "a0"), "--samples", "20", "--steps", "6"]
    result = run(*words, "--split", "test", "--limit", "5", "-o", str(out), "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["score"]["n"] == 5
    assert document["target"] == "a0"
    assert [member["name"] for member in document["members"]] == ["a0", "a1", "a2"]
    assert document["valid_loss"] <= document["valid_before"]
    PeftModel.from_pretrained(tiny_base().model, out)
    config = json.loads((out / "adapter_config.json").read_text())
    assert document["misread"] == list(engine_problems(out))
    assert (config["lora_alpha"], config["rank_pattern"], config["alpha_pattern"]) == (config["r"], {}, {})
    assert config["r"] in (8, 16, 32)
    again = run(*words, "-o", str(out))
    assert again.exit_code != 0
    assert " exists; use" in again.stderr
    output = run(*words, "-o", str(out), "--overwrite")
    assert output.exit_code == 0
    assert "recycling" in output.stdout


def test_adapt_with_stand_ins_makes_them_once(run: Program, place: Path, data: Path) -> None:
    words = [
        "adapt",
        str(place / "a1"),
        str(place / "a2"),
        "--base",
        NAME,
        "--task",
        str(place / "tasks/first"),
    ]
    words += [
        "--control",
        "random-each",
        "--samples",
        "20",
        "--steps",
        "3",
        "--split",
        "valid",
        "--limit",
        "4",
    ]
    first, second = (json.loads(run(*words, "--json").stdout) for _ in range(2))
    assert first == second
    assert first["members"][0]["sha256"] != ""
    assert len(list((data / "controls").iterdir())) == 1
    words[words.index("random-each")] = "random-directions"
    assert run(*words).exit_code == 0
    assert len(list((data / "controls").iterdir())) == 2


def test_the_score_is_that_of_the_adapter_that_was_written(run: Program, place: Path) -> None:
    task = str(place / "tasks" / "first")
    words = ["adapt", str(place / "a1"), str(place / "a2"), "--base", NAME, "--task", task, "--samples", "20"]
    words += ["--method", "adamerging", "--steps", "3", "--rank", "1", "--split", "test"]
    document = json.loads(run(*words, "-o", str(place / "out"), "--json").stdout)
    alone = run("evaluate", "--base", NAME, "--task", task, "--adapter", str(place / "out"), "--json")
    row = json.loads(alone.stdout)["scores"][1]
    assert document["score"]["loss"] == pytest.approx(row["loss"], abs=1e-5)


def test_adapters_of_one_name_are_told_apart(run: Program, place: Path) -> None:
    for seed in (1, 2):
        tiny_adapter(place / f"seed{seed}" / "mine", seed)
    words = ["evaluate", "--base", NAME, "--task", str(place / "tasks" / "first"), "--limit", "3", "--json"]
    adapters = [word for seed in (1, 2) for word in ("--adapter", str(place / f"seed{seed}" / "mine"))]
    rows = json.loads(run(*words, *adapters).stdout)["scores"]
    assert len({row["adapter"] for row in rows}) == 3
    tiny_adapter(place / "base", 3)
    result = run(*words, "--adapter", str(place / "base"))
    assert "is reserved for the base model" in result.stderr


def test_nonsense_is_one_sentence(run: Program, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The Hub's own client tries again for most of a minute.
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    words = ["adapt", str(place / "a1"), "--base", NAME, "--task", str(place / "tasks" / "first")]
    for more, sentence in (
        ([], "Say where the adapter goes (--out)"),
        (["-o", "x", "--samples", "500"], "fewer than the requested 500"),
        (["-o", "x", "--samples", "20", "--method", "averge"], "did you mean average"),
        (["-o", "x", "--samples", "20", "--method", "arrow"], "arrow makes no adapter"),
        (["-o", str(place / "a1"), "--samples", "20"], " exists; use"),
    ):
        result = run(*words, *more)
        assert result.exit_code != 0
        assert sentence in result.stderr
    result = run("evaluate", "--base", "no/base", "--task", str(place / "tasks" / "first"))
    assert result.exit_code != 0
    assert len(result.stderr.strip().splitlines()) <= 2
    result = run(
        "evaluate", "--base", NAME, "--task", str(place / "tasks" / "first"), "--adapter", str(place)
    )
    assert "is not a folder of an adapter" in result.stderr
    result = run("base", "keep", "owner/name", str(place / "none.gguf"))
    assert "does not exist; give a GGUF" in result.stderr


def test_adaptive_lists_the_methods(run: Program) -> None:
    rows = json.loads(run("adaptive", "--json").stdout)
    assert {"recycling", "lorahub", "arrow"} <= {row["method"] for row in rows}
    assert "recycling" in run("adaptive").stdout


def test_long_examples_stop_evaluate_or_are_counted_in_its_table(run: Program, place: Path) -> None:
    task = place / "tasks" / "long"
    write_task(task, [*ROWS[:8], ("z" * 600, "yes")])
    words = ["evaluate", "--base", NAME, "--task", str(task)]
    result = run(*words)
    assert result.exit_code == 2
    assert "Example 9 of long has" in result.stderr
    assert "--too-long skip" in result.stderr
    result = run(*words, "--too-long", "skip")
    assert result.exit_code == 0, result.output
    head, row = result.stdout.splitlines()[:2]
    assert head.split()[-3:] == ["n", "too", "long"]
    assert row.split()[-2:] == ["8", "1"]
    assert json.loads(run(*words, "--too-long", "skip", "--json").stdout)["scores"][0]["left_out"] == 1
    words = [
        "adapt",
        str(place / "a1"),
        "--base",
        NAME,
        "--task",
        str(task),
        "--samples",
        "9",
        "--steps",
        "1",
    ]
    assert "--too-long skip" in run(*words, "--split", "test").stderr
    result = run(*words, "--split", "test", "--too-long", "skip", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert (document["left_out"], document["score"]["left_out"]) == (1, 1)
    assert "examples longer than the model reads, left out: 1" in result.stderr


def test_a_date_is_an_option_and_said(run: Program, place: Path, data: Path) -> None:
    base = tiny_base()
    base.tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }} {{ messages[0]['content'] }}<|assistant|>"
    save_base(base, data / "bases" / kept_name("owner/dated"))
    task = str(place / "tasks" / "first")
    words = ["evaluate", "--base", "owner/dated", "--task", task, "--limit", "3", "--json"]
    first, again, later = run(*words), run(*words), run(*words, "--date", "2025-01-02")
    assert first.stdout == again.stdout
    assert "the prompts say the date 2024-07-26, whatever the day is" in first.stderr
    rows = [json.loads(item.stdout)["scores"][0] for item in (first, later)]
    assert [row["date"] for row in rows] == ["2024-07-26", "2025-01-02"]
    assert rows[0]["key"] != rows[1]["key"]
    assert "--date" in run(*words, "--date", "tomorrow").stderr


def test_prompts_that_are_read_plainly_are_said_once(run: Program, place: Path, data: Path) -> None:
    from tests.merging.architectures import architecture

    save_base(architecture("mistral"), data / "bases" / kept_name("owner/window"))
    words = ["--tasks", str(place / "tasks"), "--limit", "3", "--json"]
    result = run("evaluate", "--base", "owner/window", "--task", "all", *words)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("prompts are read one by one") == 1
    assert [row["plain"] for row in json.loads(result.stdout)["scores"]] == [True, True]
