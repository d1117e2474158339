"""Base models: their many names in the wild, their licences and their dimensions.

`bases.json` holds what the program knows from the start; a catalog adds rows of its own, and a `BaseTable`
is built from whatever rows the caller has. Shapes tell sizes apart, never Llama 3 from 3.1 nor base from
Instruct, so that identity comes from names, and `BaseIdentity` says how sure it is.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal, cast, get_args

from catalog.errors import UsageError

SpellingKind = Literal["canonical", "renamed", "mirror", "quantised", "case", "local_path"]

_REPO_ID = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._-]{0,95}/)?[A-Za-z0-9_][A-Za-z0-9._-]{0,95}\Z")
_HUB_ADDRESS = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/", re.IGNORECASE)
_CACHE_FOLDER = re.compile(r"models--([^/]+?)--([^/]+)\Z")
_SNAPSHOT = re.compile(r"/snapshots/[0-9a-f]{7,64}\Z")
_CHECKPOINT = re.compile(r"(?:checkpoint|step|epoch)[-_]?\d+\Z", re.IGNORECASE)
_QUANTISED = re.compile(
    r"(?:-(?:unsloth|bnb|awq|gptq|gguf|fp8|nf4|int[48]|w[48]a(?:8|16)|[48]-?bits?))+\Z", re.IGNORECASE
)
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
        if self.kind not in get_args(SpellingKind):
            raise UsageError(f"{self.kind!r} is no kind of spelling: {', '.join(get_args(SpellingKind))}.")


@dataclass(frozen=True, slots=True)
class BaseDims:
    """Widths of a decoder: `q` and `kv` are the outputs of the query and of the key and value projections."""

    hidden: int
    layers: int
    q: int
    kv: int
    mlp: int
    vocab: int

    def shape(self, module: str) -> tuple[int | None, int | None] | None:
        """(in_features, out_features) of a module by its short name; None inside for what varies or is
        unknown.

        The vocabulary is left open: fine-tunes add tokens.
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
    """Which base model a string means; `canonical` is None where nobody can tell. `evidence` is one short
    phrase.
    """

    canonical: str | None
    raw: str | None
    kind: SpellingKind
    evidence: str


def seed_spellings() -> tuple[BaseSpelling, ...]:
    """Every spelling that the program knows from the start, canonical names included."""
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
    """Dimensions of a base model, None where they are not known for sure."""
    model = _seed(canonical)
    return None if model is None else BaseDims(**_seeds()["dims"][model["dims"]])


def license(canonical: str) -> str | None:  # noqa: A001 - read as bases.license, the field's word
    """Licence id of a base model as the Hub writes it (llama3.1, apache-2.0), None where it is not known."""
    model = _seed(canonical)
    return None if model is None else cast(str, model["license"])


@functools.cache
def _seeds() -> dict[str, Any]:
    text = files("catalog").joinpath("bases.json").read_text(encoding="utf-8")
    return cast(dict[str, Any], json.loads(text))


def _seed(canonical: str) -> Mapping[str, Any] | None:
    return next((model for model in _seeds()["models"] if model["canonical"] == canonical), None)


class BaseTable:
    """Answers which base model a string means, and under which names one is listed; built from rows,
    immutable.
    """

    def __init__(self, spellings: Iterable[BaseSpelling]) -> None:
        self._rows: dict[str, BaseSpelling] = {}
        self._folded: dict[str, BaseSpelling] = {}
        self._short: dict[str, str | None] = {}
        for row in spellings:
            self._add(BaseSpelling(row.canonical, row.canonical, "canonical"))
            self._add(row)

    def _add(self, row: BaseSpelling) -> None:
        # What a row says of a name outweighs that the name is some other row's canonical one.
        if row.kind != "canonical" or row.spelling not in self._rows:
            self._rows[row.spelling] = row
        self._folded.setdefault(row.spelling.casefold(), row)
        short = row.spelling.rstrip("/").rpartition("/")[2].casefold()
        # A short name that two base models share tells nothing.
        if self._short.setdefault(short, row.canonical) != row.canonical:
            self._short[short] = None

    @property
    def rows(self) -> tuple[BaseSpelling, ...]:
        """Every spelling, sorted."""
        return tuple(self._rows[spelling] for spelling in sorted(self._rows))

    def spellings(self, name: str) -> tuple[str, ...]:
        """All names under which the base model is known, the canonical one first, the rest sorted.

        For a base model that is not in the table: the name itself, what Unsloth would call its copies, and
        those in lower case.
        """
        row = self._find(name)
        if row is not None:
            known = {r.spelling for r in self._rows.values() if r.canonical == row.canonical}
            return (row.canonical, *sorted(known - {row.canonical}))
        short = name.rpartition("/")[2]
        derived = {name, *(f"unsloth/{short}{end}" for end in ("", "-bnb-4bit", "-unsloth-bnb-4bit"))}
        derived |= {spelling.lower() for spelling in derived}
        return (name, *sorted(derived - {name}))

    def identify(self, raw: str | None, *, tags: Sequence[str] = ()) -> BaseIdentity:
        """Which base model an adapter's own words mean; `tags` of the repository help where they say nothing.

        A repository id that is not in the table is taken as it is written: every base model that a user
        names can be crawled. A path on somebody's disk is a base model only where its last part is a known
        name.
        """
        found = self._identify(raw) if raw and raw.strip() else None
        if found is not None and found.canonical is not None:
            return found
        for tag in _base_tags(tags):
            by_tag = self._identify(tag.rpartition(":")[2])
            if by_tag.canonical is not None:
                kind = by_tag.kind if found is None else found.kind
                return BaseIdentity(by_tag.canonical, raw, kind, f"tag {tag}")
        return found or BaseIdentity(None, raw, "local_path", "no base model is named")

    def _find(self, name: str) -> BaseSpelling | None:
        return self._rows.get(name) or self._folded.get(name.casefold())

    def _identify(self, raw: str) -> BaseIdentity:
        name = raw[:_MAX_RAW].strip()
        row = self._rows.get(name)
        if row is not None:
            return BaseIdentity(row.canonical, raw, row.kind, "spelling table")
        name = _HUB_ADDRESS.sub("", name, count=1).strip("/") if _HUB_ADDRESS.match(name) else name
        row = self._folded.get(name.casefold())
        if row is not None:
            kind: SpellingKind = "case" if row.kind == "canonical" else row.kind
            return BaseIdentity(row.canonical, raw, kind, f"case-insensitive match of {row.spelling}")
        if _is_local_path(name):
            return self._identify_path(raw, name)
        return self._identify_id(raw, name)

    def _identify_path(self, raw: str, name: str) -> BaseIdentity:
        last = _last_component(name)
        row = self._find(last)
        canonical = row.canonical if row is not None else self._short.get(last.rpartition("/")[2].casefold())
        if canonical is None:
            return BaseIdentity(None, raw, "local_path", "local path")
        return BaseIdentity(canonical, raw, "local_path", f"local path ends in {last}")

    def _identify_id(self, raw: str, name: str) -> BaseIdentity:
        suffix = _QUANTISED.search(name)
        if suffix is not None and suffix.start() > 0:
            stem = name[: suffix.start()]
            row = self._find(stem)
            canonical = row.canonical if row is not None else stem
            return BaseIdentity(canonical, raw, "quantised", f"quantised suffix {suffix.group()}")
        canonical_of_short = self._short.get(name.casefold())
        if canonical_of_short is not None:
            return BaseIdentity(canonical_of_short, raw, "local_path", "name without an owner")
        return BaseIdentity(name, raw, "canonical", "not in the spelling table, taken as written")


def _base_tags(tags: Sequence[str]) -> list[str]:
    """The `base_model:` tags, those that say adapter first, those without a relation last."""
    found = [tag for tag in tags if tag.startswith("base_model:")]
    order = {"adapter": 0, "finetune": 1, "quantized": 2}
    return sorted(found, key=lambda tag: (order.get(tag.split(":")[1], 3), tag))


def _is_local_path(name: str) -> bool:
    if not _REPO_ID.match(name) or ".." in name:
        return True
    owner, _, short = name.rpartition("/")
    return (
        owner.casefold() in _LOCAL_OWNERS
        or short.casefold() in _LOCAL_NAMES
        or bool(_CHECKPOINT.match(short))
    )


def _last_component(path: str) -> str:
    """The last part of a path; for a Hub cache folder the repository id that it stands for."""
    path = _SNAPSHOT.sub("", path.replace("\\", "/").rstrip("/"))
    last = path.rpartition("/")[2]
    cached = _CACHE_FOLDER.match(last)
    return f"{cached[1]}/{cached[2]}" if cached else last
