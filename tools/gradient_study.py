"""Finding adapters by a task's gradient, on real adapters and tasks: the numbers of docs/results/gradient.md.

Run as `python -m tools.gradient_study --tasks DIR --adapters DIR --bases DIR --scratch DIR`. Passes over the
base model and measured scores are kept in the scratch folder, so that a run that was killed goes on where it
was; with `--report` nothing is computed that is not there. Every second task by name is for development,
where choices were made; the others judge.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.adapters.weights import iterate_modules, module_norms
from catalog.fingerprints.sketches import delta_sketch, output_sketch
from catalog.index import load_embedder
from crawler.reading.cards import CardQuality, parse_card
from merging.evaluation.scores import TaskScore, evaluate
from merging.learning.gradients import linear_modules, task_gradient
from merging.members import MergeMember, load_member
from merging.model import LoadedBase, Prompt, Task, budget, encode, examples, load_base, read_task

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

    Rows = NDArray[float64]

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
# Of a prompt's answers for the loss of any answer, and of its samples.
MOST_ANSWERS = 4
ANY = (0, 12)
# Samples of a task's budget: as a rule, fewer, and other draws.
USUAL, FEW = (0, 24), (0, 8)
DRAWS = (USUAL, (24, 48), (48, 72), (72, 96))
# Tasks with measured gains, and on how many of their valid examples.
MEASURED = {"amazon_reviews": 60, "cola": 60, "boolean_expressions": 30, "tweet_irony": 40, "snips": 40}
SHORTLIST = 10


@dataclass(frozen=True)
class Pass:
    """What one pass over samples of a task gave; `exact` is (members, modules), minus <G, X>."""

    delta: Rows
    output: Rows
    exact: Rows


@dataclass(frozen=True)
class Zoo:
    """All tasks as queries, and the adapters: names, tasks, the kind of each task, sketches of unit length,
    norms of modules, texts.
    """

    queries: list[Task]
    names: list[str]
    tasks: list[str]
    kinds: Mapping[str, str]
    delta: Rows
    output: Rows
    norms: Rows
    texts: list[str]

    @property
    def lengths(self) -> Rows:
        """The norms of whole updates."""
        lengths: Rows = (self.norms**2).sum(1) ** 0.5
        return lengths


@dataclass(frozen=True)
class RankingQuality:
    """How rankings of adapters do: the task's adapter first (its twin counted against it), it or its twin
    first, it among the first SHORTLIST; adapters of tasks of the same kind (kin): their mean place among the
    others, from 0 to 1, and how often one is the first of these.
    """

    own: int
    family: int
    listed: int
    of: int
    kin: float
    kin_first: int
    kin_of: int

    def __str__(self) -> str:
        return (
            f"own first {self.own:2}/{self.of}, own or twin {self.family:2}, in {SHORTLIST} {self.listed:2}; "
            f"kin at {self.kin:.3f}, first {self.kin_first:2}/{self.kin_of}"
        )


def read_tasks(place: Path) -> list[Task]:
    """The tasks of a folder by name."""
    return [read_task(folder) for folder in sorted(place.iterdir()) if folder.is_dir()]


def read_members(place: Path) -> list[MergeMember]:
    """The adapters of a folder by name."""
    return [load_member(folder) for folder in sorted(place.iterdir()) if folder.is_dir()]


def one_pass(
    base: LoadedBase | None,
    task: Task,
    answers: str,
    span: tuple[int, int],
    pool: Sequence[MergeMember],
    scratch: Path,
) -> Pass | None:
    """The pass over these of the samples of a budget, from the scratch folder where it is there.

    `answers` is "target", or "any" for each answer of a prompt as if it were right, or "valid" for the
    targets of validation examples, which the task's own adapter was not trained on.
    """
    import numpy as np

    file = scratch / "passes" / f"{task.name}-{answers}-{span[0]}-{span[1]}.npz"
    if not file.exists():
        if base is None or (answers == "any" and task.metric != "accuracy"):
            return None
        pool_of = examples(task, "valid") if answers == "valid" else budget(task).all
        prompts = encode(base.tokenizer, task, pool_of[slice(*span)], base.limit)
        if answers == "any":
            prompts = [variant for prompt in prompts for variant in _each_answer(prompt)]
        gradient = task_gradient(base, prompts, members=pool)
        exact = [[variant.modules.get(name, 0.0) for name in gradient.modules] for variant in gradient.exact]
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part.npz")
        np.savez(part, delta=gradient.delta, output=gradient.output, exact=np.array(exact))
        part.replace(file)
        say(f"{task.name} {answers} {span}")
    with np.load(file) as read:
        return Pass(*(read[name].astype(np.float64) for name in ("delta", "output", "exact")))


def _each_answer(prompt: Prompt) -> list[Prompt]:
    """The prompt with every answer as the right one: that and the first others, MOST_ANSWERS together."""
    wrong_answers = [answer for at, answer in enumerate(prompt.answers) if at != prompt.right]
    return [
        Prompt(prompt.question, (choice,), 0)
        for choice in (prompt.target, *wrong_answers[: MOST_ANSWERS - 1])
    ]


def read_zoo(index: Path, queries: list[Task], pool: Sequence[MergeMember], modules: Sequence[str]) -> Zoo:
    """The sketches, norms and texts of the adapters; without a text of its own, the name."""
    import numpy as np

    rows = [json.loads(line) for line in index.read_text(encoding="utf-8").splitlines()]
    facts = {row["name"]: row for row in rows}
    deltas, outputs, norms, texts = [], [], [], []
    for member in pool:
        deltas.append(delta_sketch(iterate_modules(member.weights, member.config)))
        outputs.append(output_sketch(iterate_modules(member.weights, member.config)))
        bare, scaled = module_norms(member.weights), member.modules
        norms.append([(bare.get(n) or 0.0) * scaled[n].scaling if n in scaled else 0.0 for n in modules])
        card = parse_card((member.folder / "README.md").read_bytes())
        own = card.quality is CardQuality.INFORMATIVE
        texts.append(card.text if own else member.name.replace("_", " "))
    names = [member.name for member in pool]
    kinds = {row["task"]: row["group"] for row in facts.values()}
    tasks_of = [facts[name]["task"] for name in names]
    return Zoo(queries, names, tasks_of, kinds, unit(deltas), unit(outputs), np.array(norms), texts)


def unit(vectors: Sequence[Any]) -> Rows:
    """Rows of length 1."""
    import numpy as np

    rows = np.array(vectors, dtype=np.float64)
    units: Rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return units


def z(scores: Rows) -> Rows:
    """Rows with mean 0 and standard deviation 1."""
    import numpy as np

    standardised: Rows = (scores - scores.mean(1, keepdims=True)) / np.maximum(
        scores.std(1, keepdims=True), 1e-12
    )
    return standardised


def centre(scores: Rows) -> Rows:
    """z-scores less each adapter's mean over the other tasks."""
    standard = z(scores)
    n = len(standard)
    background_free: Rows = standard - (standard.sum(0) - standard) / (n - 1)
    return background_free


def spearman(left: Any, right: Any) -> float:
    """Rank correlation, ties at their mean rank; 0 where one is constant."""
    import numpy as np
    from scipy.stats import rankdata

    a, b = rankdata(left), rankdata(right)
    return float(np.corrcoef(a, b)[0, 1]) if a.std() and b.std() else 0.0


def judge_rankings(scores: Rows, queries: Sequence[Task], zoo: Zoo) -> RankingQuality:
    """How well the rows, one a query, rank the adapters."""
    import numpy as np

    own = family = listed = kin_first = counted = 0
    kin = []
    for row, task in zip(scores, queries, strict=True):
        mine = {at for at, other in enumerate(zoo.tasks) if other == task.name}
        order = np.argsort(-row, kind="stable").tolist()
        if mine:
            counted += 1
            own += zoo.names[order[0]] == task.name
            family += order[0] in mine
            listed += zoo.names.index(task.name) in order[:SHORTLIST]
        strangers = [at for at in order if at not in mine]
        same = [place for place, at in enumerate(strangers) if zoo.kinds[zoo.tasks[at]] == task.group]
        if same:
            kin.append(float(np.mean(same)) / (len(strangers) - 1))
            kin_first += same[0] == 0
    return RankingQuality(own, family, listed, counted, float(np.mean(kin)), kin_first, len(kin))


def variants(zoo: Zoo, passes: Sequence[Pass], text: Rows) -> dict[str, Rows]:
    """(tasks, adapters) scores by each way, plain and centred."""
    import numpy as np

    exact = np.array([task_pass.exact for task_pass in passes])
    quotients = np.divide(exact, zoo.norms, out=np.zeros_like(exact), where=zoo.norms > 0)
    quotients /= quotients.std((0, 1), keepdims=True)
    ways = {
        "exact, raw": exact.sum(2),
        "exact, unit": exact.sum(2) / zoo.lengths,
        "exact, modules of equal weight": quotients.sum(2) / (zoo.norms > 0).sum(1) ** 0.5,
        "sketch of delta": unit([task_pass.delta for task_pass in passes]) @ zoo.delta.T,
        "sketch of output": unit([task_pass.output for task_pass in passes]) @ zoo.output.T,
        "text": text,
    }
    ways |= {f"{name}, centred": centre(rows) for name, rows in list(ways.items())}
    output, exact_centred = ways["sketch of output, centred"], ways["exact, unit, centred"]
    ways["text + output, centred"] = ways["text, centred"] + output
    ways["exact of the best by output"] = rerank(output, exact_centred)
    return ways


def rerank(first: Rows, second: Rows) -> Rows:
    """Rows that rank the first SHORTLIST by `first` by `second`, and all others below, by `first`."""
    import numpy as np

    order_rows: Rows = first.copy()
    for row, better in zip(order_rows, second, strict=True):
        best = np.argsort(-row, kind="stable")[:SHORTLIST]
        row[best] = row.max() + 1 + better[best] - better[best].min()
    return order_rows


def halves(zoo: Zoo, queries: Sequence[Task]) -> Iterator[tuple[str, list[int]]]:
    """The places of the tasks for development and of those that judge."""
    order = [task.name for task in zoo.queries]
    for parity, half in enumerate(("development", "judging")):
        yield half, [at for at, task in enumerate(queries) if order.index(task.name) % 2 == parity]


def any_answer(zoo: Zoo, passes: Sequence[Pass], answer_passes: Sequence[Pass | None]) -> dict[str, Rows]:
    """Unit scores, and the same with any answer of the same task as the background."""
    import numpy as np

    right = np.array([task_pass.exact.sum(1) for task_pass in passes]) / zoo.lengths
    blank = np.zeros_like(right[0])
    any_one = (
        np.array([blank if task_pass is None else task_pass.exact.sum(1) for task_pass in answer_passes])
        / zoo.lengths
    )
    return {
        "exact, unit": right,
        "exact, unit, z less z of any answer": z(right) - z(any_one),
        "exact, unit of the difference": right - any_one,
        "exact, unit of the difference, centred": centre(right - any_one),
        "exact, unit, centred": centre(right),
    }


def report_ways(ways: Mapping[str, Rows], queries: Sequence[Task], zoo: Zoo) -> None:
    """A line for each way and half of the tasks."""
    for half, places in halves(zoo, queries):
        for name, rows in ways.items():
            say(f"{half:<12} {name:<40} {judge_rankings(rows[places], [queries[at] for at in places], zoo)}")


def report_neighbours(zoo: Zoo) -> None:
    """How near an adapter's own fingerprints bring its kin."""
    queries = [task for task in zoo.queries if task.name in zoo.names]
    mine = [zoo.names.index(task.name) for task in queries]
    for name, vectors in (("delta", zoo.delta), ("output", zoo.output)):
        quality = judge_rankings(vectors[mine] @ vectors.T, queries, zoo)
        say(f"by the {name} of the task's own adapter: {quality}")


def report_backgrounds(ways: Mapping[str, Rows], zoo: Zoo, draws: int = 10) -> None:
    """What centring is worth by few tasks of other kinds than the query's, drawn at random."""
    import numpy as np

    queries = zoo.queries
    for name in ("exact, unit", "sketch of output"):
        standard = z(ways[name])
        for count in (0, 1, 2, 4, 8, 16):
            done = []
            for seed in range(draws if count else 1):
                draw, rows = np.random.default_rng(seed), standard.copy()
                for row, task in enumerate(queries):
                    strange = [at for at, other in enumerate(queries) if other.group != task.group]
                    if count:
                        rows[row] -= standard[draw.choice(strange, count, replace=False)].mean(0)
                done.append(
                    [
                        judge_rankings(rows[at], [queries[k] for k in at], zoo)
                        for _, at in halves(zoo, queries)
                    ]
                )
            sentences = [
                f"{half} own first {np.mean([draw[at].own for draw in done]):4.1f}/{done[0][at].of}, kin at "
                f"{np.mean([draw[at].kin for draw in done]):.3f}"
                for at, (half, _) in enumerate(halves(zoo, queries))
            ]
            say(f"{name}, {count:2} backgrounds: {'; '.join(sentences)}")


def report_sketch(zoo: Zoo, passes: Sequence[Pass]) -> None:
    """How far sketched cosines with the gradient are from exact ones."""
    import numpy as np

    lengths = np.linalg.norm([task_pass.delta for task_pass in passes], axis=1, keepdims=True)
    exact = np.array([task_pass.exact.sum(1) for task_pass in passes]) / zoo.lengths / lengths
    sketch = unit([task_pass.delta for task_pass in passes]) @ zoo.delta.T
    own = [
        exact[row, zoo.names.index(task.name)]
        for row, task in enumerate(zoo.queries)
        if task.name in zoo.names
    ]
    error = sketch - exact
    ranks = np.mean([spearman(a, b) for a, b in zip(sketch, exact, strict=True)])
    say(
        f"cosine with the gradient: of a task's own adapter {np.mean(own):.3f} ({min(own):.3f} to "
        f"{max(own):.3f}), sd over adapters {exact.std(1).mean():.4f}; error of the sketch "
        f"{error.mean():+.4f}, sd {error.std():.4f}"
    )
    both = np.corrcoef(sketch.ravel(), exact.ravel())[0, 1]
    say(f"sketch of delta and exact: correlation {both:.3f}, mean rank correlation of a task {ranks:.3f}")


def report_samples(zoo: Zoo, usual: Sequence[Pass], draws: Mapping[str, Sequence[Pass | None]]) -> None:
    """Other draws, fewer and more samples of some tasks, centred by the usual passes of the others."""
    import numpy as np

    queries = zoo.queries
    for task, row in ((task, row) for row, task in enumerate(queries) if task.name in draws):
        few, unseen, *spans_of_24 = draws[task.name]
        if few is None or unseen is None or any(task_pass is None for task_pass in spans_of_24):
            continue
        complete = [task_pass for task_pass in spans_of_24 if task_pass is not None]
        spans = {
            "8": few.exact,
            "24": complete[0].exact,
            "96": np.mean([task_pass.exact for task_pass in complete], axis=0),
        }
        spans["24 of valid"] = unseen.exact
        spans |= {f"24, draw {at}": task_pass.exact for at, task_pass in enumerate(complete[1:], 1)}
        scores, places = {}, {}
        for name, exact in spans.items():
            rows = np.array([task_pass.exact.sum(1) for task_pass in usual]) / zoo.lengths
            rows[row] = exact.sum(1) / zoo.lengths
            scores[name] = centre(rows)[row]
            order = np.argsort(-scores[name], kind="stable").tolist()
            places[name] = order.index(zoo.names.index(task.name)) + 1
        twenty = [value for name, value in scores.items() if name.startswith("24") and name != "24 of valid"]
        pairs = [spearman(a, b) for at, a in enumerate(twenty) for b in twenty[:at]]
        outputs = unit([task_pass.output for task_pass in complete]) @ zoo.output.T
        sketched = [spearman(a, b) for at, a in enumerate(outputs) for b in outputs[:at]]
        say(
            f"{task.name}: rank correlation with 96 samples: of 8 {spearman(scores['8'], scores['96']):.2f}, "
            f"of 24 {np.mean([spearman(row, scores['96']) for row in twenty]):.2f}; of two draws of 24 "
            f"{np.mean(pairs):.2f} (sketch of output {np.mean(sketched):.2f}); own adapter's place: {places}"
        )


def report_gains(
    zoo: Zoo,
    ways: Mapping[str, Rows],
    gains: Mapping[str, tuple[Rows, Rows]],
) -> None:
    """Rank correlations of scores with measured gains of the others, and what the best five of them gain."""
    import numpy as np

    queries = [task.name for task in zoo.queries]
    table: dict[str, list[list[float]]] = {}
    for name, (loss, value) in gains.items():
        row, foreign = queries.index(name), [at for at, task in enumerate(zoo.tasks) if task != name]
        own, half = zoo.names.index(name), "judging" if row % 2 else "development"
        say(
            f"{name} ({half}): gain in loss: own {loss[own]:+.2f}, others {loss[foreign].mean():+.2f}, best "
            f"{loss[foreign].max():+.2f}; in accuracy: own {value[own]:+.3f}, "
            f"others {value[foreign].mean():+.3f}, best {value[foreign].max():+.3f}"
        )
        scored = {way: rows[row] for way, rows in ways.items()} | {"norm, smallest first": -zoo.lengths}
        other_gains = [z(np.array(pair)) for other, pair in gains.items() if other != name]
        if other_gains:
            scored["prior"] = np.mean(other_gains, axis=(0, 1))
            scored["prior + exact, unit, centred"] = (
                z(scored["prior"][None])[0] + z(ways["exact, unit, centred"])[row]
            )
            scored["prior + output, centred"] = (
                z(scored["prior"][None])[0] + z(ways["sketch of output, centred"])[row]
            )
        for way, scores in scored.items():
            best = np.array(foreign)[np.argsort(-scores[foreign], kind="stable")[:5]]
            figures = [
                spearman(scores[foreign], loss[foreign]),
                spearman(scores[foreign], value[foreign]),
            ]
            table.setdefault(way, []).append([*figures, loss[best].mean(), value[best].mean()])
    for way, rows in table.items():
        each_task = ", ".join(f"{row[0]:+.2f}/{row[1]:+.2f}" for row in rows)
        mean = np.mean(rows, axis=0)
        say(
            f"{way:<40} rank correlation with loss/accuracy {each_task}; mean {mean[0]:+.2f}/{mean[1]:+.2f}; "
            f"best five gain {mean[2]:+.2f}, {mean[3]:+.3f} ({len(rows)} tasks)"
        )


def measure_gains(
    base: LoadedBase | None, tasks: Sequence[Task], pool: Sequence[MergeMember], scratch: Path
) -> dict[str, tuple[Rows, Rows]]:
    """Gains in loss (nats a token) and in accuracy of every adapter alone, by task."""
    import numpy as np

    gains = {}
    for task in tasks:
        log, limit = scratch / "scores.jsonl", MEASURED[task.name]
        if base is not None:
            scores = list(evaluate(base, pool, [task], split="valid", limit=limit, log=log))
        else:
            scores = _read_log(log, task.name, pool)
        if any(not isinstance(score, TaskScore) for score in scores) or len(scores) <= len(pool):
            continue
        first, *adapter_scores = (score for score in scores if isinstance(score, TaskScore))
        gains[task.name] = (
            np.array([_loss(first) - _loss(score) for score in adapter_scores]),
            np.array([score.value - first.value for score in adapter_scores]),
        )
    return gains


def _loss(score: TaskScore) -> float:
    assert score.loss is not None, "scores of tasks of this project have losses"
    return score.loss


def _read_log(log: Path, task: str, pool: Sequence[MergeMember]) -> list[Any]:
    """The scores of the base and then of the adapters that a log has for a task."""
    rows = [TaskScore(**json.loads(line)) for line in log.read_text("utf-8").splitlines()]
    by_name = {row.adapter: row for row in rows if row.task == task}
    return [by_name[name] for name in ("base", *(member.name for member in pool)) if name in by_name]


def by_text(zoo: Zoo) -> Rows:
    """(tasks, adapters) cosines of the instructions with the adapters' texts."""
    import numpy as np

    embedder = load_embedder()
    left, right = embedder.encode([task.instruction for task in zoo.queries]), embedder.encode(zoo.texts)
    cosines: Rows = (left @ right.T).astype(np.float64)
    return cosines


def main() -> None:
    """Computes what is not there, and reports."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=Path, required=True, help="folder with the tasks")
    parser.add_argument("--adapters", type=Path, required=True, help="folder with adapters and index.jsonl")
    parser.add_argument("--bases", type=Path, required=True, help="folder with the base model")
    parser.add_argument("--scratch", type=Path, required=True, help="folder to keep passes and scores in")
    parser.add_argument("--report", action="store_true", help="compute nothing that is not there")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_base(BASE, bases=options.bases)
    base, pool, scratch = None if options.report else model, read_members(options.adapters), options.scratch
    tasks = read_tasks(options.tasks)
    zoo = read_zoo(options.adapters / "index.jsonl", tasks, pool, linear_modules(model.model))
    passes = [one_pass(base, task, "target", USUAL, pool, scratch) for task in tasks]
    usual = [task_pass for task_pass in passes if task_pass is not None]
    if len(usual) < len(passes):
        raise SystemExit("Some passes are not there; run without --report.")
    ways = variants(zoo, usual, by_text(zoo))
    report_ways(ways, tasks, zoo)
    answer_passes = [one_pass(base, task, "any", ANY, pool, scratch) for task in tasks]
    with_any = [at for at, task_pass in enumerate(answer_passes) if task_pass is not None]
    ways_any = any_answer(zoo, [usual[at] for at in with_any], [answer_passes[at] for at in with_any])
    report_ways(ways_any, [tasks[at] for at in with_any], zoo)
    report_neighbours(zoo)
    report_backgrounds(ways, zoo)
    report_sketch(zoo, usual)
    some = [task for task in tasks if task.name in MEASURED]
    samples = [("target", FEW), ("valid", USUAL), *(("target", span) for span in DRAWS)]
    spans = {
        task.name: [one_pass(base, task, *task_pass, pool, scratch) for task_pass in samples] for task in some
    }
    report_samples(zoo, usual, spans)
    report_gains(zoo, ways, measure_gains(base, some, pool, scratch))


def say(line: str) -> None:
    """Writes a line at once, so that a long run shows where it is."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
