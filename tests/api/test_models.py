"""`loradex.train`, `adapt` and `evaluate` on a small model in a folder."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

import loradex
from catalog.errors import NotFoundError, UsageError
from loradex.presets import PRESETS
from merging.model import LoadedBase
from tests.merging.test_evaluate import ROWS, tiny_adapter
from tests.merging.tiny import save_base, tiny_base, write_task

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture
def base() -> LoadedBase:
    return tiny_base()


@pytest.fixture
def task(tmp_path: Path) -> Path:
    write_task(tmp_path / "tasks" / "first", ROWS)
    return tmp_path / "tasks" / "first"


@pytest.fixture
def adapters(tmp_path: Path) -> list[Path]:
    return [tiny_adapter(tmp_path / f"a{number}", number, size=0.3).folder for number in range(2)]


def test_tasks_are_found_by_folder_and_by_name(task: Path) -> None:
    assert loradex.load_task(task) == loradex.load_task("first", task.parent)
    assert [found.name for found in loradex.load_tasks(["all"], task.parent)] == ["first"]
    with pytest.raises(NotFoundError, match=r"Task second not found; .*contains first"):
        loradex.load_task("second", task.parent)


def test_what_is_trained_is_written_and_scored(base: LoadedBase, task: Path, tmp_path: Path) -> None:
    events: list[loradex.ProgressEvent] = []
    report = loradex.train(
        base,
        task,
        out=tmp_path / "mine",
        rank=2,
        learning_rates=[1e-2],
        steps=3,
        samples=20,
        progress=events.append,
    )
    assert report.record == json.loads((tmp_path / "mine" / "train.json").read_text())
    assert (events[-1].step, events[-1].done) == ("training", events[-1].total)
    scores = loradex.evaluate(base, task, tmp_path / "mine", limit=5, out=tmp_path / "scores.json")
    assert [(row.adapter, row.n) for row in scores] == [("base", 5), ("mine", 5)]
    assert json.loads((tmp_path / "scores.json").read_text()) == scores.document()
    assert scores.failures == ()


def test_a_base_in_a_folder_is_loaded_once_for_several_calls(task: Path, tmp_path: Path) -> None:
    save_base(tiny_base(), tmp_path / "base")
    model = loradex.load_base(tmp_path / "base")
    rows = [loradex.evaluate(source, task, limit=4)[0] for source in (model, tmp_path / "base")]
    assert rows[0].value == rows[1].value
    assert rows[0].loss == pytest.approx(rows[1].loss)


def test_members_are_adapted_to_a_task(
    base: LoadedBase, task: Path, adapters: list[Path], tmp_path: Path
) -> None:
    report = loradex.adapt(
        adapters, base, task, out=tmp_path / "out", samples=20, steps=3, split="test", limit=4
    )
    assert report.folder == tmp_path / "out"
    assert report.record["valid_loss"] <= report.record["valid_before"]
    assert report.score is not None
    assert report.document()["score"] == {"split": "test", **report.score.document()}
    assert json.loads((tmp_path / "out" / "adapt.json").read_text())["members"] == report.record["members"]
    with pytest.raises(UsageError, match=r"Say where the adapter goes \(`out`\)"):
        loradex.adapt(adapters, base, task)
    with pytest.raises(UsageError, match="give a `catalog`"):
        loradex.adapt(adapters, base, task, out=tmp_path / "new", samples=20, control="random-each")


def test_members_that_a_method_leaves_out_are_in_the_notes(
    base: LoadedBase, task: Path, adapters: list[Path], tmp_path: Path
) -> None:
    settings: Any = {"samples": 20, "steps": 1, "target": adapters[0]}
    report = loradex.adapt(
        adapters[1:], base, task, method="target-rescaled", out=tmp_path / "one", **settings
    )
    assert report.notes == ("target-rescaled takes the target adapter alone: 1 member left out.",)
    assert [member["name"] for member in report.record["members"]] == ["a0"]
    report = loradex.adapt([], base, task, method="target-rescaled", out=tmp_path / "none", **settings)
    assert report.notes == ()


def test_an_adapter_that_does_not_fit_is_a_failure_beside_the_scores(
    base: LoadedBase, task: Path, adapters: list[Path]
) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        file = adapters[0] / name
        file.write_bytes(file.read_bytes().replace(b"q_proj", b"k_proj"))
    scores = loradex.evaluate(base, [task], adapters, limit=3, without_base=True)
    assert [row.adapter for row in scores] == ["a1"]
    assert len(scores.failures) == 1
    assert scores.notes == (f"left out: {scores.failures[0]}",)


def test_an_ensemble_is_a_row_under_a_name_of_its_own(
    base: LoadedBase, task: Path, adapters: list[Path], tmp_path: Path
) -> None:
    rows = loradex.evaluate(base, task, adapters, limit=4, ensemble="together", out=tmp_path / "scores.json")
    assert [row.adapter for row in rows] == ["base", "a0", "a1", "together"]
    assert json.loads((tmp_path / "scores.json").read_text()) == rows.document()
    for name in ("", " ", "base", "a1"):
        with pytest.raises(UsageError, match="An ensemble requires a name of its own, which "):
            loradex.evaluate(base, task, adapters, ensemble=name)
    with pytest.raises(UsageError, match="An ensemble requires adapters; give `adapters` or a `pool`"):
        loradex.evaluate(base, task, ensemble="together")


def test_adaptive_methods_are_rows() -> None:
    rows = {row.method: row for row in loradex.adaptive_methods()}
    assert rows["recycling"].folds
    assert not rows["arrow"].folds


@pytest.mark.parametrize("name", ["nope", "./nope/model"])
def test_a_folder_that_is_not_there_is_named_in_one_sentence(name: str, tmp_path: Path) -> None:
    path = str(tmp_path / name) if "/" not in name else name
    with pytest.raises(loradex.NotFoundError, match="is not the folder of a model with config"):
        loradex.load_base(path)


def test_a_preset_gives_what_the_call_does_not(base: LoadedBase, task: Path, tmp_path: Path) -> None:
    paper = loradex.train(
        base, task, out=tmp_path / "new", preset="recycling-paper", steps=1, samples=10
    ).record
    settings = paper["settings"]
    assert {name: settings[name] for name in ("rank", "alpha", "dropout", "variant", "targets")} == {
        "rank": 64,
        "alpha": 16.0,
        "dropout": 0.1,
        "variant": "lora",
        "targets": "all-linear",
    }
    recipe = {"steps": 1, "batch": 8, "evaluate_every": 10, "patience": 20, "seed": 0}
    assert settings["recipe"] == recipe
    assert [rate["learning_rate"] for rate in paper["rates"]] == [3e-4]
    assert (paper["preset"], paper["protocol"]) == ("recycling-paper", "recycling-paper")
    # A value that is the call's own default counts too, and so does the project's own protocol.
    other = loradex.train(
        base,
        task,
        out=tmp_path / "other",
        preset="recycling-paper",
        rank=16,
        alpha=None,
        learning_rates=[1e-3],
        steps=1,
        samples=10,
        protocol="",
    ).record
    assert (other["settings"]["rank"], other["settings"]["alpha"], other["learning_rate"]) == (16, 16.0, 1e-3)
    assert "protocol" not in other


def test_the_preset_of_the_paper_takes_its_own_400_steps() -> None:
    assert PRESETS["recycling-paper"]["train"]["steps"] == 400
    for name, rows in ((name, rows) for preset in PRESETS.values() for name, rows in preset.items()):
        assert set(rows) <= set(inspect.signature(getattr(loradex, name)).parameters)


def test_adapting_by_the_preset_is_the_papers_method_with_its_rate(
    base: LoadedBase, task: Path, adapters: list[Path], tmp_path: Path
) -> None:
    settings: Any = {"samples": 10, "split": "test", "limit": 4, "preset": "recycling-paper"}
    record = loradex.adapt(adapters, base, task, steps=1, **settings).document()
    assert (record["method"]["name"], record["recipe"]["rate"], record["recipe"]["batch"]) == (
        "recycling",
        0.05,
        8,
    )
    assert record["method"]["steps"] == 100
    assert (record["preset"], record["protocol"]) == ("recycling-paper", "recycling-paper")
    assert record["score"]["n"] == 4
    average = loradex.adapt(adapters, base, task, method="average", out=tmp_path / "mean", **settings).record
    assert average["method"]["name"] == "average"


def test_scores_by_the_preset_say_so_and_answer_by_text(
    base: LoadedBase, task: Path, adapters: list[Path]
) -> None:
    scores = loradex.evaluate(base, task, adapters[0], limit=3, preset="recycling-paper")
    assert {(row.protocol, row.metric) for row in scores} == {("recycling-paper", "exact_match_stripped")}
    assert {row["protocol"] for row in scores.document()["scores"]} == {"recycling-paper"}
    usual = loradex.evaluate(base, task, adapters[0], limit=3)
    assert all("protocol" not in row for row in usual.document()["scores"])
    assert not {row.key for row in usual} & {row.key for row in scores}
    by_length = loradex.evaluate(base, task, limit=3, protocol="likelihood-per-character")
    assert [(row.protocol, row.metric) for row in by_length] == [("likelihood-per-character", "accuracy")]


def test_a_template_without_a_system_message_is_noted(base: LoadedBase, task: Path) -> None:
    base.tokenizer.chat_template = base.tokenizer.chat_template.replace(
        "{% for", "{{ raise_exception('no') if messages[0].role == 'system' }}{% for"
    )
    note = "the model's chat template has no system message; the instruction is the beginning of the user's"
    assert note in loradex.evaluate(base, task, limit=2, preset="recycling-paper").notes
    assert loradex.evaluate(base, task, limit=2).notes == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "other-paper"}, "other-paper is not a preset; use recycling-paper"),
        ({"protocol": "other"}, "other is not a protocol; use one of likelihood-open, .*recycling-paper"),
    ],
)
def test_an_unknown_preset_or_protocol_is_one_sentence(
    settings: Any, message: str, base: LoadedBase, task: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        loradex.evaluate(base, task, **settings)


def test_a_new_adapter_is_placed_by_few_items(base: LoadedBase, tmp_path: Path) -> None:
    rows = [(f"{'ab'[number % 2]}{number}", "yes" if number % 3 else "no") for number in range(12)]
    task = write_task(tmp_path / "few", rows)
    known = [tiny_adapter(tmp_path / f"k{number}", number).folder for number in range(10)]
    with loradex.open(tmp_path / "data") as catalog:
        loradex.evaluate(base, task, known[:9], out=tmp_path / "nine.json")
        catalog.import_scores(tmp_path / "nine.json", source="us")
        new = tiny_adapter(tmp_path / "new", 77).folder
        with pytest.raises(UsageError, match=r"few: .* 10 or more adapters .* there are 9"):
            loradex.evaluate(base, task, new, items=3, catalog=catalog)
        loradex.evaluate(base, task, known[9], out=tmp_path / "ten.json", without_base=True)
        catalog.import_scores(tmp_path / "ten.json", source="us")
        log, out = tmp_path / "log.jsonl", tmp_path / "placed.json"
        scores = loradex.evaluate(base, task, new, items=3, catalog=catalog, log=log, out=out)
        again = loradex.evaluate(base, task, new, items=3, catalog=catalog, log=log)
        assert [(row.adapter, row.n) for row in scores] == [("base", 3), ("new", 3)]
        placed = scores.placements[1]
        assert (placed.adapter, placed.asked, placed.n, placed.adapters) == ("new", 3, 12, 10)
        assert placed.right == round(scores[1].value * 3)
        assert 0 <= placed.predicted <= 1
        assert 0 <= placed.error < 0.5
        assert again.placements == scores.placements
        assert json.loads(out.read_text()) == {"placements": scores.placements.to_dicts()}
        with pytest.raises(UsageError, match="not contain a list called scores"):
            catalog.import_scores(out)
        # Whoever is asked takes no part in the choice, so that nothing predicts itself.
        with pytest.raises(UsageError, match=r"few: .* 10 or more adapters .* there are 9"):
            loradex.evaluate(base, task, known[3], items=3, catalog=catalog)
        with pytest.raises(UsageError, match=r"few: .* 10 or more adapters .* there are 9"):
            loradex.evaluate(base, task, new, items=3, ensemble="k3", catalog=catalog)
        twin = write_task(tmp_path / "twin" / "few", rows[:6])
        with pytest.raises(
            UsageError, match="Two tasks are called few; choose items for one after the other"
        ):
            loradex.evaluate(base, [task, twin], new, items=3, catalog=catalog)
        with pytest.raises(UsageError, match="from 1 to 11 of the 12 items, not 12"):
            loradex.evaluate(base, task, new, items=12, catalog=catalog)
        with pytest.raises(UsageError, match="give a `catalog`, and no `limit`"):
            loradex.evaluate(base, task, new, items=3, limit=2, catalog=catalog)
        with pytest.raises(UsageError, match="give a `catalog`"):
            loradex.evaluate(base, task, new, items=3)
        with pytest.raises(NotFoundError, match=r"no answers of adapters .*to the items of few"):
            loradex.evaluate(base, task, new, items=3, split="valid", catalog=catalog)
        text = (task / "test.jsonl").read_text().replace('"a0"', '"another"')
        (task / "test.jsonl").write_text(text)
        with pytest.raises(UsageError, match="items chosen are not test examples of few"):
            loradex.evaluate(base, task, new, items=11, catalog=catalog)
