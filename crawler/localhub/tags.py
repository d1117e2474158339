"""What the Hub derives from a repository's card and file names: card data, library, base models, tags."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from crawler.reading import frontmatter

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
    usual = "peft" if "adapter_config.json" in paths else "transformers" if "config.json" in paths else None
    library = library_name or usual
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
    text, _ = frontmatter.split(readme)
    return frontmatter.load(text)[0] or None if text is not None else None


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
