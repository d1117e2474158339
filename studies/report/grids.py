"""The report of a grid study: what its numbers allow to say, tables and pictures behind it, what was run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from studies.report import figures
from studies.report.comparing import FEW, RATE, LabelRow, Line
from studies.report.facts import facts
from studies.report.findings import SANE, Findings, Spot, Wild
from studies.report.page import Figure, Section, TableSection, Text
from studies.report.tuning import TuningRow as Tuned
from studies.report.tuning import extent
from studies.report.wording import (
    NOTHING,
    count_noun,
    counts,
    format_difference,
    interval,
    list_names,
    mean,
    nats,
    number,
    points,
    rate,
    record,
)

_MEANS = "mean over tasks, seeds averaged in each task first"
# Headings that must not break.
_MEAN, _DIFFERENCE = "mean\u00a0±\u00a0SE", "difference\u00a0[95\u00a0%]"
_HOLLOW = " Hollow points: a cell is not done, so that the mean is over fewer tasks."


def sections(study: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> list[Section]:
    """The report in its order; `study` is study.json and `cells` are the rows of results.jsonl."""
    findings = Findings(study, cells)
    return [
        _claims_text(findings),
        _every_label(findings),
        _by_task(findings),
        *_failures(findings),
        *_figures(findings),
        *facts(findings),
    ]


def summary(study: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every number that the report shows, as plain JSON."""
    return Findings(study, cells).summary()


def _claims_text(findings: Findings) -> Text:
    """For each claim a sentence, and how to read it."""
    paragraphs = [f"“{claim.claim}” — {claim.sentence}" for claim in findings.claims]
    done, all_cells = findings.count("done"), len(findings.results.cells)
    if not done:
        paragraphs.insert(
            0, f"No cell of this study is done (of {all_cells:,}), so that it says nothing yet."
        )
    elif done < all_cells:
        left = counts({"failed": findings.count("failed"), "missing": findings.count("missing")})
        paragraphs.append(f"The study is not complete: of {count_noun(all_cells, 'cell')} {left}.")
    if findings.tuned or findings.fixed:
        paragraphs += _spreads(findings)
    elif not findings.claims:
        paragraphs.append("The study states no claim to judge; the tables say what was measured.")
    if done and (findings.claims or findings.tuned):
        paragraphs.append(
            "A point is a hundredth of the task's metric. Differences are paired: seeds are averaged in each "
            "task, and the interval comes from drawing the tasks again (bootstrap, 10,000 draws). It speaks "
            "of tasks like these over this base model."
        )
    return Text("What the numbers say", tuple(paragraphs))


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
                + (f" {_no_trust(over.tasks)}" if over.tasks < FEW else "")
            )


def _every_label(findings: Findings) -> TableSection:
    against = findings.against
    columns = ["method", _MEAN]
    columns += [_DIFFERENCE, "win/tie/loss"] if against else []
    rows = []
    for row in findings.rows:
        compared = [interval(row.difference), record(row.difference)] if against else []
        tasks = f"{row.tasks}" if row.tasks == row.expected else f"{row.tasks} of {row.expected}"
        state = counts({"done": row.done, "failed": row.failed, "missing": row.missing})
        rows.append((row.label, mean(row.value), *compared, nats(row.loss), tasks, state))
    title = f"Every method against {against}" if against else "Every method"
    return TableSection(title, (*columns, "loss", "tasks", "cells"), tuple(rows), _reading(findings))


def _reading(findings: Findings) -> str:
    """How to read the main table, and what not to compare."""
    note = [
        f"Mean: the task's metric in points, {_MEANS}, ± the standard error over tasks. Loss: nats a token."
    ]
    if findings.against:
        note.append(
            f"Difference: to {findings.against}, paired over the tasks where both are complete. Tie: on the "
            "task the difference is less than one test example is worth, or zero. Each interval is for "
            "itself; among many rows some differ by chance."
        )
    short = [row.label for row in findings.rows if row.tasks < row.expected]
    if short:
        note.append(
            "Not complete, so that the mean is over fewer tasks and only the difference compares: "
            f"{list_names(short)}."
        )
    fewer = [row.label for row in findings.rows if row.expected < len(findings.results.tasks)]
    if fewer:
        note.append(f"Asked on some of the tasks only: {list_names(fewer)}.")
    once = [row.label for row in findings.rows if row.seeds < len(findings.results.seeds)]
    if once:
        note.append(f"Asked with fewer seeds, and compared on these: {list_names(once)}.")
    compared = {row.label: row.difference.tasks for row in findings.rows if row.difference}
    few = [name for name, tasks in compared.items() if tasks < FEW]
    if few and len(few) == len(compared):
        note.append(_no_trust(max(compared.values())))
    elif few:
        note.append(
            f"Of fewer than {FEW} tasks, so that the interval is not to be trusted: {list_names(few)}."
        )
    return " ".join(note)


def _no_trust(tasks: int) -> str:
    return f"With {count_noun(tasks, 'task')} no interval is to be trusted."


def _by_task(findings: Findings) -> TableSection:
    """Tasks against methods; the more numerous are the rows, so that the table is rather long than wide."""
    labels, tasks = findings.results.labels, findings.results.tasks
    if len(labels) > len(tasks):
        columns = ("method", *tasks)
        rows = [(label, *(_spot(findings.spot(label, task)) for task in tasks)) for label in labels]
    else:
        columns = ("task", *labels)
        rows = [(task, *(_spot(findings.spot(label, task)) for label in labels)) for task in tasks]
    note = "The task's metric in points, seeds averaged; in brackets the seeds that are not in it."
    return TableSection("Task by task", columns, tuple(rows), note)


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
        yield TableSection("What failed", ("method", "cells", "why", "tasks and seeds"), tuple(rows))


def _figures(findings: Findings) -> Iterator[Section]:
    compared = [row for row in findings.rows if row.difference]
    if "gains" in findings.asked and findings.against and compared:
        yield _gains(compared, findings.against)
    if findings.related and findings.against:
        yield _relevance(findings)
    if "tuning" in findings.asked and findings.tuning.get("value"):
        yield from _tuning(findings)
    level = next(
        (row.value.mean for row in findings.rows if row.label == findings.against and row.value), None
    )
    for key, lines in findings.curves.items():
        if lines:
            yield _curve(key, lines, findings.against, level)
    for key, lines in findings.energy.items():
        yield _energy(key, lines)
    if findings.wild:
        yield _wild(findings.wild, findings.tuning.get("value", ()))


def _gains(rows: Sequence[LabelRow], against: str) -> Figure:
    title = f"Gain over {against}"
    note = (
        "Dot: mean difference over tasks, seeds averaged first; bar: its 95 % interval; strokes: the single "
        f"tasks. To the right of zero is better than {against}."
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
        if correlation.tasks < FEW:
            caption += f" {_no_trust(correlation.tasks)}"
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
    note = f"Each point: {_MEANS}, with the standard error over tasks.{_gaps(*value, *loss)}"
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


def _tuning_table(title: str, rows: Sequence[Tuned], note: str) -> TableSection:
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


def _curve(key: str, lines: Sequence[Line], against: str | None, level: float | None) -> Figure:
    title = f"Value by {key.replace('_', ' ')}"
    picture = figures.curves([figures.Panel("value, points", lines, 100.0)], key, title, level)
    note = f"Each point: {_MEANS}, with the standard error over tasks.{_gaps(*lines)}"
    if against and level is not None:
        note += f" Dashed: {against}."
    return Figure(title, picture, note, f"curve-{key}")


def _energy(key: str, lines: Sequence[Line]) -> Figure:
    title = f"Energy kept by {key.replace('_', ' ')}"
    note = (
        "The share of the squared norm that a truncated merge kept, or that LoRA-LEGO's centroids hold of "
        f"the squared lengths of all units, {_MEANS}.{_gaps(*lines)}"
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


def _gaps(*lines: Line) -> str:
    """What is to be said of points that are not of all tasks, and of those that are not there."""
    note = _HOLLOW if any(not point.whole for line in lines for point in line.points) else ""
    gaps = [
        f"{line.label} at {', '.join(f'{x:g}' for x in line.left_out)}" for line in lines if line.left_out
    ]
    gaps = list(dict.fromkeys(gaps))
    return note + (f" Left out, since no task is complete there: {list_names(gaps)}." if gaps else "")
