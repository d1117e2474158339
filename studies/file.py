"""A study's YAML file, read: within the bounds of `catalog.files.strictyaml`, names given twice refused, its
pools, methods, labels and settings checked, and everything that is wrong said with the line it stands in.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from catalog.errors import NotFoundError, UsageError
from catalog.files import UNSTORABLE, YamlError, read_limited, read_yaml
from merging.learning import VARIANTS, find_adaptive
from merging.methods import find_method, nearest
from studies.design import (
    KINDS_OF_METHOD,
    Adapt,
    Adapters,
    Merge,
    Method,
    Pooled,
    Report,
    Sets,
    Study,
    StudyClaim,
    StudyPart,
    StudyPool,
    Tasks,
    Train,
    Value,
    all_labels,
    judgements,
    label,
    points,
    pools_of,
    seeds_of,
    settle_method,
    use_of,
)
from studies.record import PUBLISHED

_MOST_BYTES = 1024 * 1024
# Rows of a grid, times seeds.
_MOST_CELLS = 100_000
_LONGEST = 60
_TYPE = re.compile(r"(tuple|literal|constrained-\w+|function-\w+)(\[.*\])?")


@dataclass(frozen=True)
class StudyFile:
    """A study with the folder that its paths are relative to, and the sha256 of the file."""

    study: Study
    folder: Path
    sha256: str


def read_study(name: str) -> StudyFile:
    """The study in the file `name`, or the one of that name that comes with the program.

    Raises NotFoundError if there is none, and UsageError, with the line, for an invalid study.
    """
    path = _find_file(name)
    advice = "give a YAML file"
    data = read_limited(path, _MOST_BYTES, kind="a study", advice=advice, error=UsageError)
    try:
        text = data.decode().replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path} line {line} is not YAML: it is not UTF-8.") from error
    return StudyFile(_Reading(path, text).study(), path.parent, hashlib.sha256(text.encode()).hexdigest())


def built_in() -> list[str]:
    """The names of the studies that come with the program."""
    return sorted(
        file.name.removesuffix(".yaml") for file in files("studies").iterdir() if file.name.endswith(".yaml")
    )


def _find_file(name: str) -> Path:
    path = Path(name)
    with suppress(OSError):  # a name too long for a file
        if path.is_file():
            return path
    if name == "published":
        raise NotFoundError(PUBLISHED)
    own = Path(str(files("studies"))) / f"{name}.yaml"
    if re.fullmatch(r"[a-z0-9_-]+", name) and own.is_file():
        return own
    raise NotFoundError(f"Study {name} not found; give a YAML file, or one of {', '.join(built_in())}.")


class WrongError(ValueError):
    """An error and its place in the study: keys and numbers from the top."""

    def __init__(self, place: Sequence[str | int], what: str) -> None:
        super().__init__(what.rstrip("."))
        self.place = place


class _Reading:
    """One file being read; knows in which line everything stands."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        try:
            document = read_yaml(text)
        except YamlError as error:
            line = f" line {error.line}" if error.line else ""
            raise UsageError(f"{path}{line} is not valid YAML: {error.problem}.") from error
        self.node, self.told = document.node, document.value

    def study(self) -> Study:
        """The study, every name in it known; raises UsageError."""
        if not isinstance(self.told, dict):
            raise UsageError(
                f"{self.path} is not a study: it does not contain names such as study, tasks, methods."
            )
        self._refuse_unstorable()
        if "published" in self.told:
            raise UsageError(f"{self.path} line {self._line(['published'])}: {PUBLISHED}")
        try:
            study = Study.model_validate(self.told)
        except ValidationError as error:
            raise UsageError(self._sentence(error)) from error
        try:
            _check_study(study)
        except WrongError as error:
            raise UsageError(f"{self.path} line {self._line(error.place)}: {error}.") from error
        return study

    def _refuse_unstorable(self) -> None:
        """Raises UsageError for a text with a NUL character or half a surrogate pair, which no file holds."""
        waiting, visited = [self.node], set[int]()
        while waiting:
            node = waiting.pop()
            if node is None or id(node) in visited:
                continue
            visited.add(id(node))
            if isinstance(node, yaml.ScalarNode) and UNSTORABLE.search(node.value):
                line = node.start_mark.line + 1
                raise UsageError(
                    f"{self.path} line {line}: a text contains a character that no file holds; remove it."
                )
            if isinstance(node, yaml.MappingNode):
                waiting += [part for pair in node.value for part in pair]
            elif isinstance(node, yaml.SequenceNode):
                waiting += node.value

    def _sentence(self, error: ValidationError) -> str:
        # An unknown name is a likelier cause than a missing one.
        first = min(error.errors(include_url=False), key=lambda entry: entry["type"] != "extra_forbidden")
        # The name of the kind of method, by which pydantic tells them apart, is no key of the file, nor are
        # the types of which one is allowed.
        place = [
            entry
            for n, entry in enumerate(first["loc"])
            if not (n == 2 and first["loc"][0] == "methods") and not _TYPE.fullmatch(str(entry))
        ]
        where = ".".join(str(entry) for entry in place) or "the file"
        return f"{self.path} line {self._line(place)}: {where}: {_plain(first, self._names(place))}."

    def _names(self, place: Sequence[str | int]) -> list[str]:
        """The names that may stand where an unknown one does."""
        owners: dict[str, type[StudyPart]] = {
            "tasks": Tasks,
            "adapters": Adapters,
            "report": Report,
            "pools": StudyPool,
            "sets": Sets,
        }
        part = owners.get(str(place[0])) if len(place) > 1 else Study
        methods = self.told.get("methods") if isinstance(self.told, dict) else None
        if len(place) > 1 and place[0] == "methods" and isinstance(methods, dict):
            document = methods.get(place[1])
            use = document.get("use") if isinstance(document, dict) else None
            part = next((kind for kind in KINDS_OF_METHOD if use_of(kind) == use), None)
        if list(place[:2]) == ["report", "claims"] and len(place) > 2:
            part = StudyClaim
        return [] if part is None else [field.alias or name for name, field in part.model_fields.items()]

    def _line(self, place: Sequence[str | int]) -> int:
        node, line = self.node, 1
        for key in place:
            if isinstance(node, yaml.MappingNode):
                pair = next((pair for pair in node.value if str(pair[0].value) == str(key)), None)
                if pair is None:
                    break
                line, node = pair[0].start_mark.line + 1, pair[1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
                node = node.value[key]
                line = node.start_mark.line + 1
            else:
                break
        return line


def _plain(error: Mapping[str, Any], names: Sequence[str]) -> str:
    """pydantic's message in the words of this program."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        key = str(error["loc"][-1])
        return f"unknown name; {nearest(key, names)}" if names else "unknown name; remove it"
    if kind == "missing":
        return "this is missing"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return f"give its kind by use: one of {', '.join(map(use_of, KINDS_OF_METHOD))}"
    if kind == "value_error":
        return str(context.get("error", error["msg"])).rstrip(".")
    value = error.get("input")
    if kind == "string_pattern_mismatch":
        what = "without | , = and control characters, and begins with no space"
        return f"a name has 1 to {_LONGEST} characters, {what}, not {_short(value)}"
    if kind in ("too_short", "string_too_short"):
        what = "item" if kind == "too_short" else "character"
        return f"it should have at least {context['min_length']} {what}"
    text = str(error["msg"]).replace("Input should be", "it should be").replace("valid tuple", "list")
    text = text.rstrip(".")
    return f"{text}, not {_short(value)}" if isinstance(value, (str, int, float, bool)) else text


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _check_study(study: Study) -> None:
    """Raises WrongError for an unknown name and for invalid settings."""
    _check_repeats(study)
    _check_size(study)
    _check_sets(study)
    for name, pool in study.pools.items():
        _check_seeds(study, ("pools", name, "seeds"), pool.seeds)
        if pool.method is not None:
            _check_training(study, ("pools", name, "method"), pool.method)
    for name, method in study.methods.items():
        _check_names(study, name, method)
        _check_settings(study, name, method)
    _check_relevance(study)
    labels = list(dict.fromkeys(all_labels(study)))
    for number, claim in enumerate(study.report.claims):
        for key, label_list in (("compare", claim.compare), ("with", claim.against)):
            if label_list not in labels:
                raise WrongError(("report", "claims", number, key), _unknown(label_list, labels))
    against = study.report.against
    if against is not None and against not in labels:
        raise WrongError(("report", "against"), _unknown(against, labels))


def _check_relevance(study: Study) -> None:
    """Raises WrongError for a figure of relevance where all pools are by training, which have none."""
    pools, figures = study.pools.values(), study.report.figures
    if "relevance" in figures and pools and all(pool.by == "training" for pool in pools):
        raise WrongError(
            ("report", "figures", figures.index("relevance")),
            "pools by training have no relevance, and the study has no others; remove it",
        )


def _check_size(study: Study) -> None:
    """A grid that is too large is refused before it is gone through."""
    cells = 0
    for name, method in study.methods.items():
        rows = math.prod(len(values) for values in method.over.values())
        if isinstance(method, Pooled):
            rows *= len(study.pools if method.pools is None else method.pools)
        cells += rows * len(judgements(study)) * len(study.seeds)
        if cells > _MOST_CELLS:
            raise WrongError(
                ("methods", name), f"the study has more than {_MOST_CELLS:,} cells a task; ask for fewer"
            )


def _check_repeats(study: Study) -> None:
    """What is given twice would count twice, and a row compared with itself says nothing."""
    for name, part in (("tasks", study.tasks), ("adapters", study.adapters)):
        if part is not None and part.names != "all" and (at := _repeated(part.names)) is not None:
            raise WrongError((name, "names", at), f"{_short(part.names[at])} is given twice; remove one")
    if (at := _repeated(study.seeds)) is not None:
        raise WrongError(("seeds", at), f"the seed {study.seeds[at]} is given twice; remove one")
    for number, claim in enumerate(study.report.claims):
        if claim.compare == claim.against:
            place = ("report", "claims", number, "with")
            raise WrongError(place, "it compares a row with itself; name another row")


def _repeated(values: Sequence[object]) -> int | None:
    """The place of the first value that an earlier one equals, None where there is none."""
    seen: set[object] = set()
    for at, value in enumerate(values):
        if value in seen:
            return at
        seen.add(value)
    return None


def _check_sets(study: Study) -> None:
    """What a study of sets, or one without, cannot mean."""
    sets = study.sets
    if sets is None:
        for name, pool in study.pools.items():
            if pool.by == "set":
                raise WrongError(("pools", name, "by"), "a pool by set requires sets; describe them by sets")
        return
    if study.adapters is None:
        raise WrongError(("sets",), "sets are drawn from adapters; give their folder by adapters")
    for name, pool in study.pools.items():
        if pool.by == "training":
            raise WrongError(
                ("pools", name, "by"),
                "a pool by training differs between the tasks that judge a set; give one by set",
            )
        if pool.by == "set" and pool.k is not None and pool.k > sets.size:
            raise WrongError(("pools", name, "k"), f"a set has {sets.size} members; lower k")
    _check_named_sets(sets, len(study.seeds))
    for name, method in study.methods.items():
        if method.tasks is not None:
            raise WrongError(
                ("methods", name, "tasks"), "sets are judged on their own tasks and others; remove tasks"
            )


def _check_named_sets(sets: Sets, seeds: int) -> None:
    if len(sets.named) > seeds:
        raise WrongError(
            ("sets", "named", seeds),
            f"{len(sets.named)} sets are named, and a set needs a seed of its own; there are {seeds} seeds",
        )
    for number, members in enumerate(sets.named):
        if len(members) != sets.size:
            raise WrongError(
                ("sets", "named", number), f"it names {len(members)} adapters, and the size is {sets.size}"
            )
        twice = next((name for at, name in enumerate(members) if name in members[:at]), None)
        if twice is not None:
            raise WrongError(("sets", "named", number), f"it names {twice} twice")


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
    selected = next((pool for pool, told in study.pools.items() if told.by != "training"), None)
    if study.adapters is None and selected is not None:
        raise WrongError(
            ("pools", selected), "pools are selected from adapters; give their folder by adapters"
        )
    if (at := _repeated(method.pools or ())) is not None:
        raise WrongError(("methods", name, "pools", at), "this pool is given twice; remove one")
    for pool in method.pools or ():
        if pool not in study.pools:
            raise WrongError(("methods", name, "pools"), _unknown(pool, list(study.pools)))


def _check_target(study: Study, name: str, method: Adapt) -> None:
    alone = find_adaptive(method.method).alone
    if alone and method.target is None:
        raise WrongError(("methods", name), f"{method.method} requires a new LoRA alone; name it by with")
    if method.target is None:
        return
    _check_training(study, ("methods", name, "with"), method.target)


def _check_training(study: Study, place: Sequence[str | int], name: str) -> None:
    """Raises WrongError unless the method of that name makes one adapter of each task, which merges take."""
    method = study.methods.get(name)
    if not isinstance(method, Train):
        trained = ", ".join(other for other, kind in study.methods.items() if isinstance(kind, Train))
        raise WrongError(place, f"{place[-1]} must name a method that trains; there is {trained or 'none'}")
    if method.over:
        raise WrongError(place, f"{name} has several settings (over); name a method with one")
    if not VARIANTS[method.variant].mergeable:
        raise WrongError(place, f"{name} trains {method.variant}, which no merge holds; name another method")


def _check_settings(study: Study, name: str, method: Method) -> None:
    rows: dict[str, Mapping[str, Value]] = {}
    for point in points(method.over):
        row = label(name, None, point)
        if row in rows:
            raise WrongError(("methods", name, "over"), f"two settings are called {row!r}; remove one")
        rows[row] = point
        try:
            settled = settle_method(method, point)
            if isinstance(method, Adapt) and isinstance(settled, Adapt) and point:
                _check_adapt_point(study, name, method, settled)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = str(first["loc"][0]) if first["loc"] else ""
            place = ("methods", name, "over", key) if key in method.over else ("methods", name)
            raise WrongError(place, f"{key} of {name}: {first['msg']}") from error
        except UsageError as error:
            key = "over" if method.over else "parameters"
            raise WrongError(("methods", name, key), str(error)) from error


def _check_adapt_point(study: Study, name: str, method: Adapt, settled: Adapt) -> None:
    """A point of an adaptive merge has a method and a `with` of its own."""
    if find_adaptive(settled.method).alone != find_adaptive(method.method).alone:
        raise WrongError(
            ("methods", name, "over", "method"),
            f"{settled.method} takes a pool where {method.method} takes none, or the other way round; ask it "
            "as a method of its own",
        )
    _check_target(study, name, settled)


def _unknown(name: str, names: Sequence[str]) -> str:
    return f"{name!r} is unknown; {nearest(name, names)}"
