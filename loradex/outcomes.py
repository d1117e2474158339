"""Scores by single items: which adapters answered which right, paired tests, and a leaderboard."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from catalog.errors import NotFoundError, UsageError
from catalog.extras import require_extra
from catalog.scores import (
    BASE,
    HASH_BYTES,
    OTHER_METRICS,
    ItemChoice,
    Outcomes,
    PairedTest,
    Score,
    choose_items,
    holm,
    list_sha,
    metric_of,
    paired_test,
    unpack_bitmap,
    unpack_margins,
    wilson_interval,
)
from loradex.rows import ItemRow, LeaderboardRow, OutcomeRow, PairedTestRow, PlacementRow

Bools = NDArray[np.bool_]

# The level of the tests of a leaderboard.
LEVEL = 0.05
_STATISTICS = "A paired test"


def outcome_rows(scores: Iterable[Score]) -> Iterator[OutcomeRow]:
    """The scores with outcomes, with these as a text of 1 and 0."""
    for score, outcomes in _with_outcomes(scores):
        right = _right(score, outcomes)
        yield OutcomeRow(
            adapter=score.subject,
            task=score.task,
            split=score.split,
            metric=score.metric,
            protocol=score.protocol,
            source=score.source,
            value=score.value,
            n=len(right),
            items_sha=outcomes.items_sha,
            outcomes="".join("1" if answer else "0" for answer in right),
            margins=unpack_margins(outcomes.margins, len(right)).tolist() if outcomes.margins else None,
        )


def item_rows(scores: Iterable[Score]) -> Iterator[ItemRow]:
    """The items of every list with the adapters that answered them right and wrong, in the list's order."""
    lists: dict[tuple[str, ...], list[tuple[Score, Outcomes]]] = defaultdict(list)
    for score, outcomes in _with_outcomes(scores):
        lists[score.task, *_kind(score)].append((score, outcomes))
    for (task, split, metric, protocol, sha), entries in sorted(lists.items(), key=lambda item: item[0]):
        answers = [(score.subject, _right(score, outcomes)) for score, outcomes in entries]
        hashes = entries[0][1].hashes
        for at in range(len(answers[0][1])):
            right = tuple(subject for subject, bits in answers if bits[at])
            yield ItemRow(
                task=task,
                split=split,
                metric=metric,
                protocol=protocol,
                items_sha=sha,
                position=at + 1,
                item=hashes[at * HASH_BYTES : (at + 1) * HASH_BYTES].hex() or None,
                right=len(right),
                n=len(answers),
                right_adapters=right,
                wrong_adapters=tuple(subject for subject, bits in answers if not bits[at]),
            )


@dataclass(frozen=True, slots=True, eq=False)
class FewItems:
    """The items of a task that tell most: their hashes in the order of choice, and the regression on them.

    `items_sha` identifies the list of the catalog that they are from, `adapters` counts who answered it.
    """

    hashes: tuple[bytes, ...]
    choice: ItemChoice
    items_sha: str
    adapters: int

    def place(self, adapter: str, task: str, split: str, metric: str, right: Bools) -> PlacementRow:
        """The score of an adapter on all items of the list, from the answers (k,) to these."""
        return PlacementRow(
            adapter=adapter,
            task=task,
            split=split,
            metric=metric,
            asked=len(right),
            right=int(right.sum()),
            predicted=float(self.choice.predict(right[None])[0]),
            error=self.choice.error,
            n=self.choice.items,
            adapters=self.adapters,
            items_sha=self.items_sha,
        )


def few_items(scores: Iterable[Score], task: str, count: int, asked: Collection[str] = ()) -> FewItems:
    """The `count` items of a task that tell most about the score, by the answers of the adapters with scores.

    Those of the adapters `asked`, by name, take no part: their scores are what is predicted. Raises
    UsageError if fewer than 10 adapters answered the same list of items, or the list is too short, and
    NotFoundError if none did.
    """
    table = answer_table(scores, task, asked)
    try:
        choice = choose_items(table.right, count)
    except UsageError as error:
        raise UsageError(f"{task}: {error}") from error
    hashes = tuple(table.hashes[place] for place in choice.places)
    return FewItems(hashes, choice, list_sha(b"".join(table.hashes)), len(table.adapters))


@dataclass(frozen=True, slots=True, eq=False)
class AnswerTable:
    """The outcomes of adapters that answered one list of items: `right` has the shape (adapters, items)."""

    adapters: tuple[str, ...]
    hashes: tuple[bytes, ...]
    right: Bools


def answer_table(scores: Iterable[Score], task: str, asked: Collection[str] = ()) -> AnswerTable:
    """The list of items with known hashes that most adapters answered, and their answers, by name.

    Of an adapter with answers of several sources those of the source that most adapters have, of equals the
    first by name: never the better ones. The base model alone and the adapters `asked` are not among them.
    Raises NotFoundError if no adapter has outcomes.
    """
    lists: dict[tuple[str, ...], dict[str, dict[str, Bools]]] = defaultdict(lambda: defaultdict(dict))
    hashes: dict[tuple[str, ...], bytes] = {}
    for score, outcomes in _with_outcomes(scores):
        if outcomes.hashes and score.subject not in (BASE, *asked):
            kind = _kind(score)
            hashes[kind] = outcomes.hashes
            lists[kind][score.source][score.subject] = _right(score, outcomes)
    if not lists:
        beside = " beside those that are asked" if asked else ""
        raise NotFoundError(
            f"The catalog has no answers of adapters{beside} to the items of {task}; import the scores.json "
            "of an evaluation of several adapters on it."
        )
    answers = {kind: _join_sources(sources) for kind, sources in lists.items()}
    kind = max(answers, key=lambda kind: (len(answers[kind]), kind))
    adapters = tuple(sorted(answers[kind]))
    return AnswerTable(
        adapters,
        tuple(hashes[kind][at : at + HASH_BYTES] for at in range(0, len(hashes[kind]), HASH_BYTES)),
        np.array([answers[kind][name] for name in adapters]),
    )


def _join_sources(sources: Mapping[str, Mapping[str, Bools]]) -> dict[str, Bools]:
    """The answers of each adapter by the largest source that has some."""
    answers: dict[str, Bools] = {}
    for source in sorted(sources, key=lambda source: (-len(sources[source]), source)):
        answers = {**sources[source], **answers}
    return answers


def paired_rows(scores: Sequence[Score], first: str, second: str, task: str) -> list[PairedTestRow]:
    """The paired tests of two adapters, one for each list of items that both answered.

    Where one source measured both, only pairs of one source are compared. Raises NotFoundError without one.
    """
    require_extra("study", _STATISTICS)
    mine, other = ([row for row in scores if row.subject == name] for name in (first, second))
    pairs = [(score, two, test) for score in mine for two in other if (test := _test(score, two))]
    if not pairs:
        raise _incomparable(scores, first, second, task)
    same_source = [(score, two, test) for score, two, test in pairs if score.source == two.source]
    return [
        PairedTestRow(
            first=first,
            second=second,
            task=task,
            split=score.split,
            metric=score.metric,
            protocol=score.protocol,
            first_source=score.source,
            second_source=two.source,
            **asdict(test),
        )
        for score, two, test in same_source or pairs
    ]


def leaderboard_rows(scores: Sequence[Score], task: str) -> list[LeaderboardRow]:
    """The adapters on a task, best first, each compared with the first where both answered the same items.

    Raises NotFoundError without scores, and UsageError for scores that cannot be compared with each other.
    """
    require_extra("study", _STATISTICS)
    shares = [score for score in scores if score.metric not in OTHER_METRICS]
    if not shares:
        raise NotFoundError(f"No scores found for the task {task}; give a task that has scores.")
    kinds = sorted({(score.split, score.metric, score.protocol) for score in shares})
    if len(kinds) > 1:
        listed = "; ".join(", ".join(filter(None, kind)) for kind in kinds)
        raise UsageError(
            f"{task} has scores that are not comparable ({listed}); choose by `split`, `metric`, `protocol`."
        )
    ordered = sorted(shares, key=lambda score: (-score.value, score.subject, score.source))
    tests = [_test(score, ordered[0]) if score is not ordered[0] else None for score in ordered]
    adjusted = iter(holm([test.p for test in tests if test]))
    return [
        _leaderboard_row(place, score, test, next(adjusted) if test else None)
        for place, (score, test) in enumerate(zip(ordered, tests, strict=True), 1)
    ]


def _leaderboard_row(
    place: int, score: Score, test: PairedTest | None, p_holm: float | None
) -> LeaderboardRow:
    # A metric of all items together is no share of them.
    counted = score.n and not metric_of(score.metric).whole
    low, high = wilson_interval(score.value, score.n) if counted and score.n else (None, None)
    return LeaderboardRow(
        place=place,
        adapter=score.subject,
        value=score.value,
        low=low,
        high=high,
        n=score.n,
        source=score.source,
        difference=test.difference if test else None,
        p=test.p if test else None,
        p_holm=p_holm,
        differs=None if p_holm is None else p_holm <= LEVEL,
    )


def _with_outcomes(scores: Iterable[Score]) -> list[tuple[Score, Outcomes]]:
    return [(score, score.outcomes) for score in scores if score.outcomes is not None]


def _right(score: Score, outcomes: Outcomes) -> Bools:
    return unpack_bitmap(outcomes.bitmap, score.n or 0)


def _test(first: Score, second: Score) -> PairedTest | None:
    """The paired test of two scores; None where they are not of the same items, or this is not known."""
    if first.outcomes is None or second.outcomes is None or _kind(first) != _kind(second):
        return None
    return paired_test(_right(first, first.outcomes), _right(second, second.outcomes))


def _kind(score: Score) -> tuple[str, ...]:
    """What two scores must share to be compared item by item."""
    sha = score.outcomes.items_sha if score.outcomes else ""
    return score.split, score.metric, score.protocol, sha


def _incomparable(scores: Sequence[Score], first: str, second: str, task: str) -> NotFoundError:
    """Why there is no paired test."""
    for name in (first, second):
        own = [score for score in scores if score.subject == name]
        if not own:
            return NotFoundError(f"No score of {name} on {task} found; import one, or correct the name.")
        if not _with_outcomes(own):
            return NotFoundError(
                f"The scores of {name} on {task} do not say which items were answered right; evaluate it "
                "again and import its scores.json."
            )
    return NotFoundError(
        f"{first} and {second} have no scores on the same items of {task} by the same metric and protocol; "
        "evaluate both with the same split, limit and seed."
    )
