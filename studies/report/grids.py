"""The report of a grid study: what its numbers allow to say, tables and pictures behind it, what was run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from studies.report import figures
from studies.report.comparing import FEW, Row
from studies.report.curves import RATE, Line
from studies.report.facts import facts
from studies.report.findings import SANE, Findings, Spot, Wild
from studies.report.sections import Figure, Section, Table, Text
from studies.report.tuning import Row as Tuned
from studies.report.tuning import extent
from studies.report.wording import (
    NOTHING,
    counted,
    counts,
    interval,
    listed,
    mean,
    nats,
    number,
    points,
    rate,
    record,
    signed,
)

_MEANS = "mean over tasks, seeds averaged in each task first"
# Headings that must not break.
_MEAN, _DIFFERENCE = "mean\u00a0±\u00a0SE", "difference\u00a0[95\u00a0%]"
_HOLLOW = " Hollow points: a cell is not done, so that the mean is over fewer tasks."


def sections(study: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> list[Section]:
    """The report in its order; `study` is study.json and `cells` are the rows of results.jsonl."""
    found = Findings(study, cells)
    return [
        _said(found),
        _every_label(found),
        _by_task(found),
        *_failures(found),
        *_figures(found),
        *facts(found),
    ]


def summary(study: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every number that the report shows, as plain JSON."""
    return Findings(study, cells).summary()


def _said(found: Findings) -> Text:
    """For each claim a sentence, and how to read it."""
    paragraphs = [f"“{one.claim}” — {one.sentence}" for one in found.claims]
    done, all_cells = found.count("done"), len(found.results.cells)
    if not done:
        paragraphs.insert(
            0, f"No cell of this study is done (of {all_cells:,}), so that it says nothing yet."
        )
    elif done < all_cells:
        left = counts({"failed": found.count("failed"), "missing": found.count("missing")})
        paragraphs.append(f"The study is not complete: of {counted(all_cells, 'cell')} {left}.")
    if found.tuned or found.fixed:
        paragraphs += _spreads(found)
    elif not found.claims:
        paragraphs.append("The study states no claim to judge; the tables say what was measured.")
    if done and (found.claims or found.tuned):
        paragraphs.append(
            "A point is a hundredth of the task's metric. Differences are paired: seeds are averaged in each "
            "task, and the interval comes from drawing the tasks again (bootstrap, 10,000 draws). It speaks "
            "of tasks like these over this base model."
        )
    return Text("What the numbers say", tuple(paragraphs))


def _spreads(found: Findings) -> Iterator[str]:
    """How far variants of LoRA differ from the plain one, tuned and at one rate."""
    for how, told in (("With the learning rate tuned", found.tuned), ("At one learning rate", found.fixed)):
        over = extent(told)
        if over:
            yield (
                f"{how}, variants differ from plain LoRA of the same rank by {signed(over.smallest)} to "
                f"{signed(over.largest)} points on average ({counted(over.rows, 'row')}); the interval "
                f"excludes zero for {over.apart} of {over.rows}."
                + (f" {_no_trust(over.tasks)}" if over.tasks < FEW else "")
            )


def _every_label(found: Findings) -> Table:
    against = found.against
    columns = ["method", _MEAN]
    columns += [_DIFFERENCE, "win/tie/loss"] if against else []
    rows = []
    for row in found.rows:
        compared = [interval(row.difference), record(row.difference)] if against else []
        tasks = f"{row.tasks}" if row.tasks == row.expected else f"{row.tasks} of {row.expected}"
        state = counts({"done": row.done, "failed": row.failed, "missing": row.missing})
        rows.append((row.label, mean(row.value), *compared, nats(row.loss), tasks, state))
    title = f"Every method against {against}" if against else "Every method"
    return Table(title, (*columns, "loss", "tasks", "cells"), tuple(rows), _reading(found))


def _reading(found: Findings) -> str:
    """How to read the main table, and what not to compare."""
    note = [
        f"Mean: the task's metric in points, {_MEANS}, ± the standard error over tasks. Loss: nats a token."
    ]
    if found.against:
        note.append(
            f"Difference: to {found.against}, paired over the tasks where both are complete. Tie: on the "
            "task the difference is less than one test example is worth, or zero. Each interval is for "
            "itself; among many rows some differ by chance."
        )
    short = [row.label for row in found.rows if row.tasks < row.expected]
    if short:
        note.append(
            "Not complete, so that the mean is over fewer tasks and only the difference compares: "
            f"{listed(short)}."
        )
    fewer = [row.label for row in found.rows if row.expected < len(found.results.tasks)]
    if fewer:
        note.append(f"Asked on some of the tasks only: {listed(fewer)}.")
    once = [row.label for row in found.rows if row.seeds < len(found.results.seeds)]
    if once:
        note.append(f"Asked with fewer seeds, and compared on these: {listed(once)}.")
    compared = {row.label: row.difference.tasks for row in found.rows if row.difference}
    few = [name for name, tasks in compared.items() if tasks < FEW]
    if few and len(few) == len(compared):
        note.append(_no_trust(max(compared.values())))
    elif few:
        note.append(f"Of fewer than {FEW} tasks, so that the interval is not to be trusted: {listed(few)}.")
    return " ".join(note)


def _no_trust(tasks: int) -> str:
    return f"With {counted(tasks, 'task')} no interval is to be trusted."


def _by_task(found: Findings) -> Table:
    """Tasks against methods; the more numerous are the rows, so that the table is rather long than wide."""
    labels, tasks = found.results.labels, found.results.tasks
    if len(labels) > len(tasks):
        columns = ("method", *tasks)
        rows = [(label, *(_spot(found.spot(label, task)) for task in tasks)) for label in labels]
    else:
        columns = ("task", *labels)
        rows = [(task, *(_spot(found.spot(label, task)) for label in labels)) for task in tasks]
    note = "The task's metric in points, seeds averaged; in brackets the seeds that are not in it."
    return Table("Task by task", columns, tuple(rows), note)


def _spot(spot: Spot | None) -> str:
    if spot is None:
        return NOTHING
    left = {"failed": spot.failed, "missing": spot.missing}
    if spot.value is None:
        return counts(left) if spot.failed and spot.missing else "failed" if spot.failed else "missing"
    return points(spot.value) + (f" ({counts(left)})" if spot.failed or spot.missing else "")


def _failures(found: Findings) -> Iterator[Section]:
    rows = []
    for one in found.failures:
        cells = "; ".join(f"{task} {', '.join(map(str, seeds))}" for task, seeds in one.cells.items())
        rows.append((one.label, str(sum(map(len, one.cells.values()))), one.error, cells))
    if rows:
        yield Table("What failed", ("method", "cells", "why", "tasks and seeds"), tuple(rows))


def _figures(found: Findings) -> Iterator[Section]:
    compared = [row for row in found.rows if row.difference]
    if "gains" in found.asked and found.against and compared:
        yield _gains(compared, found.against)
    if found.related and found.against:
        yield _relevance(found)
    if "tuning" in found.asked and found.tuning.get("value"):
        yield from _tuning(found)
    level = next((row.value.mean for row in found.rows if row.label == found.against and row.value), None)
    for key, lines in found.curves.items():
        if lines:
            yield _curve(key, lines, found.against, level)
    for key, lines in found.energy.items():
        yield _energy(key, lines)
    if found.wild:
        yield _wild(found.wild, found.tuning.get("value", ()))


def _gains(rows: Sequence[Row], against: str) -> Figure:
    title = f"Gain over {against}"
    note = (
        "Dot: mean difference over tasks, seeds averaged first; bar: its 95 % interval; strokes: the single "
        f"tasks. To the right of zero is better than {against}."
    )
    return Figure(title, figures.gains(rows, against, title), note, "gains")


def _relevance(found: Findings) -> Figure:
    title = "Gain by relevance of the pool"
    seen = found.correlation
    if seen is None:
        told = "Too few different points for a correlation."
    else:
        ends = f", 95 % interval {number(seen.low)} to {number(seen.high)}" if seen.low is not None else ""
        told = (
            f"Spearman's rank correlation {number(seen.rho)}{ends}, of {counted(seen.points, 'point')} on "
            f"{counted(seen.tasks, 'task')} (bootstrap over tasks)."
        )
        if seen.tasks < FEW:
            told += f" {_no_trust(seen.tasks)}"
    note = (
        "A point is one method with one pool on one task, seeds averaged. Relevance is what the members "
        "alone gain in loss on examples that may be learned from, those of the first seed. Both are less the "
        "mean over the method's pools on the task, so that neither task nor method makes a difference; "
        f"methods with one pool are not here. {told}"
    )
    return Figure(title, figures.relevance(found.related, title), note, "relevance")


def _tuning(found: Findings) -> Iterator[Section]:
    title = "Learning rates"
    value, loss = found.tuning["value"], found.tuning["validation loss"]
    panels = [figures.Panel("value, points", value, 100.0)]
    panels += [figures.Panel("validation loss, nats a token", loss, logarithmic=True)] if loss else []
    note = f"Each point: {_MEANS}, with the standard error over tasks.{_gaps(*value, *loss)}"
    yield Figure(title, figures.curves(panels, RATE, title, None), note, "tuning")
    if found.tuned:
        note = (
            "For every task and seed the rate with the lowest validation loss; test values and losses. "
            "Difference: to plain LoRA of the same rank, tuned in the same way. At an end: the lowest or "
            "highest rate tried was chosen, so that a better one may lie outside. A training that failed is "
            "never chosen."
        )
        yield _tuned("With the learning rate tuned", found.tuned, note)
    if found.fixed:
        note = (
            "All at the one rate with the lowest mean validation loss of plain LoRA of the same rank. "
            "Difference: to plain LoRA of the same rank at that rate."
        )
        yield _tuned("At one learning rate", found.fixed, note)


def _tuned(title: str, rows: Sequence[Tuned], note: str) -> Table:
    """A row for each variant and rank; what was chosen, where more than one rate was tried."""
    one_rate = all(len(row.rates) < 2 for row in rows) and not any(row.edges for row in rows)
    shown = []
    for row in rows:
        numbers = mean(row.value), interval(row.difference), record(row.difference), nats(row.loss)
        if one_rate:
            rates = [listed([rate(one) for one in row.rates]) or NOTHING]
        else:
            chosen = ", ".join(f"{rate(one)} × {times}" for one, times in row.rates.items())
            rates = [chosen or NOTHING, f"{row.edges} of {sum(row.rates.values())}"]
        shown.append((row.label, *numbers, *rates, str(row.failed)))
    told = ("rate",) if one_rate else ("rates chosen", "at an end")
    columns = ("method", _MEAN, _DIFFERENCE, "win/tie/loss", "loss", *told, "failed")
    return Table(title, columns, tuple(shown), note)


def _curve(key: str, lines: Sequence[Line], against: str | None, level: float | None) -> Figure:
    title = f"Value by {key.replace('_', ' ')}"
    drawn = figures.curves([figures.Panel("value, points", lines, 100.0)], key, title, level)
    note = f"Each point: {_MEANS}, with the standard error over tasks.{_gaps(*lines)}"
    if against and level is not None:
        note += f" Dashed: {against}."
    return Figure(title, drawn, note, f"curve-{key}")


def _energy(key: str, lines: Sequence[Line]) -> Figure:
    title = f"Energy kept by {key.replace('_', ' ')}"
    note = (
        "The share of the squared norm that a truncated merge kept, or that LoRA-LEGO's centroids hold of "
        f"the squared lengths of all units, {_MEANS}.{_gaps(*lines)}"
    )
    drawn = figures.curves([figures.Panel("energy kept, %", lines, 100.0)], key, title, None)
    return Figure(title, drawn, note, f"energy-{key}")


def _wild(wild: Wild, lines: Sequence[Line]) -> Figure:
    title = "Learning rates and ranks in the wild"
    note = [f"From {wild.source}: {counted(wild.cards, 'adapter')}."]
    if wild.rates:
        note.append(f"{counted(len(wild.rates), 'learning rate')}, median {rate(median(wild.rates))}.")
    if wild.ranks:
        note.append(f"{counted(len(wild.ranks), 'rank')}, median {median(wild.ranks):g}.")
    if wild.left_out:
        note.append(f"Left out: {counted(wild.left_out, 'rate')} outside {rate(SANE[0])} to {rate(SANE[1])}.")
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
    return note + (f" Left out, since no task is complete there: {listed(gaps)}." if gaps else "")
