"""Selecting a pool: a question, a ranking of the candidates, limits, the manifest, and its controls.

Deterministic given catalog, question and seed. Writes no rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from catalog.adapters import Engine, bases
from catalog.errors import NotFoundError, UsageError
from catalog.fingerprints import RepresentativesOnDemand, families, representatives
from catalog.pools import Manifest, check_name
from catalog.query import parse, to_text
from catalog.search import likeness
from catalog.selection.limits import (
    PoolLimits,
    Ranked,
    left_out_in_words,
    let_in,
    match_recipes,
    random_order,
    shuffle_scores,
    take_members,
)
from catalog.selection.pinning import Candidates, candidates, left_out, pin_members, stored_adapters
from catalog.selection.strategies import PARAMETERS, STRATEGIES, Question, Sources, Strategy

# How many more of a ranking are worked out than are asked for, and how many times more if these are too few.
_HEAD = 8
# Random controls for the members, which are made from their files when merging.
STAND_INS: tuple[str, ...] = (
    "random-pooled",
    "random-each",
    "random-directions",
    "shuffled-layers",
    "permuted-ranks",
)


@dataclass(frozen=True)
class Selection:
    """The pool and its control pools, by name.

    `left_out` gives the number of adapters of the base model that are not in it, and why, if all were
    requested; else that of the candidates which their license or name kept out.
    """

    pool: Manifest
    controls: tuple[Manifest, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)


def select(question: Question, sources: Sources, *, controls: bool = False) -> Selection:
    """The pool that answers the question, with its controls if requested.

    Raises UsageError and NotFoundError for a question that cannot be answered.
    """
    strategy = _check_question(question)
    where = parse(question.where, engines=sources.engines) if question.where else None
    found = candidates(sources.session, sources.refusing, question.base, where, question.without)
    named = found.named(question.adapters).values()
    named_base = likeness.usual_base(Counter(row.base for row in named)) if named else found.base
    base = named_base if question.base is None else question.base
    of_base = found.of_base(base)
    not_excluded = of_base.without(question.exclude)
    usable = not_excluded.usable_for(question.use)
    kept_out = {
        "excluded by name": len(of_base) - len(not_excluded),
        f"with a license that forbids {question.use}": len(not_excluded) - len(usable),
    }

    def left_out_before(ranked: int | None) -> dict[str, int]:
        """The counts of those that were left out before the limits, or before the ranking."""
        counts = left_out(sources.session, sources.refusing, base, where, question.without) | kept_out
        unranked = {} if ranked is None else {f"that cannot be ranked by {question.by}": len(usable) - ranked}
        return counts | unranked

    if not usable.groups:
        before = left_out_before(None)
        reasons = left_out_in_words(before)
        reasons = f" (of {sum(before.values()):,}: {reasons})" if reasons else ""
        raise NotFoundError(
            f"No adapter satisfies the filter, the rules and the use{reasons}; relax them or crawl more."
        )
    limits = _limits(question, usable, sources)
    ranking = _rank_as_needed(strategy, question, usable, sources, limits, whole=controls)
    members, beyond = let_in(ranking, limits)
    if len(members) < (question.count or 1):
        take_members(ranking, limits, left_out_before(len(ranking)))
    everybody = left_out_before(len(ranking)) | beyond if question.count is None else kept_out
    pool = _manifest(question, members, strategy, sources)
    if not controls:
        return Selection(pool, (), everybody)
    alike = replace(limits, count=len(members))
    control_pools = _controls(question, ranking, members, usable, alike, sources)
    named_ = [
        {"kind": kind, "pool": other.name, "digest": other.digest} for kind, other in control_pools.items()
    ]
    stand_ins = [{"kind": kind, "seed": question.seed} for kind in STAND_INS]
    pool = replace(pool, controls=(*named_, *stand_ins))
    return Selection(pool, tuple(control_pools.values()), everybody)


def _rank_as_needed(
    strategy: Strategy,
    question: Question,
    candidates: Candidates,
    sources: Sources,
    limits: PoolLimits,
    *,
    whole: bool,
) -> list[Ranked]:
    """The ranking, or as much of its head as the limits need where the strategy can begin with that."""
    if strategy.head is None or question.count is None or whole:
        return strategy.rank(question, candidates, sources)
    size = _HEAD * question.count
    while size < len(candidates):
        head = strategy.head(question, candidates, sources, size)
        if len(let_in(head, limits)[0]) == question.count:
            return head
        size *= _HEAD
    return strategy.rank(question, candidates, sources)


def _check_question(question: Question) -> Strategy:
    check_name(question.name)
    if question.by not in STRATEGIES:
        raise UsageError(f"{question.by!r} is not a strategy; use one of {', '.join(STRATEGIES)}.")
    strategy = STRATEGIES[question.by]
    for need in strategy.needs:
        if not getattr(question, need):
            raise UsageError(f"Selecting by {question.by} requires `{PARAMETERS[need]}`.")
    return strategy


def _limits(question: Question, candidates: Candidates, sources: Sources) -> PoolLimits:
    """The limits of a question, with the groups and families that it requires."""
    groups: Mapping[str, str] | None = None
    members = None
    if question.distinct == "delta":
        copies = likeness.candidate_copies(sources.session, candidates.rows)
        groups = RepresentativesOnDemand(
            copies,
            likeness.exact_delta(sources.session, copies, sources.blobs),
            deltas=likeness.read_deltas(sources.session),
            kept={blob.sha256 for blob in sources.blobs.blobs()},
        )
    elif question.distinct:
        groups = representatives(
            likeness.candidate_copies(sources.session, candidates.rows), question.distinct
        )
    if question.per_family:
        # A series may extend beyond the filter.
        measured_rows = list(likeness.measured_copies(sources.session, sources.refusing, candidates.base))
        family_list = families(measured_rows, deltas=likeness.read_deltas(sources.session))
        members = {name: family.name for family in family_list for name in family.members}
    return PoolLimits(
        question.count, question.per_owner, question.per_family, question.parameters, groups, members
    )


def _manifest(
    question: Question, members: Sequence[Ranked], strategy: Strategy | None, sources: Sources
) -> Manifest:
    """The manifest of these members; a strategy may say only now why each is one."""
    if strategy is not None and strategy.explain is not None:
        members = strategy.explain(question, members, sources)
    base = members[0].candidate.base
    return Manifest(
        name=question.name,
        base=base,
        members=tuple(pin_members(sources.session, members)),
        chosen=question_document(question, sources.engines),
        base_license=bases.license_of_base(base) if base else None,
        use=question.use,
    )


def question_document(question: Question, engines: Sequence[Engine] | None = None) -> dict[str, Any]:
    """The question as it stands in the manifest: every option that was set."""
    options: Mapping[str, Any] = {
        name: value for name, value in vars(question).items() if name not in ("name", "use")
    }
    answer = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    answer["count"] = "all" if question.count is None else question.count
    answer["where"] = to_text(parse(question.where, engines=engines)) if question.where else ""
    if question.by not in ("adapter", "gradient"):
        answer.pop("kind")
    if not question.exact:
        answer.pop("exact")
    return {name: value for name, value in answer.items() if value not in (None, "", [])}


def _controls(
    question: Question,
    ranking: Sequence[Ranked],
    members: Sequence[Ranked],
    candidates: Candidates,
    limits: PoolLimits,
    sources: Sources,
) -> dict[str, Manifest]:
    """The control pools of a selection: random ones, matched recipes, and shuffled scores."""
    pool = stored_adapters(sources.session, [row.candidate for row in members])
    rankings = {
        **(
            {"blind": STRATEGIES["prior"].rank(question, candidates, sources)}
            if question.by == "score"
            else {}
        ),
        "random": random_order(candidates.rows, question.seed + 1),
        "matched": match_recipes(stored_adapters(sources.session, candidates.rows), pool, question.seed),
        "shuffled": shuffle_scores(ranking, question.seed),
    }
    pools = {}
    for kind, other in rankings.items():
        loose = replace(limits, per_owner=None, parameters=None) if kind == "matched" else limits
        asked_for = replace(question, name=f"{question.name}-{kind}", by=question.by)
        manifest = _manifest(asked_for, take_members(other, loose), None, sources)
        pools[kind] = replace(
            manifest,
            chosen={**question_document(asked_for, sources.engines), "control": kind, "of": question.name},
        )
    return pools
