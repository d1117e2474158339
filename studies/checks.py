"""Validation of the names in a study: its pools, methods, labels, and the settings of its grids."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ValidationError

from catalog.errors import UsageError
from merging.learning import find_adaptive
from merging.methods import find_method, nearest
from studies.design import (
    Adapt,
    Merge,
    Method,
    Pooled,
    Study,
    Train,
    all_labels,
    points,
    pools_of,
    seeds_of,
    settle_method,
)


class WrongError(ValueError):
    """An error and its place in the study: keys and numbers from the top."""

    def __init__(self, place: Sequence[str | int], what: str) -> None:
        super().__init__(what.rstrip("."))
        self.place = place


def check(study: Study) -> None:
    """Raises WrongError for an unknown name and for invalid settings."""
    for name, pool in study.pools.items():
        _check_seeds(study, ("pools", name, "seeds"), pool.seeds)
    for name, method in study.methods.items():
        _check_names(study, name, method)
        _check_settings(name, method)
    labels = list(dict.fromkeys(all_labels(study)))
    for number, claim in enumerate(study.report.claims):
        for key, label_list in (("compare", claim.compare), ("with", claim.against)):
            if label_list not in labels:
                raise WrongError(("report", "claims", number, key), _unknown(label_list, labels))
    against = study.report.against
    if against is not None and against not in labels:
        raise WrongError(("report", "against"), _unknown(against, labels))


def _check_names(study: Study, name: str, method: Method) -> None:
    if isinstance(method, Pooled):
        _check_pools(study, name, method)
    for task in method.tasks or ():
        if study.tasks.names != "all" and task not in study.tasks.names:
            raise WrongError(("methods", name, "tasks"), f"the study has no task {task!r}")
    _check_seeds(study, ("methods", name, "seeds"), method.seeds)
    try:
        if isinstance(method, Merge):
            find_method(method.method)
        elif isinstance(method, Adapt):
            _check_target(study, name, method)
    except UsageError as error:
        raise WrongError(("methods", name, "method"), str(error)) from error
    pools = pools_of(study, method)
    if not pools:
        raise WrongError(("methods", name), f"{name} needs a pool; describe one by pools, and name it")
    for pool in pools:
        if not seeds_of(study, method, pool):
            raise WrongError(("methods", name, "seeds"), f"{name} and the pool {pool} have no seed in common")


def _check_seeds(study: Study, place: Sequence[str | int], seeds: Sequence[int] | None) -> None:
    for seed in seeds or ():
        if seed not in study.seeds:
            raise WrongError(place, f"the study has no seed {seed}; add it to the study's seeds")


def _check_pools(study: Study, name: str, method: Pooled) -> None:
    if not study.pools and not (isinstance(method, Adapt) and method.target):
        raise WrongError(
            ("methods", name), f"{name} needs a pool, and the study has none; describe some, by pools"
        )
    if study.pools and study.adapters is None:
        raise WrongError(("pools",), "pools are selected from adapters; give their folder by adapters")
    for pool in method.pools or ():
        if pool not in study.pools:
            raise WrongError(("methods", name, "pools"), _unknown(pool, list(study.pools)))


def _check_target(study: Study, name: str, method: Adapt) -> None:
    alone = find_adaptive(method.method).alone
    if alone and method.target is None:
        raise WrongError(("methods", name), f"{method.method} requires a new LoRA alone; name it by with")
    if method.target is None:
        return
    target = study.methods.get(method.target)
    if not isinstance(target, Train):
        trained = ", ".join(
            method_name for method_name, other in study.methods.items() if isinstance(other, Train)
        )
        raise WrongError(
            ("methods", name, "with"), f"with must name a method that trains; there is {trained or 'none'}"
        )
    if target.over:
        raise WrongError(
            ("methods", name, "with"), f"{method.target} has several settings (over); name a method with one"
        )


def _check_settings(name: str, method: Method) -> None:
    for point in points(method.over):
        try:
            settle_method(method, point)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = str(first["loc"][0]) if first["loc"] else ""
            place = ("methods", name, "over", key) if key in method.over else ("methods", name)
            raise WrongError(place, f"{key} of {name}: {first['msg']}") from error
        except UsageError as error:
            key = "over" if method.over else "parameters"
            raise WrongError(("methods", name, key), str(error)) from error


def _unknown(name: str, names: Sequence[str]) -> str:
    return f"{name!r} is unknown; {nearest(name, names)}"
