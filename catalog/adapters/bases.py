"""Base models: their many names in the wild, their licenses and their dimensions.

`bases.json` is the built-in table; a catalog adds its own rows, and a `BaseTable` is built from the rows that
the caller gives. Shapes tell sizes apart, never Llama 3 from 3.1 nor base from Instruct, so that identity
comes from names, and `BaseIdentity` gives the evidence.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from importlib.resources import files
from typing import Any, Literal, cast, get_args

from catalog.adapters.base_names import (
    decode_name,
    names_nothing,
    plain_name,
    readings_of_path,
    split_quantised,
    words,
)
from catalog.errors import NotFoundError, UsageError

SpellingKind = Literal["canonical", "renamed", "mirror", "quantised", "case", "local_path"]
_KINDS = get_args(SpellingKind)

_REPO_ID = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._-]{0,95}/)?[A-Za-z0-9_][A-Za-z0-9._-]{0,95}\Z")
_CHECKPOINT = re.compile(r"(?:checkpoint|step|epoch)[-_]?\d+\Z", re.IGNORECASE)
_LOCAL_OWNERS = frozenset(
    {"base_models", "checkpoint", "checkpoints", "content", "data", "home", "llm", "llms", "mnt", "model"}
    | {"models", "output", "outputs", "pretrained", "pretrained_models", "results", "root", "tmp", "weights"}
    | {"workspace"}
)
_LOCAL_NAMES = frozenset(
    {"base", "base_model", "checkpoint", "merged", "model", "output", "outputs", "results"}
)
_MAX_RAW = 1000


@dataclass(frozen=True, slots=True)
class BaseSpelling:
    """One name under which a base model is met, and how it relates to the canonical one."""

    canonical: str
    spelling: str
    kind: SpellingKind
    note: str = ""

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise UsageError(f"{self.kind!r} is not a kind of spelling; use one of {', '.join(_KINDS)}.")


@dataclass(frozen=True, slots=True)
class BaseDims:
    """Widths of a decoder: `q` and `kv` are the outputs of the query and of the key and value projections.

    `head` is the width of an attention head, `type` the model_type of transformers.
    """

    hidden: int
    layers: int
    q: int
    kv: int
    mlp: int
    vocab: int
    head: int
    type: str

    def shape(self, module: str) -> tuple[int | None, int | None] | None:
        """(in_features, out_features) of a module by its short name; None for a width that varies or is
        unknown.

        The vocabulary is None, since fine-tuning adds tokens.
        """
        shapes: Mapping[str, tuple[int | None, int | None]] = {
            "q_proj": (self.hidden, self.q),
            "k_proj": (self.hidden, self.kv),
            "v_proj": (self.hidden, self.kv),
            "o_proj": (self.q, self.hidden),
            "qkv_proj": (self.hidden, self.q + 2 * self.kv),
            "gate_proj": (self.hidden, self.mlp),
            "up_proj": (self.hidden, self.mlp),
            "gate_up_proj": (self.hidden, 2 * self.mlp),
            "down_proj": (self.mlp, self.hidden),
            "lm_head": (self.hidden, None),
            "embed_tokens": (None, self.hidden),
        }
        return shapes.get(module)


@dataclass(frozen=True, slots=True)
class BaseIdentity:
    """The base model that a string means; `canonical` is None if unknown, `evidence` is a short phrase."""

    canonical: str | None
    raw: str | None
    kind: SpellingKind
    evidence: str


def initial_spellings() -> tuple[BaseSpelling, ...]:
    """Every spelling in the built-in table, including canonical names."""
    rows: list[BaseSpelling] = []
    for model in _seeds()["models"]:
        canonical = model["canonical"]
        rows.append(BaseSpelling(canonical, canonical, "canonical"))
        rows.extend(
            BaseSpelling(canonical, row["spelling"], row["kind"], row.get("note", ""))
            for row in model["spellings"]
        )
    return tuple(rows)


def dims(canonical: str) -> BaseDims | None:
    """Dimensions of a base model, None if they are not certain."""
    model = _initial_row(canonical)
    return None if model is None else BaseDims(**_seeds()["dims"][model["dims"]])


def dims_name(canonical: str) -> str | None:
    """The name under which the dimensions of a base model are listed; models of one size share them."""
    model = _initial_row(canonical)
    return None if model is None else cast(str, model["dims"])


def license_of_base(canonical: str) -> str | None:
    """License id of a base model as the Hub writes it (llama3.1, apache-2.0), None if unknown."""
    model = _initial_row(canonical)
    return None if model is None else cast(str, model["license"])


@functools.cache
def _mirrors(*hubs: str) -> frozenset[str]:
    """Owners, in lower case, who mirror models of other owners under their original names, on all hubs
    or on these.
    """
    owners = _seeds()["mirrors"]
    return frozenset(owner.casefold() for hub in hubs or owners for owner in owners[hub])


@functools.cache
def _seeds() -> dict[str, Any]:
    text = files("catalog.adapters").joinpath("bases.json").read_text(encoding="utf-8")
    return cast(dict[str, Any], json.loads(text))


def _initial_row(canonical: str) -> Mapping[str, Any] | None:
    return next((model for model in _seeds()["models"] if model["canonical"] == canonical), None)


class BaseTable:
    """Answers which base model a string means, and under which names one is listed; built from rows,
    immutable.
    """

    def __init__(self, spellings: Iterable[BaseSpelling]) -> None:
        self._rows: dict[str, BaseSpelling] = {}
        self._folded: dict[str, BaseSpelling] = {}
        self._words: dict[tuple[str, ...], str | None] = {}
        self._owners: dict[str, set[str]] = {}
        for row in spellings:
            if row.canonical not in self._owners:
                self._add(BaseSpelling(row.canonical, row.canonical, "canonical"))
            self._add(row)
        all_owners = {owner for owners in self._owners.values() for owner in owners} | _mirrors()
        self._prefixes = sorted(
            {words(owner) for owner in all_owners}, key=lambda prefix: (-len(prefix), prefix)
        )

    def _add(self, row: BaseSpelling) -> None:
        # The row of a spelling takes precedence over another row's canonical name.
        if row.kind != "canonical" or row.spelling not in self._rows:
            self._rows[row.spelling] = row
        self._folded.setdefault(row.spelling.casefold(), row)
        if row.kind == "local_path":
            # One folder on one machine; another of this name may hold anything.
            return
        owner, _, short = row.spelling.rpartition("/")
        self._owners.setdefault(row.canonical, set()).add(owner.casefold())
        # A short name that two base models share is ambiguous.
        if self._words.setdefault(words(short), row.canonical) != row.canonical:
            self._words[words(short)] = None

    @property
    def rows(self) -> tuple[BaseSpelling, ...]:
        """Every spelling, sorted."""
        return tuple(self._rows[spelling] for spelling in sorted(self._rows))

    def spellings(self, name: str) -> tuple[str, ...]:
        """All names of the base model, including this one: the canonical name first, the others sorted.

        For a base model that is not in the table: the name itself, the names of Unsloth's copies, and these
        in lower case.
        """
        canonical = self.known(name)
        if canonical is not None:
            spellings = {r.spelling for r in self._rows.values() if r.canonical == canonical}
            if self._find(name) is None and _REPO_ID.match(name):
                spellings.add(name)
            return (canonical, *sorted(spellings - {canonical}))
        short = name.rpartition("/")[2]
        derived = {name, *(f"unsloth/{short}{end}" for end in ("", "-bnb-4bit", "-unsloth-bnb-4bit"))}
        derived |= {spelling.lower() for spelling in derived}
        return (name, *sorted(derived - {name}))

    def known(self, name: str) -> str | None:
        """The canonical name of the base model that a name means, None if it is not in the table."""
        canonical = self.identify(name).canonical
        return canonical if canonical in self._owners else None

    def canonical(self, name: str | None) -> str | None:
        """The name of the base model in a text: the canonical name, else the text itself.

        None for a text that does not name a base model. Two texts with the same result mean one base model.
        """
        if name is None or names_nothing(name):
            return None
        return self.identify(name).canonical or name.strip()

    def find(self, name: str, candidates: Collection[str] = ()) -> str:
        """The canonical name of the base model that a user means: one of the table, or of `candidates`.

        Raises NotFoundError with the nearest known names.
        """
        same = [other for other in candidates if other.casefold() == name.casefold()]
        match = self.known(name) or (name if name in same else next(iter(same), None))
        if match is None:
            raise NotFoundError(f"No base model is known as {name}; {self.nearest(name, candidates)}.")
        return match

    def nearest(self, name: str, candidates: Collection[str] = ()) -> str:
        """The known names nearest to one that is not known, as the end of a sentence."""
        likeness: dict[str, float] = {}
        for canonical, spelling in (
            *((row.canonical, row.spelling) for row in self._rows.values() if row.kind != "local_path"),
            *((other, other) for other in candidates),
        ):
            likeness[canonical] = max(likeness.get(canonical, 0.0), _likeness(name, spelling))
        best = sorted(likeness, key=lambda candidate: (-likeness[candidate], candidate))[:3]
        if not best:
            return "no base model is known yet"
        return (
            f"the nearest known names are {', '.join(best[:-1])} and {best[-1]}"
            if best[1:]
            else (f"the only known name is {best[0]}")
        )

    def identify(self, raw: str | None, *, tags: Sequence[str] = ()) -> BaseIdentity:
        """The base model that an adapter's configuration names; `tags` of the repository are used if it names
        none.

        A repository id that is not in the table is taken as it is written: every base model that a user
        names can be crawled. A local path is a base model only if it leads to a known name, or into a cache
        of a hub. Words such as None are not names.
        """
        identity = None if raw is None or names_nothing(raw) else self._identify(raw)
        if identity is not None and identity.canonical is not None:
            return identity
        for tag in _base_tags(tags):
            by_tag = self._identify(tag.rpartition(":")[2])
            if by_tag.canonical is not None:
                kind = by_tag.kind if identity is None else identity.kind
                return BaseIdentity(by_tag.canonical, raw, kind, f"tag {tag}")
        return identity or BaseIdentity(None, raw, "local_path", "no base model is named")

    def _find(self, name: str) -> BaseSpelling | None:
        return self._rows.get(name) or self._folded.get(name.casefold())

    def _identify(self, raw: str) -> BaseIdentity:
        written = raw[:_MAX_RAW].strip()
        row = self._rows.get(written)
        if row is not None:
            return BaseIdentity(row.canonical, raw, row.kind, "spelling table")
        name, left_out = plain_name(written)
        if names_nothing(name):
            return BaseIdentity(None, raw, "local_path", left_out or "no base model is named")
        row = self._folded.get(name.casefold())
        if row is not None:
            kind: SpellingKind = "case" if row.kind == "canonical" else row.kind
            evidence = f"case-insensitive match of {row.spelling}"
            return BaseIdentity(row.canonical, raw, kind, _with(evidence, left_out))
        if _is_local_path(name):
            return self._identify_path(raw, name)
        return self._identify_id(raw, decode_name(name), left_out)

    def _identify_path(self, raw: str, path: str) -> BaseIdentity:
        for reading in readings_of_path(path):
            row = self._find(reading.name)
            canonical = row.canonical if row is not None else self._by_words(reading.name)
            if canonical is None and reading.whole and _REPO_ID.match(reading.name):
                canonical = self._of_hub(reading.name)
            if canonical is not None:
                return BaseIdentity(canonical, raw, "local_path", reading.evidence)
        return BaseIdentity(None, raw, "local_path", "local path")

    def _of_hub(self, name: str) -> str | None:
        """The model of a repository in a cache: a known one, else itself, except for ModelScope's copies."""
        original = self._of_copy(name) or self._of_mirror(name)
        other = name.partition("/")[0].casefold() not in _mirrors("modelscope")
        return original or (name if other else None)

    def _identify_id(self, raw: str, name: str, left_out: str) -> BaseIdentity:
        """The identity of a repository id, or of a name without an owner."""
        kind: SpellingKind = "canonical"
        evidence = "not in the spelling table, taken as written"
        if canonical := self._of_copy(name):
            kind, evidence = "quantised", f"quantised suffix {split_quantised(name)[1]}"
        elif "/" not in name and (canonical := self._by_words(name)):
            kind, evidence = "local_path", "name without an owner"
        elif canonical := self._of_mirror(name):
            kind, evidence = "mirror", f"another way to write {canonical}"
        return BaseIdentity(canonical or name, raw, kind, _with(evidence, left_out))

    def _by_words(self, name: str) -> str | None:
        """The known model with this name, for any separators of its words: of a folder, or without an owner.

        The name may be preceded by an owner in the table, and followed by the suffix of a quantised copy or
        of weights in the Hub's format.
        """
        for text in dict.fromkeys((name, split_quantised(name)[0])):
            parts = words(text)
            for owner in ((), *self._prefixes):
                if parts[: len(owner)] == owner:
                    remaining = parts[len(owner) :]
                    shorter = remaining[:-1] if remaining[-1:] == ("hf",) else remaining
                    if canonical := self._words.get(remaining) or self._words.get(shorter):
                        return canonical
        return None

    def _of_copy(self, name: str) -> str | None:
        """The known model that a quantised copy of any owner is named after."""
        stem, suffix = split_quantised(name)
        if not suffix:
            return None
        row = self._find(stem)
        return row.canonical if row is not None else self._words.get(words(stem.rpartition("/")[2]))

    def _of_mirror(self, name: str) -> str | None:
        """The known model of this name if its owner has it too, or mirrors models of other owners."""
        owner, _, short = name.rpartition("/")
        canonical = self._words.get(words(short))
        if canonical is None and short[:1].isdigit():
            return self._words.get(words(name))
        owners = self._owners.get(canonical or "", set()) | _mirrors()
        return canonical if owner.casefold() in owners else None


@functools.cache
def initial_table() -> BaseTable:
    """The built-in table."""
    return BaseTable(initial_spellings())


def table_with(rows: Iterable[BaseSpelling]) -> BaseTable:
    """The built-in table and a catalog's rows, which take precedence."""
    return BaseTable({row.spelling: row for row in (*initial_spellings(), *rows)}.values())


def _base_tags(tags: Sequence[str]) -> list[str]:
    """The `base_model:` tags, those with the relation adapter first, those without a relation last."""
    base_tags = [tag for tag in tags if tag.startswith("base_model:")]
    order = {"adapter": 0, "finetune": 1, "quantized": 2}
    return sorted(base_tags, key=lambda tag: (order.get(tag.split(":")[1], 3), tag))


def _likeness(name: str, spelling: str) -> float:
    """The similarity of two names, from 0 to 1: of the whole names, or of those without owners, which counts
    slightly less."""
    left, right = name.casefold(), spelling.casefold()
    ratio = SequenceMatcher(None, left, right).ratio()
    short = SequenceMatcher(None, left.rpartition("/")[2], right.rpartition("/")[2]).ratio()
    return max(ratio, 0.95 * short)


def _with(evidence: str, left_out: str) -> str:
    return f"{evidence}, {left_out}" if left_out else evidence


def _is_local_path(name: str) -> bool:
    if not _REPO_ID.match(name) or ".." in name or name.startswith("models--"):
        return True
    owner, _, short = name.rpartition("/")
    return (
        owner.casefold() in _LOCAL_OWNERS
        or short.casefold() in _LOCAL_NAMES
        or bool(_CHECKPOINT.match(short))
    )
