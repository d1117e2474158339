"""What the Hub derives from a repository's card and file names: card data, library, base models, tags."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

import yaml

MAX_FRONT_MATTER = 256 * 1024  # characters of front matter that are looked at
MAX_CARD_VALUES = 20_000  # scalars and containers; an alias bomb has many more
MAX_DEPTH = 64  # levels of nesting; the C loader recurses without a guard and crashes the process
MAX_INTEGER_BITS = 1_000  # longer integers are invalid in a card and break JSON readers

LIBRARIES = (
    "peft",
    "transformers",
    "diffusers",
    "sentence-transformers",
    "adapter-transformers",
    "setfit",
    "timm",
    "flair",
    "spacy",
    "mlx",
)
BASE_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", re.ASCII)
OWNED_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
ARXIV_LINK = re.compile(r"arxiv\.org/(?:abs|pdf)/(\d{4}\.\d{4,5})", re.ASCII)

# The C loader reads a card ten times faster; PyYAML may have been built without it.
SAFE_LOADER: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Derived:
    """What follows from a repository's card, adapter configuration and file names."""

    card: dict[str, Any] | None
    library: str | None
    pipeline_tag: str | None
    base_models: tuple[str, ...]
    relation: str | None
    tags: tuple[str, ...]


def derive(readme: str, adapter: Mapping[str, Any] | None, paths: Collection[str]) -> Derived:
    """The Hub's reading of one repository: `readme` is the card's text, `adapter` the root adapter_config."""
    card = front_matter(readme)
    library_name = _library_name(card or {})
    library = library_name or _library_of_files(paths)
    pipeline = _words((card or {}).get("pipeline_tag"))
    bases = _base_models(card or {}, adapter)
    relation = (
        _relation(card or {}, library_name, "adapter_config.json" in paths, len(bases)) if bases else None
    )
    tags = [
        *([library] if library else []),
        *(["safetensors"] if any(path.endswith(".safetensors") for path in paths) else []),
        *_card_tags(card or {}, readme),
        *pipeline,
        *(f"base_model:{base}" for base in bases),
        *(f"base_model:{relation}:{base}" for base in bases),
        "region:us",
    ]
    return Derived(
        card=card,
        library=library,
        pipeline_tag=pipeline[0] if pipeline else None,
        base_models=bases,
        relation=relation,
        tags=tuple(dict.fromkeys(tags)),
    )


def front_matter(readme: str) -> dict[str, Any] | None:
    """The card's front matter as plain JSON values, or None if it is missing or cannot be read."""
    text = _front_matter_text(readme)
    if text is None:
        return None
    try:
        _check_depth(text)
        # S506 does not see that both possible loaders are safe ones.
        loaded = yaml.load(text, Loader=SAFE_LOADER)  # noqa: S506
        plain = _plain(loaded, iter(range(MAX_CARD_VALUES)))
    except (
        yaml.YAMLError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ):
        return None
    return plain if isinstance(plain, dict) else None


def _front_matter_text(readme: str) -> str | None:
    lines = readme[:MAX_FRONT_MATTER].lstrip("\ufeff \t\r\n").splitlines()
    if not lines or lines[0].rstrip() != "---":
        return None
    for number, line in enumerate(lines[1:], start=1):
        if line.rstrip() == "---":
            return "\n".join(lines[1:number])
    return None


def _check_depth(text: str) -> None:
    """Raises ValueError where YAML is nested too deeply; events are parsed one by one, without recursion."""
    depth = 0
    for event in yaml.parse(text, Loader=SAFE_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise ValueError("a card nested too deeply")


def _plain(value: Any, budget: Iterator[int]) -> Any:
    """`value` in JSON's own types; raises ValueError when the budget of values is spent."""
    if next(budget, None) is None:
        raise ValueError("too many values in a card")
    if isinstance(value, Mapping):
        return {_key(key): _plain(item, budget) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item, budget) for item in value]
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int):
        return value if value.bit_length() <= MAX_INTEGER_BITS else None
    return value if isinstance(value, str) else None


def _key(key: Any) -> str:
    if isinstance(key, int) and key.bit_length() > MAX_INTEGER_BITS:
        raise ValueError("a number without end as a card's key")
    return str(key)


def _words(value: Any) -> list[str]:
    """The non-empty strings of a card's value, which may be one string, a list, or anything else."""
    candidates = value if isinstance(value, list) else [value]
    return [word for word in candidates if isinstance(word, str) and word]


def _card_tags(card: Mapping[str, Any], readme: str) -> Iterable[str]:
    yield from _words(card.get("tags"))
    yield from _words(card.get("language"))
    yield from (f"dataset:{name}" for name in _words(card.get("datasets")))
    papers = [*_words(card.get("arxiv")), *ARXIV_LINK.findall(readme)]
    yield from (f"arxiv:{paper}" for paper in papers)
    yield from (f"license:{name}" for name in _words(card.get("license")))


def _library_name(card: Mapping[str, Any]) -> str | None:
    stated = _words(card.get("library_name"))
    if stated:
        return stated[0]
    tags = set(_words(card.get("tags")))
    return next((library for library in LIBRARIES if library in tags), None)


def _library_of_files(paths: Collection[str]) -> str | None:
    if "adapter_config.json" in paths:
        return "peft"
    return "transformers" if "config.json" in paths else None


def _base_models(card: Mapping[str, Any], adapter: Mapping[str, Any] | None) -> tuple[str, ...]:
    bases = [base for base in _words(card.get("base_model")) if BASE_ID.fullmatch(base)]
    if not bases and adapter is not None:
        # A bare word in a configuration is as often a folder as a model, so an owner is required.
        names = _words(adapter.get("base_model_name_or_path"))
        bases = [base for base in names if OWNED_ID.fullmatch(base)]
    return tuple(dict.fromkeys(bases))


def _relation(card: Mapping[str, Any], library: str | None, adapter_at_root: bool, bases: int) -> str:
    """adapter, merge, finetune, or the card's relation.

    Unsloth's cards name transformers as library and no relation: the Hub then says finetune, adapter
    file or not, which is why a crawl that asks for adapters alone misses them.
    """
    relation = _words(card.get("base_model_relation"))
    if relation:
        return relation[0]
    if library == "peft" or (library is None and adapter_at_root):
        return "adapter"
    return "merge" if bases > 1 else "finetune"
