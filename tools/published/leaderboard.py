"""The leaderboard of selections: nDCG@30 of the gain over the base, against the samples spent.

Every strategy sees the 100-sample scores of 960 adapters on the other tasks and the tasks' instructions; what
it wants to know of the task itself it buys, sample by sample. Test scores judge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from catalog.pictures import GRID, INK, PALETTE, settings
from catalog.scores import (
    CAP,
    STEP,
    ScoreMatrix,
    by_score,
    completion,
    from_like_tasks,
    likeness,
    mean_test,
    prior,
    race,
)
from studies.report.wording import p_value, resting
from tools.published.claims import CHOOSING, MARGIN, RAW, judge
from tools.published.ranking import best_at, mean_at, ndcg, recall_at
from tools.published.tables import RankTask, SampleMeter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]
Rank = Callable[[RankTask, SampleMeter], Floats]

K = 30
# The metric that has intervals and claims.
MAIN = "nDCG@30"
METRICS: dict[str, Callable[[Floats, RankTask], float]] = {
    MAIN: lambda scores, task: ndcg(scores, task.gains, K),
    "top-1": lambda scores, task: mean_at(scores, task.values, 1),
    "mean@30": lambda scores, task: mean_at(scores, task.values, K),
    "recall@30": lambda scores, task: recall_at(scores, task.values, K),
    "P(>base)@30": lambda scores, task: mean_at(scores, task.beats, K),
    "best@3": lambda scores, task: best_at(scores, task.values, 3),
    "best@5": lambda scores, task: best_at(scores, task.values, 5),
    "best@30": lambda scores, task: best_at(scores, task.values, K),
}
RANDOM, BLIND, ALL = "random", "prior", "all x 100: completion"


@dataclass(frozen=True)
class RankRule:
    """A way to rank; `noisy` ones are run with several draws of samples and averaged."""

    name: str
    rank: Rank
    noisy: bool = False


def _buy(task: RankTask, meter: SampleMeter, adapters: Sequence[str], n: int) -> ScoreMatrix:
    """The visible matrix with n bought samples, or as many as there are, of these adapters."""
    n = min(n, task.samples)
    scores = dict(zip(adapters, meter(adapters, n), strict=True))
    values = np.array([scores.get(name) for name in task.visible.adapters], dtype=np.float64)
    return task.visible.with_column(task.name, values, np.where(np.isnan(values), 0.0, n))


def _without_nearest(task: RankTask, count: int) -> ScoreMatrix:
    """The visible matrix without the tasks that read most like this one."""
    other_tasks = [name for name in task.visible.tasks if name != task.name]
    alike = likeness([task.texts.get(name, "") for name in (*other_tasks, task.name)])[-1, :-1]
    return task.visible.without(*(other_tasks[i] for i in np.argsort(-alike, kind="stable")[:count]))


def _everyone(n: int, *, complete: bool) -> Rank:
    def rank(task: RankTask, meter: SampleMeter) -> Floats:
        bought = _buy(task, meter, task.visible.adapters, n)
        if complete:
            return completion(bought, task.name, task.texts).scores
        return by_score(bought, task.name).scores

    return rank


def _first_of_prior(count: int) -> Rank:
    def rank(task: RankTask, meter: SampleMeter) -> Floats:
        first = prior(task.visible, task.name)
        subset = [first.adapters[i] for i in first.order()[:count]]
        return by_score(_buy(task, meter, subset, CAP), task.name).scores

    return rank


def _race(budget: int) -> Rank:
    def rank(task: RankTask, meter: SampleMeter) -> Floats:
        step, cap = min(STEP, task.samples), min(CAP, task.samples)
        result = race(task.visible, task.name, meter, budget, texts=task.texts, step=step, cap=cap)
        if result.spent != meter.sold:
            raise AssertionError("the race and the meter disagree on what was spent")
        return result.ranking.scores

    return rank


STRATEGIES = (
    RankRule(RANDOM, lambda task, _: np.zeros(len(task.values))),
    RankRule(BLIND, lambda task, _: prior(task.visible, task.name).scores),
    RankRule("like tasks", lambda task, _: from_like_tasks(task.visible, task.name, task.texts).scores),
    RankRule("completion, no texts", lambda task, _: completion(task.visible, task.name).scores),
    RankRule("completion", lambda task, _: completion(task.visible, task.name, task.texts).scores),
    RankRule(
        "completion, nearest task out",
        lambda task, _: completion(_without_nearest(task, 1), task.name, task.texts).scores,
    ),
    RankRule(
        "completion, 3 nearest out",
        lambda task, _: completion(_without_nearest(task, 3), task.name, task.texts).scores,
    ),
    RankRule("race 1,000", _race(1000), noisy=True),
    RankRule("race 2,500", _race(2500), noisy=True),
    RankRule("race 5,000", _race(5000), noisy=True),
    RankRule("race 10,000", _race(10_000), noisy=True),
    RankRule("50 of prior x 100: raw", _first_of_prior(50), noisy=True),
    RankRule("all x 5: raw", _everyone(5, complete=False), noisy=True),
    RankRule("all x 5: completion", _everyone(5, complete=True), noisy=True),
    RankRule(RAW, _everyone(100, complete=False)),
    RankRule(ALL, _everyone(100, complete=True)),
    RankRule("oracle", lambda task, _: task.values),
)

# RankRule to task to metric, with "spent" among the metrics.
Results = Mapping[str, Mapping[str, Mapping[str, float]]]


def judge_rule(strategy: RankRule, task: RankTask, repeats: int) -> dict[str, float]:
    """The metrics of a strategy on a task, and the samples it spent, averaged over draws of the samples."""
    rows = []
    for seed in range(repeats if strategy.noisy or task.binomial else 1):
        meter = SampleMeter(task, seed)
        scores = strategy.rank(task, meter)
        rows.append({name: metric(scores, task) for name, metric in METRICS.items()} | {"spent": meter.sold})
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def judge_all(
    tasks: Sequence[RankTask],
    strategies: Sequence[RankRule] = STRATEGIES,
    *,
    repeats: int = 3,
    done: Callable[[str], object] = len,
) -> Results:
    """What `judge_rule` says of every strategy on every task; `done` is told each task's name after it."""
    results: dict[str, dict[str, dict[str, float]]] = {strategy.name: {} for strategy in strategies}
    for task in tasks:
        for strategy in strategies:
            results[strategy.name][task.name] = judge_rule(strategy, task, repeats)
        done(task.name)
    return results


def column(results: Results, strategy: str, metric: str = MAIN) -> Floats:
    """One metric of a strategy, (tasks,)."""
    return np.array([row[metric] for row in results[strategy].values()])


def format_mean(values: Floats, *, signed: bool = False) -> str:
    """The mean of those that are numbers with its 95 % t interval, where there are two: .307 [.230, .384]."""
    numbers = values[~np.isnan(values)]
    test = mean_test(numbers.tolist()) if len(numbers) > 1 else None
    ends = [] if test is None else [test.low, test.high]
    mean, *others = (f"{number:{'+' if signed else ''}.3f}" for number in (float(np.mean(numbers)), *ends))
    return f"{mean} [{', '.join(others)}]" if others else mean


def table(results: Results) -> str:
    """The means over tasks as a Markdown table, nDCG with its interval, then the paired differences, then the
    claims whose rankings are there."""
    metrics = [name for name in METRICS if name != MAIN]
    lines = [
        f"| strategy | samples | {MAIN} [95 %] | " + " | ".join(metrics) + " |",
        "|---|---|---|" + "---|" * len(metrics),
    ]
    for name in results:
        cells = [f"{np.nanmean(column(results, name, metric)):.3f}" for metric in metrics]
        spent = f"{np.mean(column(results, name, 'spent')):,.0f}"
        lines.append(f"| {name} | {spent} | {format_mean(column(results, name))} | {' | '.join(cells)} |")
    lines += ["", f"| {MAIN}, paired over tasks | less " + " | less ".join((RANDOM, BLIND, RAW)) + " |"]
    lines.append("|---|---|---|---|")
    for name in results:
        cells = [
            format_mean(column(results, name) - column(results, other), signed=True) if other != name else ""
            for other in (RANDOM, BLIND, RAW)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, *_claims(results)]) + "\n"


def _claims(results: Results) -> list[str]:
    """The claims on choosing as a table, those of rankings that were not asked for counted as untold."""
    gaps = {}
    for claim in CHOOSING:
        other = claim.column.partition(" less ")[2]
        if claim.row in results and other in results:
            difference = column(results, claim.row) - column(results, other)
            gaps[claim.key] = dict(zip(results[other], difference.tolist(), strict=True))
    lines = [
        "",
        f"| claim, all of one family, margin {MARGIN} | mark | word | difference [95 %] | p | Holm |",
        "|---|---|---|---|---|---|",
    ]
    for row in judge(CHOOSING, gaps):
        compared, judgement = row.difference, row.judgement
        values = np.array(list(compared.by_task.values()) if compared else [])
        shown = format_mean(values, signed=True) if len(values) else ""
        word = f"{judgement.word}{resting(judgement.rests_on)}"
        ps = p_value(compared.p if compared else None), p_value(judgement.holm_p)
        cells = (row.claim.statement, judgement.mark, word, shown, *ps)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def strategies_picture(results: Results, title: str) -> Figure:
    """Every strategy's nDCG@30 with its interval and the tasks behind it."""
    from matplotlib.figure import Figure

    with settings():
        figure = Figure(figsize=(8, 0.32 * len(results) + 1.2), layout="constrained")
        axes = figure.subplots()
        for y, name in enumerate(reversed(list(results))):
            values = column(results, name)
            numbers = values[~np.isnan(values)].tolist()
            axes.plot(values, np.full(len(values), y), "|", color=GRID, zorder=1)
            if len(numbers) > 1:
                test = mean_test(numbers)
                axes.plot([test.low, test.high], [y, y], color=PALETTE[0], lw=2, zorder=2)
            axes.plot(np.mean(numbers), y, "o", color=PALETTE[0], zorder=3)
        axes.set_yticks(range(len(results)), list(reversed(list(results))))
        axes.set_xlim(0, 1.02)
        axes.set_xlabel(f"{MAIN} of the gain over the base; 95 % t intervals over {len(values)} tasks")
        axes.set_title(title)
    return figure


def spending_picture(results: Results, title: str) -> Figure:
    """nDCG@30 against the samples spent, races and measuring everyone."""
    from matplotlib.figure import Figure

    lines = {
        "racing": ["completion", *(name for name in results if name.startswith("race"))],
        "everyone, completed": [name for name in results if name.endswith(": completion")],
        "everyone, raw": [name for name in results if name.startswith("all") and name.endswith("raw")],
    }
    with settings():
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        for (label, names), colour, marker in zip(lines.items(), PALETTE, "os^", strict=False):
            spent = [float(np.mean(column(results, name, "spent"))) for name in names]
            axes.plot(
                spent,
                [float(np.nanmean(column(results, name))) for name in names],
                marker=marker,
                color=colour,
                label=label,
            )
        axes.axhline(
            float(np.nanmean(column(results, BLIND))), color=INK, lw=0.8, ls=":", label="prior, no samples"
        )
        axes.set_xscale("symlog", linthresh=500)
        axes.set_xlim(-50, 2e5)
        places = (0, 1000, 10_000, 100_000)
        axes.set_xticks(places, [f"{place:,}" for place in places])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("samples spent on the task")
        axes.set_ylabel(f"{MAIN}, mean over tasks")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
        axes.set_title(title)
    return figure
