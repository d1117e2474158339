"""The retrieval benchmark cannot look at what it hides: shown on small tables of the published form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.shared_data import data, shared
from tools.bench.retrieval import main
from tools.published.leaderboard import METRICS, STRATEGIES, judge_rule
from tools.published.tables import RankTask, SampleMeter, load

TASKS = ("anli", "arc", "cola", "rte", "sst")
SIZE = 40
FREE = [strategy for strategy in STRATEGIES if strategy.name.startswith(("prior", "like", "completion"))]


def tables(folder: Path, seed: int = 0, hidden_seed: int = 0) -> Path:
    """Published tables of 40 adapters, five tasks of 100 samples, test scores of anli and rte.

    `hidden_seed` draws all that was measured on anli. Three adapters outside the pool do nothing.
    """
    rng, hidden = np.random.default_rng(seed), np.random.default_rng(1000 + hidden_seed)
    folder.mkdir()
    names = [f"o{i % 7}/a{i:02}" for i in range(SIZE)]
    quality = rng.uniform(0.2, 0.8, size=SIZE)
    scores = rng.binomial(100, quality[:, None], size=(SIZE, len(TASKS))) / 100
    test = rng.binomial(1000, quality[:, None], size=(SIZE, 2)) / 1000
    scores[:, 0], test[:, 0] = hidden.integers(0, 101, SIZE) / 100, hidden.integers(0, 1001, SIZE) / 1000
    idle = [f"none/b{i}" for i in range(3)]
    rows = [",".join(("adapter", *TASKS))]
    rows += [",".join((name, *map(str, row))) for name, row in zip(names, scores, strict=True)]
    rows += [",".join((name, *["0.5"] * len(TASKS))) for name in idle]
    (folder / "scores_100_samples.csv").write_text("\n".join(rows) + "\n")
    rows = ["adapter,anli,rte", *(f"{n},{a},{b}" for n, (a, b) in zip(names, test, strict=True))]
    rows += [f"{name},0.4,0.45" for name in idle]
    (folder / "scores_test_dev_tasks.csv").write_text("\n".join(rows) + "\n")
    (folder / "zero_shot_performance.csv").write_text("task,zero_shot\nrte,0.5\nyor,\n")
    (folder / "pool_ids.txt").write_text("\n".join(names) + "\n")
    texts = [f"{task}:\n  instruction: Do {task}. Return only the digit.\n" for task in TASKS]
    (folder / "tasks.yaml").write_text("".join(texts))
    return folder


def named(tasks: list[RankTask], name: str) -> RankTask:
    return next(task for task in tasks if task.name == name)


def test_tasks_are_those_with_test_scores_and_a_proxy_those_without(tmp_path: Path) -> None:
    folder = tables(tmp_path / "t")
    tested = load(folder)
    assert [(task.name, task.base, task.samples) for task in tested] == [
        ("anli", 0.4, 100),
        ("rte", 0.5, 100),
    ]
    assert [(task.name, task.base) for task in load(folder, proxy=True)] == [
        ("arc", 0.5),
        ("cola", 0.5),
        ("sst", 0.5),
    ]
    assert tested[0].visible.adapters == tuple(sorted(tested[0].visible.adapters))
    assert len(tested[0].visible.adapters) == SIZE, "adapters outside the pool are no candidates"


@pytest.mark.parametrize("strategy", FREE, ids=lambda strategy: strategy.name)
def test_what_costs_nothing_depends_on_nothing_of_the_task(strategy: object, tmp_path: Path) -> None:
    rank = next(item.rank for item in STRATEGIES if item is strategy)
    first = named(load(tables(tmp_path / "one")), "anli")
    second = named(load(tables(tmp_path / "two", hidden_seed=1)), "anli")
    assert not np.array_equal(first.column, second.column)
    assert not np.array_equal(first.values, second.values)
    meters = SampleMeter(first, 0), SampleMeter(second, 0)
    assert rank(first, meters[0]).tobytes() == rank(second, meters[1]).tobytes()
    assert meters[0].sold == meters[1].sold == 0


@pytest.mark.parametrize("name", ["race 1,000", "all x 100: raw", "all x 100: completion"])
def test_what_is_bought_does_not_come_from_the_test_scores(name: str, tmp_path: Path) -> None:
    strategy = next(item for item in STRATEGIES if item.name == name)
    task = named(load(tables(tmp_path / "t")), "rte")
    other = RankTask(**{**vars(task), "values": 1 - task.values})
    meters = SampleMeter(task, 0), SampleMeter(other, 0)
    assert strategy.rank(task, meters[0]).tobytes() == strategy.rank(other, meters[1]).tobytes()
    assert meters[0].sold == meters[1].sold > 0


def test_a_cell_is_sold_once_and_adds_up_to_what_was_published(tmp_path: Path) -> None:
    task = named(load(tables(tmp_path / "t")), "rte")
    meter = SampleMeter(task, 0)
    names = task.visible.adapters
    parts = np.array([meter(names, 30), meter(names, 30), meter(names, 40)], dtype=np.float64)
    assert np.array([30, 30, 40]) @ parts / 100 == pytest.approx(task.column, abs=1e-12)
    assert meter.sold == 100 * SIZE
    assert meter(names, 1) == [None] * SIZE
    assert meter.sold == 100 * SIZE
    again = SampleMeter(task, 0)
    assert np.array_equal(again(names, 30), parts[0])
    assert not np.array_equal(SampleMeter(task, 1)(names, 30), parts[0])


def test_the_oracle_is_perfect_and_random_costs_nothing(tmp_path: Path) -> None:
    task = named(load(tables(tmp_path / "t")), "rte")
    rows = {strategy.name: judge_rule(strategy, task, 1) for strategy in STRATEGIES}
    assert rows["oracle"]["nDCG@30"] == pytest.approx(1)
    assert rows["random"]["spent"] == 0
    assert rows["random"]["mean@30"] == pytest.approx(task.values.mean())
    for row in rows.values():
        assert all(row[name] <= rows["oracle"][name] + 1e-12 for name in METRICS)


@pytest.mark.slow
def test_the_benchmark_writes_the_same_files_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tables(tmp_path / "t")
    printed = []
    for to in ("one", "two"):
        assert main(["--data", str(folder), "-o", str(tmp_path / to), "--repeats", "1"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert printed[0].startswith("40 adapters, 2 tasks judged by test scores")
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == [
        "retrieval.csv",
        "retrieval.md",
        "samples.png",
        "samples.svg",
        "strategies.png",
        "strategies.svg",
    ]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_without_the_tables_there_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path)]) == 1
    assert "name the folder of the published tables" in capsys.readouterr().err


@shared
def test_the_published_tables_are_read_as_they_are() -> None:
    tasks = load(data("recycling_paper"))
    assert {len(task.visible.adapters) for task in tasks} == {960}
    assert named(tasks, "masakhanews_amh").samples == 2
    assert named(tasks, "anli").base == 0.369
    assert "twitter_complaints" not in {task.name for task in tasks}
    assert not any(task.visible.n[:, task.visible.column(task.name)].any() for task in tasks)
