"""The report of a grid study: what its numbers allow to say, tables and pictures behind it, what was run."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from catalog.pictures import count_noun
from catalog.pictures import number as three_digits
from studies.report import figures
from studies.report.comparing import (
    FEW,
    FEW_TO_DRAW,
    RATE,
    CurvatureSlopes,
    LabelRow,
    Line,
    Results,
    TuningRow,
    extent,
)
from studies.report.findings import SANE, Findings, Spot, Wild
from studies.report.page import Figure, Section, TableSection, Text
from studies.report.wording import (
    NOTHING,
    counts,
    duration,
    format_difference,
    interval,
    list_names,
    mean,
    name_word,
    nats,
    number,
    p_value,
    points,
    rate,
    record,
    resting,
    slope_interval,
)

# Headings that must not break.
_MEAN, _DIFFERENCE = "mean\u00a0±\u00a0SE", "difference\u00a0[95\u00a0%]"
_HOLLOW = " Hollow points: a cell is not done, so that the mean is over fewer {unit}s."

# A model below so many parameters and a task below so many test examples are called small.
_SMALL_MODEL, _SMALL_TASK = 1e9, 1000
_PARAMETERS = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([MB])(?![A-Za-z0-9])", re.IGNORECASE)
_DIGEST = 12


def sections(findings: Findings) -> list[Section]:
    """The report in its order."""
    return [
        _claims_text(findings),
        *_claims_table(findings),
        _every_label(findings),
        _by_task(findings),
        *_failures(findings),
        *_figures(findings),
        Text("How large this is", (_size(findings),)),
        _run(findings),
        _task_table(findings),
    ]


def _claims_text(findings: Findings) -> Text:
    """For each claim a sentence, and how to read it."""
    unit = findings.unit
    paragraphs = [
        f"{claim.mark.capitalize()}: “{claim.claim}” — {claim.sentence}" for claim in findings.claims
    ]
    done, all_cells = findings.count("done"), len(findings.results.cells)
    if not done:
        paragraphs.insert(
            0, f"No cell of this study is done (of {all_cells:,}), so that it says nothing yet."
        )
    elif done < all_cells:
        left = counts({"failed": findings.count("failed"), "missing": findings.count("missing")})
        paragraphs.append(f"The study is not complete: of {count_noun(all_cells, 'cell')} {left}.")
    spreads = list(_spreads(findings))
    paragraphs += spreads
    if not spreads and not findings.claims:
        paragraphs.append("The study states no claim to judge; the tables say what was measured.")
    if findings.sets:
        paragraphs.append(
            "What counts once is a set of adapters, merged once: its value is the mean over the tasks that "
            "judge it."
        )
    if done and any(claim.is_slope for claim in findings.claims):
        paragraphs.append(
            f"A slope is that of the logarithm of the best rate on that of the curvature within a {unit}, "
            f"over variants, ranks and batches; its interval is a t interval over {unit}s. A word needs "
            "p ≤ .05 after Holm's adjustment over all claims here."
        )
    if done and (spreads or not all(claim.is_slope for claim in findings.claims)):
        paragraphs.append(
            f"A point is a hundredth of the task's metric. Differences are paired over {unit}s, "
            f"{findings.part}s averaged in each {unit} first; intervals are t intervals over {unit}s. Better "
            "and worse need p ≤ .05 after Holm's adjustment over all claims here, about the same a 90 % "
            f"interval inside the declared margin. They speak of {unit}s like these over this base model."
        )
    return Text("What the numbers say", tuple(paragraphs))


def _claims_table(findings: Findings) -> Iterator[TableSection]:
    """The claims with their marks and numbers."""
    rows = [
        (
            claim.claim,
            claim.mark,
            f"{name_word(claim.verdict, findings.unit)}{resting(claim.rests_on)}",
            slope_interval(claim.difference) if claim.is_slope else interval(claim.difference),
            p_value(claim.difference.p if claim.difference else None),
            p_value(claim.holm_p),
        )
        for claim in findings.claims
    ]
    has_slope = any(claim.is_slope for claim in findings.claims)
    unit = "Points, but for slopes" if has_slope else "Points"
    if rows:
        yield TableSection(
            "Claims and marks",
            ("claim", "mark", "word", _DIFFERENCE, "p", "Holm"),
            tuple(rows),
            f"{unit}. Mark: whether the word is what the claim expects. Holm: p adjusted over these "
            f"claims. With fewer than {FEW} {findings.unit}s there is no word.",
        )


def _spreads(findings: Findings) -> Iterator[str]:
    """How far variants of LoRA differ from the plain one, tuned and at one rate."""
    for how, rows in (
        ("With the learning rate tuned", findings.tuned),
        ("At one learning rate", findings.fixed),
    ):
        over = extent(rows)
        if over:
            yield (
                f"{how}, variants differ from plain LoRA of the same rank by "
                f"{format_difference(over.smallest)} to {format_difference(over.largest)} points on average "
                f"({count_noun(over.rows, 'row')}); "
                f"the interval excludes zero for {over.apart} of {over.rows}."
                + (f" {_no_trust(over.tasks, findings.unit)}" if over.tasks < FEW else "")
            )


def _every_label(findings: Findings) -> TableSection:
    against = findings.against
    columns = ["method", _MEAN]
    columns += [_DIFFERENCE, "win/tie/loss"] if against else []
    # With one seed and no failure the tasks say it all.
    count_cells = any(row.failed or row.done != row.tasks for row in findings.rows)
    rows = []
    for row in findings.rows:
        compared = [interval(row.difference), record(row.difference)] if against else []
        tasks = f"{row.tasks}" if row.tasks == row.expected else f"{row.tasks} of {row.expected}"
        cells = (
            [counts({"done": row.done, "failed": row.failed, "missing": row.missing})] if count_cells else []
        )
        rows.append((row.label, mean(row.value), *compared, nats(row.loss), tasks, *cells))
    title = f"Every method against {against}" if against else "Every method"
    columns += ["loss", f"{findings.unit}s", *(["cells"] if count_cells else [])]
    return TableSection(title, tuple(columns), tuple(rows), _reading(findings))


def _reading(findings: Findings) -> str:
    """How to read the main table, and what not to compare."""
    unit = findings.unit
    means = f"{_means(findings)}, ± the standard error over {unit}s"
    note = [f"Mean: the task's metric in points, {means}. Loss: nats a token."]
    if findings.against:
        note.append(
            f"Difference: to {findings.against}, paired over the {unit}s where both are complete. Tie: on "
            f"the {unit} the difference is less than one test example is worth, or zero. Each t interval is "
            "for itself; among many rows some leave zero out by chance."
        )
    short = [row.label for row in findings.rows if row.tasks < row.expected]
    if short:
        which = "all rows" if len(short) == len(findings.rows) else list_names(short)
        compares = " and only the difference compares" if findings.against else ""
        note.append(f"Not complete, so that the mean is over fewer {unit}s{compares}: {which}.")
    fewer = [row.label for row in findings.rows if row.expected < len(findings.results.tasks)]
    if fewer:
        note.append(f"Asked on some of the {unit}s only: {list_names(fewer)}.")
    once = [row.label for row in findings.rows if row.seeds < len(findings.results.seeds)]
    if once and not findings.sets:
        note.append(f"Asked with fewer seeds, and compared on these: {list_names(once)}.")
    compared = {row.label: row.difference.tasks for row in findings.rows if row.difference}
    few = [name for name, tasks in compared.items() if tasks < FEW]
    if few and len(few) == len(compared):
        note.append(_no_trust(max(compared.values()), unit))
    elif few:
        note.append(
            f"Of fewer than {FEW} {unit}s, so that nothing is called better, worse or the same: "
            f"{list_names(few)}."
        )
    return " ".join(note)


def _no_trust(tasks: int, unit: str) -> str:
    return f"With {count_noun(tasks, unit)} nothing is called better, worse or the same."


def _means(findings: Findings) -> str:
    unit = findings.unit
    return f"mean over {unit}s, {findings.part}s averaged in each {unit} first"


def _by_task(findings: Findings) -> TableSection:
    """Tasks against methods; the more numerous are the rows, so that the table is rather long than wide."""
    unit, part = findings.unit, findings.part
    labels, tasks = findings.results.labels, _tasks_with_results(findings, findings.results)
    if len(labels) > len(tasks):
        columns = ("method", *tasks)
        rows = [(label, *(_spot(findings.spot(label, task)) for task in tasks)) for label in labels]
    else:
        columns = (unit, *labels)
        rows = [(task, *(_spot(findings.spot(label, task)) for label in labels)) for task in tasks]
    note = f"The task's metric in points, {part}s averaged; in brackets the {part}s that are not in it."
    if later := [task for task in findings.results.tasks if task not in tasks]:
        note += f" Not begun: {list_names(later)}."
    return TableSection(f"{unit.capitalize()} by {unit}", columns, tuple(rows), note)


def _tasks_with_results(findings: Findings, results: Results) -> Sequence[str]:
    """The tasks, or sets, with a cell that is done or has failed, the base alone apart, which sets share; all
    where there is none.
    """
    methods = findings.record.get("methods") or {}
    alone = {name for name, method in methods.items() if method.get("use") == "base"}
    begun = {cell.task for cell in results.cells if cell.status != "missing" and cell.method not in alone}
    return [task for task in results.tasks if task in begun] or results.tasks


def _spot(spot: Spot | None) -> str:
    if spot is None:
        return NOTHING
    left = {"failed": spot.failed, "missing": spot.missing}
    if spot.value is None:
        return counts(left) if spot.failed and spot.missing else "failed" if spot.failed else "missing"
    return points(spot.value) + (f" ({counts(left)})" if spot.failed or spot.missing else "")


def _failures(findings: Findings) -> Iterator[Section]:
    rows = []
    for failure in findings.failures:
        cells = "; ".join(f"{task} {', '.join(map(str, seeds))}" for task, seeds in failure.cells.items())
        rows.append((failure.label, str(sum(map(len, failure.cells.values()))), failure.error, cells))
    if rows:
        places = "tasks and sets" if findings.sets else "tasks and seeds"
        yield TableSection("What failed", ("method", "cells", "why", places), tuple(rows))


def _figures(findings: Findings) -> Iterator[Section]:
    compared = [row for row in findings.rows if row.difference]
    if "gains" in findings.asked and findings.against and compared:
        yield _gains(findings, compared, findings.against)
    if findings.related and findings.against:
        yield _relevance(findings)
    if "tuning" in findings.asked and findings.tuning.get("value"):
        yield from _tuning(findings)
    if findings.slopes:
        yield _curvature_table(findings.slopes)
    level = next(
        (row.value.mean for row in findings.rows if row.label == findings.against and row.value), None
    )
    for key, lines in findings.curves.items():
        if lines:
            yield _curve(findings, key, lines, level)
    for key, lines in findings.energy.items():
        yield _energy(findings, key, lines)
    if findings.wild:
        yield _wild(findings.wild, findings.tuning.get("value", ()))


def _gains(findings: Findings, rows: Sequence[LabelRow], against: str) -> Figure:
    title, unit = f"Gain over {against}", findings.unit
    note = (
        f"Dot: mean difference over {unit}s, {findings.part}s averaged first; bar: its 95 % t interval; "
        f"strokes: the single {unit}s. To the right of zero is better than {against}."
    )
    return Figure(title, figures.gains(rows, against, title), note, "gains")


def _relevance(findings: Findings) -> Figure:
    title = "Gain by relevance of the pool"
    correlation = findings.correlation
    if correlation is None:
        caption = "Too few different points for a correlation."
    else:
        ends = (
            f", 95 % interval {number(correlation.low)} to {number(correlation.high)}"
            if correlation.low is not None
            else ""
        )
        caption = (
            f"Spearman's rank correlation {number(correlation.rho)}{ends}, "
            f"of {count_noun(correlation.points, 'point')} on "
            f"{count_noun(correlation.tasks, 'task')} (bootstrap over tasks)."
        )
        if correlation.tasks < FEW_TO_DRAW:
            caption += f" A bootstrap over {count_noun(correlation.tasks, 'task')} is too narrow."
    note = (
        "A point is one method with one pool on one task, seeds averaged. Relevance is what the members "
        "alone gain in loss on examples that may be learned from, those of the first seed. Both are less the "
        "mean over the method's pools on the task, so that neither task nor method makes a difference; "
        f"methods with one pool are not here. {caption}"
    )
    return Figure(title, figures.relevance(findings.related, title), note, "relevance")


def _tuning(findings: Findings) -> Iterator[Section]:
    title = "Learning rates"
    value, loss = findings.tuning["value"], findings.tuning["validation loss"]
    panels = [figures.Panel("value, points", value, 100.0)]
    panels += [figures.Panel("validation loss, nats a token", loss, logarithmic=True)] if loss else []
    note = f"Each point: {_averages(findings)}.{_gaps(findings.unit, *value, *loss)}"
    yield Figure(title, figures.curves(panels, RATE, title, None), note, "tuning")
    if findings.tuned:
        note = (
            "For every task and seed the rate with the lowest validation loss; test values and losses. "
            "Difference: to plain LoRA of the same rank, tuned in the same way. At an end: the lowest or "
            "highest rate tried was chosen, so that a better one may lie outside. A training that failed is "
            "never chosen."
        )
        yield _tuning_table("With the learning rate tuned", findings.tuned, note)
    if findings.fixed:
        note = (
            "All at the one rate with the lowest mean validation loss of plain LoRA of the same rank. "
            "Difference: to plain LoRA of the same rank at that rate."
        )
        yield _tuning_table("At one learning rate", findings.fixed, note)


def _curvature_table(slopes: CurvatureSlopes) -> TableSection:
    """Curvature and best rate of each configuration, geometric means over tasks, and the slope."""
    logs: dict[str, list[tuple[float, float]]] = {}
    for pairs in slopes.points.values():
        for name, (value, best) in pairs.items():
            logs.setdefault(name, []).append((math.log10(value), math.log10(best)))
    rows = []
    for name, points_of in logs.items():
        value, best = (10 ** fmean(column) for column in zip(*points_of, strict=True))
        rows.append((name, three_digits(value), rate(best), str(len(points_of))))
    best_rates = slopes.edges + sum(map(len, slopes.points.values()))
    note = (
        "Curvature: the largest eigenvalue of the Hessian of the loss of 16 examples in the adapter's own "
        "parameters at its start. Best rate: by a parabola through validation losses, on tasks where no "
        "training is missing and over rates where none failed. Geometric means over tasks. Left out, since a "
        f"better one may lie outside: {slopes.edges} of {count_noun(best_rates, 'best rate')}, the lowest or "
        "highest rate tried."
    )
    if slopes.edges and slopes.slope_with_edges is not None:
        note += f" With them at that rate: {slope_interval(slopes.slope_with_edges)}."
    return TableSection(
        "Rates and curvature", ("method", "curvature", "best rate", "tasks"), tuple(rows), note
    )


def _tuning_table(title: str, rows: Sequence[TuningRow], note: str) -> TableSection:
    """A row for each variant and rank; what was chosen, where more than one rate was tried."""
    one_rate = all(len(row.rates) < 2 for row in rows) and not any(row.edges for row in rows)
    table_rows = []
    for row in rows:
        numbers = mean(row.value), interval(row.difference), record(row.difference), nats(row.loss)
        if one_rate:
            rates = [list_names([rate(value) for value in row.rates]) or NOTHING]
        else:
            rates_text = ", ".join(f"{rate(value)} × {times}" for value, times in row.rates.items())
            rates = [rates_text or NOTHING, f"{row.edges} of {sum(row.rates.values())}"]
        table_rows.append((row.label, *numbers, *rates, str(row.failed)))
    headings = ("rate",) if one_rate else ("rates chosen", "at an end")
    columns = ("method", _MEAN, _DIFFERENCE, "win/tie/loss", "loss", *headings, "failed")
    return TableSection(title, columns, tuple(table_rows), note)


def _averages(findings: Findings) -> str:
    return f"{_means(findings)}, with the standard error over {findings.unit}s"


def _curve(findings: Findings, key: str, lines: Sequence[Line], level: float | None) -> Figure:
    title = f"Value by {key.replace('_', ' ')}"
    picture = figures.curves([figures.Panel("value, points", lines, 100.0)], key, title, level)
    note = f"Each point: {_averages(findings)}.{_gaps(findings.unit, *lines)}"
    if findings.against and level is not None:
        note += f" Dashed: {findings.against}."
    return Figure(title, picture, note, f"curve-{key}")


def _energy(findings: Findings, key: str, lines: Sequence[Line]) -> Figure:
    title = f"Energy kept by {key.replace('_', ' ')}"
    note = (
        "The share of the squared norm that a truncated merge kept, or that LoRA-LEGO's centroids hold of "
        f"the squared lengths of all units, {_means(findings)}.{_gaps(findings.unit, *lines)}"
    )
    picture = figures.curves([figures.Panel("energy kept, %", lines, 100.0)], key, title, None)
    return Figure(title, picture, note, f"energy-{key}")


def _wild(wild: Wild, lines: Sequence[Line]) -> Figure:
    title = "Learning rates and ranks in the wild"
    note = [f"From {wild.source}: {count_noun(wild.cards, 'adapter')}."]
    if wild.rates:
        note.append(f"{count_noun(len(wild.rates), 'learning rate')}, median {rate(median(wild.rates))}.")
    if wild.ranks:
        note.append(f"{count_noun(len(wild.ranks), 'rank')}, median {median(wild.ranks):g}.")
    if wild.left_out:
        note.append(
            f"Left out: {count_noun(wild.left_out, 'rate')} outside {rate(SANE[0])} to {rate(SANE[1])}."
        )
    if lines:
        note.append("Above them the tuning curve of this study, on the same axis.")
    return Figure(title, figures.wild(lines, wild.rates, wild.ranks, title), " ".join(note), "wild")


def _gaps(unit: str, *lines: Line) -> str:
    """What is to be said of points that are not of all tasks, and of those that are not there."""
    hollow = any(not point.whole for line in lines for point in line.points)
    note = _HOLLOW.format(unit=unit) if hollow else ""
    gaps = [
        f"{line.label} at {', '.join(f'{x:g}' for x in line.left_out)}" for line in lines if line.left_out
    ]
    gaps = list(dict.fromkeys(gaps))
    return note + (f" Left out, since no {unit} is complete there: {list_names(gaps)}." if gaps else "")


def _size(findings: Findings) -> str:
    """How many tasks, seeds and adapters over which base, and whether that is small."""
    base, adapters = findings.study.get("base") or {}, findings.study.get("adapters") or {}
    examples = list(findings.grid.examples.values())
    name = str(base.get("name") or "unknown")
    parameters = _parameters(name)
    model, tasks = _a_model(parameters), _some_tasks(examples)
    text = f"{model} and {tasks}"
    seeds = (
        _begun_of(findings, findings.results, "set")
        if findings.sets
        else count_noun(len(findings.grid.seeds), "seed")
    )
    complete = (
        f"{_begun_of(findings, findings.grid, 'task')}{_each(examples)}, {seeds}, "
        f"{count_noun(len(adapters), 'adapter') + ', ' if adapters else ''}base model {name}: {text}."
    )
    if "small" in text:
        complete += " What holds here need not hold for larger ones."
    return complete


def _begun_of(findings: Findings, results: Results, noun: str) -> str:
    """How many of the tasks or sets have a result: "9 of 20 sets", or "20 sets" for all."""
    begun, whole = len(_tasks_with_results(findings, results)), len(results.tasks)
    return (f"{begun:,} of " if begun < whole else "") + count_noun(whole, noun)


def _each(examples: Sequence[int]) -> str:
    """How many test examples a task has."""
    if not examples:
        return ""
    low, high = min(examples), max(examples)
    return (
        f" of {count_noun(low, 'test example')}" if low == high else f" of {low:,} to {high:,} test examples"
    )


def _parameters(name: str) -> float | None:
    """The number of parameters that a model's name states: 135M, 0.6B."""
    match = _PARAMETERS.search(name)
    return float(match[1]) * {"M": 1e6, "B": 1e9}[match[2].upper()] if match else None


def _a_model(parameters: float | None) -> str:
    if parameters is None:
        return "a model of a size that its name does not tell"
    size_text = f"{parameters / 1e9:g} billion" if parameters >= 1e9 else f"{parameters / 1e6:g} million"
    small = "small " if parameters < _SMALL_MODEL else ""
    return f"a {small}model ({size_text} parameters, by its name)"


def _some_tasks(examples: Sequence[int]) -> str:
    if not examples:
        return "tasks without results"
    return "small tasks" if max(examples) < _SMALL_TASK else "tasks of different sizes"


def _run(findings: Findings) -> TableSection:
    study, record = findings.study, findings.record
    base, steps = study.get("base") or {}, study.get("steps") or {}
    seeds = record.get("seeds") or findings.grid.seeds
    state = {status: findings.count(status) for status in ("done", "failed", "missing")}
    rows = {
        "base model": _with_digest(base.get("name"), base.get("digest")),
        **({"data type": dtype} if (dtype := record.get("dtype")) else {}),
        "tasks": count_noun(len(findings.grid.tasks), "task"),
        **({"sets": count_noun(len(seeds), "set")} if findings.sets else {}),
        "seeds": list_names([str(seed) for seed in seeds]),
        "adapters": count_noun(len(adapters), "adapter") if (adapters := study.get("adapters")) else "",
        "cells": counts(state),
        "steps": counts(steps),
        "time": f"{duration(study['seconds'])}, summed over steps"
        if study.get("seconds") is not None
        else "",
        "device": _device(study),
        "versions": list_names(
            [f"{name} {version}" for name, version in sorted((study.get("versions") or {}).items())]
        ),
        "study file": _with_digest(record.get("name") or record.get("study"), study.get("file_sha256")),
    }
    return TableSection(
        "What was run",
        ("what", "which"),
        tuple((name, value or NOTHING) for name, value in rows.items()),
        "Digests are the first 12 digits of a sha256.",
    )


def _device(study: Mapping[str, Any]) -> str:
    threads = study.get("threads")
    parts = [
        study.get("device"),
        count_noun(int(threads), "thread") if threads else None,
        study.get("machine"),
    ]
    return ", ".join(str(part) for part in parts if part)


def _task_table(findings: Findings) -> TableSection:
    tasks = findings.study.get("tasks") or {}
    rows = []
    for name in dict.fromkeys((*findings.grid.tasks, *tasks)):
        task, examples = tasks.get(name) or {}, findings.grid.examples.get(name)
        texts = [str(task.get(key) or NOTHING) for key in ("group", "metric", "license")]
        digest = str(task.get("digest") or NOTHING)[:_DIGEST]
        rows.append((name, *texts[:2], f"{examples:,}" if examples else NOTHING, texts[2], digest))
    columns = ("task", "group", "metric", "test examples", "license", "digest")
    return TableSection("The tasks", columns, tuple(rows))


def _with_digest(name: Any, digest: Any) -> str:
    return " ".join(str(part) for part in (name, f"({str(digest)[:_DIGEST]})" if digest else None) if part)
