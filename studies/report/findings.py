"""Everything that a report shows of a grid's results, as numbers; `Findings.summary` is summary.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, median
from typing import Any

from studies.report.comparing import (
    RATE,
    Correlation,
    CurvatureSlopes,
    Difference,
    Line,
    Related,
    ResultCell,
    Results,
    TuningRow,
    at_one_rate,
    correlation,
    extent,
    finite,
    lines,
    relate,
    relate_curvature,
    tune_by_loss,
    varying_settings,
)
from studies.report.judging import Compared, Judgement, judge_claims
from studies.report.wording import sentence, slope_sentence, slope_word

# Learning rates that someone may have trained with; cards say others too.
SANE = (1e-8, 10.0)


@dataclass(frozen=True)
class ClaimFinding:
    """A claim with the difference that speaks for or against it, and what that allows to say.

    `verdict` is the word, `mark` whether the claim is confirmed, contradicted or open, against what it
    `expects`; `holm_p` is the p-value adjusted over the claims of the study, `left_out` the range of the mean
    difference with any one task left out, and without a task of `rests_on` the word does not stand. Of a
    slope the difference is that of the slope to zero.
    """

    claim: str
    compare: str
    against: str
    margin: float
    verdict: str
    sentence: str
    difference: Difference | None
    expects: str | None = None
    mark: str = "open"
    holm_p: float | None = None
    left_out: tuple[float, float] | None = None
    rests_on: tuple[str, ...] = ()
    is_slope: bool = False


@dataclass(frozen=True)
class Spot:
    """A label on a task: the mean over the seeds that are done, and how many are done, failed and missing.

    Of a study of sets it is one on a set, of which tasks are done.
    """

    value: float | None
    done: int
    failed: int
    missing: int


@dataclass(frozen=True)
class FailureFinding:
    """Cells of a label that failed for the same reason, as the seeds of each task."""

    label: str
    cells: dict[str, list[int]]
    error: str


@dataclass(frozen=True)
class Wild:
    """What model cards and configurations say, and from how many; `left_out` rates make no sense."""

    source: str
    cards: int
    rates: tuple[float, ...]
    ranks: tuple[float, ...]
    left_out: int


class Findings:
    """What the results of one study say; `study` is study.json, `cells` are the rows of results.jsonl.

    In a study of sets of adapters (`sets`) a set stands in the place of a task in `results`, and the tasks
    that judge it in that of seeds, so that the mean over its tasks is taken first; `grid` has tasks and
    seeds as they are.
    """

    def __init__(self, study: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> None:
        self.study = study
        self.record: Mapping[str, Any] = study.get("study") or {}
        self.sets = bool(self.record.get("sets"))
        self.grid = self.results = Results(cells)
        if self.sets:
            self.results = Results(*_by_set(cells))
        report = self.record.get("report") or {}
        self.asked = tuple(report.get("figures") or ())
        against = report.get("against")
        self.against: str | None = against if against in self.results.labels else None
        rows = (self.results.row(label, self.against) for label in self.results.labels)
        # A set has one seed.
        self.rows = tuple(replace(row, seeds=1) if self.sets else row for row in rows)
        self.related: tuple[Related, ...] = ()
        if "relevance" in self.asked and self.against:
            self.related = relate(self.results, self.against)
        self.correlation: Correlation | None = correlation(self.related)
        self.wild = self._wild() if "wild" in self.asked else None
        self._tune()
        methods = self.record.get("methods") or {}
        self.slopes: CurvatureSlopes | None = None
        if "curvature" in self.asked:
            self.slopes = relate_curvature(self.results, methods)
        self.claims = self._judge(report.get("claims") or ())
        keys = varying_settings(self.results)
        self.curves = {key: self.lines(key) for key in keys} if "curve" in self.asked else {}
        at = ("k",) if "k" in keys else keys
        energy = {key: lines(self.results.cells, key, lambda claim: claim.known("energy")) for key in at}
        self.energy = {
            key: energy_lines
            for key, energy_lines in energy.items()
            if energy_lines and "energy" in self.asked
        }

    @property
    def unit(self) -> str:
        """What counts once: a task, or a set of adapters."""
        return "set" if self.sets else "task"

    @property
    def part(self) -> str:
        """What is averaged within it first."""
        return "task" if self.sets else "seed"

    def lines(self, key: str) -> tuple[Line, ...]:
        """Lines of the value against a setting."""
        return lines(self.results.cells, key, lambda cell: cell.value)

    def spot(self, label: str, task: str) -> Spot | None:
        """What is known of a label on a task; None where the grid has no such cell."""
        cells = self.results.at(label, task)
        values = [cell.value for cell in cells if cell.value is not None]
        states = [cell.status for cell in cells]
        counts = (states.count(state) for state in ("done", "failed", "missing"))
        return Spot(fmean(values) if values else None, *counts) if cells else None

    @property
    def failures(self) -> tuple[FailureFinding, ...]:
        """Why cells failed, in the order of the grid."""
        counts: dict[tuple[str, str], dict[str, list[int]]] = {}
        for cell in (cell for label in self.grid.labels for cell in self.grid.of(label)):
            if cell.status == "failed":
                reason = cell.label, cell.error or "No reason is on record."
                counts.setdefault(reason, {}).setdefault(cell.task, []).append(cell.seed)
        return tuple(FailureFinding(label, cells, error) for (label, error), cells in counts.items())

    def count(self, status: str) -> int:
        """How many cells are done, failed or missing."""
        return sum(cell.status == status for cell in self.results.cells)

    def summary(self) -> dict[str, Any]:
        """Every number that the report shows, as plain JSON; values are shares of 0 to 1, losses in nats."""
        spots = {
            task: {label: asdict(spot) for label in self.results.labels if (spot := self.spot(label, task))}
            for task in self.results.tasks
        }
        return {
            "name": self.record.get("name") or self.record.get("study"),
            "title": self.record.get("title"),
            "question": self.record.get("question"),
            "against": self.against,
            "claims": [asdict(claim) for claim in self.claims],
            "rows": [asdict(claim) for claim in self.rows],
            "tasks": spots,
            "examples": dict(self.grid.examples),
            "failures": [asdict(claim) for claim in self.failures],
            "cells": {status: self.count(status) for status in ("done", "failed", "missing")},
            "relevance": {
                "points": [asdict(claim) for claim in self.related],
                "spearman": asdict(self.correlation) if self.correlation else None,
            },
            "tuning": {name: [asdict(line) for line in lines] for name, lines in self.tuning.items()},
            "tuned": [_tuning_document(claim) for claim in self.tuned],
            "at one rate": [_tuning_document(claim) for claim in self.fixed],
            "extent": {
                "tuned": asdict(over) if (over := extent(self.tuned)) else None,
                "at one rate": asdict(over) if (over := extent(self.fixed)) else None,
            },
            **({"curvature": asdict(self.slopes)} if self.slopes else {}),
            "curves": {key: [asdict(line) for line in lines] for key, lines in self.curves.items()},
            "energy": {key: [asdict(line) for line in lines] for key, lines in self.energy.items()},
            "wild": _plain_wild(self.wild),
            "run": {key: value for key, value in self.study.items() if key not in ("study", "wild")},
        }

    def _judge(self, claims: Sequence[Mapping[str, Any]]) -> tuple[ClaimFinding, ...]:
        """The claims of the study, and the one that a study of curvature is for, as one family."""
        compared = [
            Compared(
                self.results.compare(str(claim["compare"]), str(claim["with"])),
                float(claim.get("margin", 0.02)),
                claim.get("expects"),
            )
            for claim in claims
        ]
        slopes = [Compared(self.slopes.slope, 0.0, "worse")] if self.slopes else []
        judgements = judge_claims([*compared, *slopes])
        pairs = zip(claims, compared, judgements[: len(claims)], strict=True)
        findings = [_claim_finding(*pair, self.unit) for pair in pairs]
        findings += [_slope_finding(slope, judgements[-1], self.unit) for slope in slopes]
        return tuple(findings)

    def _tune(self) -> None:
        methods = self.record.get("methods") or {}
        cells: list[ResultCell] = [cell for cell in self.results.cells if finite(cell.settings.get(RATE))]
        requested = bool({"tuning", "wild"} & set(self.asked)) and bool(cells)
        self.tuning: dict[str, tuple[Line, ...]] = {}
        if requested:
            loss = lines(cells, RATE, lambda cell: cell.known("valid_loss"))
            self.tuning = {"value": lines(cells, RATE, lambda cell: cell.value), "validation loss": loss}
        with_curves = requested and "tuning" in self.asked
        self.tuned: tuple[TuningRow, ...] = tune_by_loss(self.results, methods) if with_curves else ()
        self.fixed: tuple[TuningRow, ...] = at_one_rate(self.results, methods) if with_curves else ()

    def _wild(self) -> Wild | None:
        wild = self.study.get("wild")
        if not wild:
            return None
        numbers = {
            key: [number for value in wild.get(key) or () if (number := finite(value)) is not None]
            for key in (RATE, "rank")
        }
        rates = tuple(sorted(value for value in numbers[RATE] if SANE[0] <= value <= SANE[1]))
        ranks = tuple(sorted(value for value in numbers["rank"] if value > 0))
        left_out = len(numbers[RATE]) - len(rates)
        if not rates and not ranks:
            return None
        return Wild(
            str(wild.get("from") or "model cards"), int(wild.get("cards") or 0), rates, ranks, left_out
        )


def _by_set(cells: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Cells with their set in the place of the task and the number of the task in that of the seed, and over
    how many tasks the value of a set is a mean."""
    places = {task: number for number, task in enumerate(dict.fromkeys(str(row["task"]) for row in cells))}
    rows = [{**row, "task": f"set {row['seed']}", "seed": places[str(row["task"])]} for row in cells]
    parts: dict[str, int] = {}
    for (name, _), count in Counter((cell.task, cell.label) for cell in Results(rows).cells).items():
        parts[name] = max(parts.get(name, 0), count)
    return rows, parts


def _claim_finding(
    claim: Mapping[str, Any], compared: Compared, judgement: Judgement, unit: str
) -> ClaimFinding:
    a, b = str(claim["compare"]), str(claim["with"])
    return ClaimFinding(
        claim=str(claim["claim"]),
        compare=a,
        against=b,
        margin=compared.margin,
        verdict=judgement.word,
        sentence=sentence(judgement, a, b, compared, unit),
        difference=compared.difference,
        expects=compared.expects,
        mark=judgement.mark,
        holm_p=judgement.holm_p,
        left_out=judgement.left_out,
        rests_on=judgement.rests_on,
    )


def _slope_finding(compared: Compared, judgement: Judgement, unit: str) -> ClaimFinding:
    """The claim of "Learning Rate Matters" on rates and curvature (arXiv 2602.04998)."""
    word = slope_word(judgement.word)
    return ClaimFinding(
        claim="The best rate falls with the curvature",
        compare="log best rate",
        against="log curvature",
        margin=compared.margin,
        verdict=word,
        sentence=slope_sentence(judgement, word, compared.difference, unit),
        difference=compared.difference,
        expects="falls",
        mark=judgement.mark,
        holm_p=judgement.holm_p,
        left_out=judgement.left_out,
        rests_on=judgement.rests_on,
        is_slope=True,
    )


def _tuning_document(row: TuningRow) -> dict[str, Any]:
    return {**asdict(row), "rates": [{"rate": rate, "times": times} for rate, times in row.rates.items()]}


def _plain_wild(wild: Wild | None) -> dict[str, Any] | None:
    if wild is None:
        return None
    return {
        "from": wild.source,
        "cards": wild.cards,
        "learning_rate": list(wild.rates),
        "rank": list(wild.ranks),
        "left_out": wild.left_out,
        "median": {
            "learning_rate": median(wild.rates) if wild.rates else None,
            "rank": median(wild.ranks) if wild.ranks else None,
        },
    }
