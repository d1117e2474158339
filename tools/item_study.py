"""What outcomes of single items are worth, on real adapters: the numbers of docs/results/items.md.

Run as `python -m tools.item_study LOG [--tasks DIR]` with a log of `loradex evaluate`. Only tasks on which
all adapters of the log answered the same items take part. Draws of items are random, by fixed seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from catalog.scores import (
    choose_items,
    paired_test,
    read_outcomes,
    regress_items,
    score_matrix,
    unpack_bitmap,
)
from catalog.scores.prediction import Expectation, expectation, posterior
from merging.evaluation import BASE
from merging.model import find_task

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

RANDOM_SETS = 20
DRAWS = 20
BEST = 10
# A race asks so many items in each round of those that are left, and halves them until so many are left.
RACE_STEP, RACE_LAST = 5, 5
_SWEEPS = 50


@dataclass(frozen=True)
class Answers:
    """The outcomes of all adapters on one task, (adapters, items), and the bytes of a score's outcomes."""

    task: str
    adapters: tuple[str, ...]
    right: Bools
    bitmap_bytes: int
    margin_bytes: int
    line_bytes: int


def read_answers(log: Path) -> list[Answers]:
    """The tasks of a log that every adapter of it answered, without the base model."""
    lines = [line for line in log.read_text("utf-8").splitlines() if line]
    rows = [{**json.loads(line), "bytes": len(line)} for line in lines]
    adapters = sorted({row["adapter"] for row in rows} - {BASE})
    result = []
    for task in dict.fromkeys(row["task"] for row in rows):
        of_task = {row["adapter"]: row for row in rows if row["task"] == task}
        if not set(adapters) <= of_task.keys():
            continue
        task_rows = [of_task[name] for name in adapters]
        if len({row["items_sha"] for row in task_rows}) > 1:
            continue
        records = [
            read_outcomes(row["items_sha"], row["outcomes"], row.get("margins", ""), row["n"])
            for row in task_rows
        ]
        bits = [
            unpack_bitmap(record.bitmap, row["n"]) for record, row in zip(records, task_rows, strict=True)
        ]
        size = (len(records[0].bitmap), len(records[0].margins), task_rows[0]["bytes"])
        result.append(Answers(task, tuple(adapters), np.array(bits), *size))
    return result


def pairing(answers: Answers) -> dict[str, float]:
    """Over all pairs of adapters: standard errors of a difference, paired and not, and tests that speak."""
    n = answers.right.shape[1]
    paired, unpaired, told, discordant = [], [], 0, []
    for first, second in combinations(answers.right, 2):
        test = paired_test(first, second)
        share = (test.only_first + test.only_second) / n
        discordant.append(share)
        paired.append(share - test.difference**2)
        p, q = first.mean(), second.mean()
        unpaired.append(p * (1 - p) + q * (1 - q))
        told += test.p <= 0.05
    return {
        "discordant": float(np.mean(discordant)),
        "paired": float(np.sqrt(np.mean(paired) / n)),
        "unpaired": float(np.sqrt(np.mean(unpaired) / n)),
        "told": told / len(paired),
    }


def placement(answers: Answers, count: int) -> dict[str, float]:
    """Errors (root mean square) of the score on all items of each adapter in turn, from `count` answers.

    "plain" and "regression" use random sets of items, "chosen" those chosen; the adapter itself takes part in
    neither the choice nor the regression.
    """
    right = answers.right
    truth, adapters = right.mean(axis=1), len(right)
    draw = np.random.default_rng(0)
    sets = [tuple(map(int, draw.choice(right.shape[1], count, replace=False))) for _ in range(RANDOM_SETS)]
    plain = [(right[:, places].mean(axis=1) - truth) ** 2 for places in sets]
    regression = [regress_items(right, places).error ** 2 for places in sets]
    chosen = choose_items(right, count, folds=adapters).error ** 2
    errors = {"plain": np.mean(plain), "regression": np.mean(regression), "chosen": chosen}
    return {name: float(np.sqrt(square)) for name, square in errors.items()}


def completions(
    tasks: Sequence[Answers], texts: Mapping[str, str], count: int
) -> Iterator[tuple[str, dict[str, Floats]]]:
    """Of each task and draw of `count` items that all adapters answer, the errors and the best ten's score.

    The truth is the score on the other items. "alone" takes the answers alone, "diagonal" is the completion
    as it is, "items" adds the correlations of these items' answers between adapters to its noise, shrunk by
    a half, and "oracle" those of all items of the task, in full.
    """
    for answers in tasks:
        names = answers.adapters
        cells = (
            (name, other.task, float(row.mean()), len(row))
            for other in tasks
            for name, row in zip(names, other.right, strict=True)
        )
        expected = expectation(score_matrix(cells), answers.task, texts)
        draw = np.random.default_rng(0)
        for _ in range(DRAWS):
            places = draw.choice(answers.right.shape[1], count, replace=False)
            asked = answers.right[:, places].astype(np.float64)
            truth = np.delete(answers.right, places, axis=1).mean(axis=1)
            yield answers.task, _completed(expected, asked, answers.right.astype(np.float64), truth)


def _completed(expected: Expectation, asked: Floats, complete: Floats, truth: Floats) -> dict[str, Floats]:
    values, n = asked.mean(axis=1), np.full(len(asked), float(asked.shape[1]))
    # That of the mean of these answers, as in the completion itself.
    variance = float(np.mean(values * (1 - values)) / (asked.shape[1] - 1))
    shared = {
        "diagonal": None,
        "items": 0.5 * variance * _correlations(asked),
        "oracle": variance * _correlations(complete),
    }
    scores = {name: posterior(expected, values, n, noise).mean for name, noise in shared.items()}
    return {
        name: np.array(
            [np.sqrt(np.mean((guess - truth) ** 2)), truth[np.argsort(-guess, kind="stable")[:BEST]].mean()]
        )
        for name, guess in {"alone": values, **scores}.items()
    }


def races(answers: Answers) -> Iterator[dict[str, float]]:
    """Of each draw of an order of items the mean score on all items of the ten that end a race best.

    Everybody answers the first items, the better half the next ones, and so on. "plain" compares means of
    answers, "difficulty removed" the adapters' effects beside those of items.
    """
    right = answers.right.astype(np.float64)
    truth, draw = right.mean(axis=1), np.random.default_rng(0)
    for _ in range(DRAWS):
        order = draw.permutation(right.shape[1])
        yield {
            name: float(truth[np.argsort(-_race(right, order, estimate), kind="stable")[:BEST]].mean())
            for name, estimate in (("plain", _plain_means), ("difficulty removed", adapter_effects))
        }


def _race(right: Floats, order: NDArray[np.int64], estimate: Callable[[Floats], Floats]) -> Floats:
    """The estimates of all adapters at the end of a race."""
    asked, left = np.full(right.shape, np.nan), np.arange(len(right))
    for start in range(0, len(order), RACE_STEP):
        cells = np.ix_(left, order[start : start + RACE_STEP])
        asked[cells] = right[cells]
        scores = estimate(asked)
        if len(left) <= RACE_LAST:
            break
        left = left[np.argsort(-scores[left], kind="stable")[: -(-len(left) // 2)]]
    return scores


def _plain_means(asked: Floats) -> Floats:
    means: Floats = np.nanmean(asked, axis=1)
    return means


def adapter_effects(asked: Floats) -> Floats:
    """The effects of adapters in answers (adapters, items; NaN where not asked) beside those of items.

    Least squares with a penalty of one answer on each effect, by turns.
    """
    known = ~np.isnan(asked)
    values, effects = np.where(known, asked - asked[known].mean(), 0.0), np.zeros(len(asked))
    for _ in range(_SWEEPS):
        of_items = (known * (values - effects[:, None])).sum(axis=0) / (known.sum(axis=0) + 1)
        effects = (known * (values - of_items)).sum(axis=1) / (known.sum(axis=1) + 1)
    return effects


def _correlations(answers: Floats) -> Floats:
    """The correlations over items of the answers of different adapters, 0 on the diagonal."""
    centred = answers - answers.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    centred /= np.where(length > 0, length, 1)
    result: Floats = centred @ centred.T
    np.fill_diagonal(result, 0.0)
    return result


def report_lines(tasks: Sequence[Answers], texts: Mapping[str, str]) -> Iterator[str]:
    """The tables, line by line."""
    items = tasks[0].right.shape[1]
    yield f"{len(tasks[0].adapters)} adapters, {len(tasks)} tasks, {items} items each."
    yield (
        f"Bytes of a score: bitmap {tasks[0].bitmap_bytes}, margins {tasks[0].margin_bytes}, line of the log "
        f"{tasks[0].line_bytes}; of a list: hashes {32 * items}."
    )
    yield from ("", "| task | mean | spread | differ on | unpaired error | paired error | p <= .05 |")
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for answers in tasks:
        row, means = pairing(answers), answers.right.mean(axis=1)
        yield _cells(
            answers.task,
            *(f"{value:.3f}" for value in (means.mean(), means.std())),
            *(f"{row[name]:.3f}" for name in ("discordant", "unpaired", "paired")),
            f"{row['told']:.0%}",
        )
    yield from _placement_lines(tasks, items)
    yield from ("", "| asked | noise | error | less diagonal | best ten | less diagonal |")
    yield "|---:|---|---:|---:|---:|---:|"
    for count in (items // 8, items // 4):
        yield from _completion_lines(list(completions(tasks, texts, count)), count)
    yield from ("", "| race | best ten | less plain |", "|---|---:|---:|")
    results = [list(races(answers)) for answers in tasks]
    for name in results[0][0]:
        means = np.array([np.mean([row[name] for row in rows]) for rows in results])
        change = means - np.array([np.mean([row["plain"] for row in rows]) for rows in results])
        error = change.std(ddof=1) / np.sqrt(len(tasks))
        yield _cells(name, f"{means.mean():.4f}", f"{change.mean():+.4f} ± {error:.4f}")


def _placement_lines(tasks: Sequence[Answers], items: int) -> Iterator[str]:
    yield from ("", "| task | asked | plain mean, random | regression, random | regression, chosen |")
    yield "|---|---:|---:|---:|---:|"
    names = ("plain", "regression", "chosen")
    for count in (items // 10, items // 5):
        rows = [placement(answers, count) for answers in tasks]
        for answers, row in zip(tasks, rows, strict=True):
            yield _cells(answers.task, count, *(f"{row[name]:.3f}" for name in names))
        means = [float(np.sqrt(np.mean([row[name] ** 2 for row in rows]))) for name in names]
        yield _cells("all", count, *(f"{mean:.3f}" for mean in means))


def _completion_lines(results: Sequence[tuple[str, dict[str, Floats]]], count: int) -> Iterator[str]:
    """Means over tasks and draws, and differences with the standard error over the tasks' means."""
    names = list(dict.fromkeys(task for task, _ in results))

    def task_means(noise: str) -> Floats:
        rows = [[row[noise] for task, row in results if task == name] for name in names]
        return np.array([np.mean(of_task, axis=0) for of_task in rows])

    for noise in ("alone", "diagonal", "items", "oracle"):
        means = task_means(noise)
        change = means - task_means("diagonal")
        error = change.std(axis=0, ddof=1) / np.sqrt(len(names))
        pairs = zip(change.mean(axis=0), error, strict=True)
        differences = [f"{value:+.4f} ± {spread:.4f}" for value, spread in pairs]
        cells = [f"{value:.4f}" for value in means.mean(axis=0)]
        yield _cells(count, noise, cells[0], differences[0], cells[1], differences[1])


def _cells(*values: object) -> str:
    return f"| {' | '.join(map(str, values))} |"


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("log", type=Path)
    parser.add_argument("--tasks", type=Path, help="the folder of the tasks, for their instructions")
    arguments = parser.parse_args()
    tasks = read_answers(arguments.log)
    folder: Path | None = arguments.tasks
    texts = {row.task: find_task(row.task, folder).instruction for row in tasks if folder}
    sys.stdout.write("\n".join(report_lines(tasks, texts)) + "\n")


if __name__ == "__main__":
    main()
