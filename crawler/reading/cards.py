"""A model card → its license, base models, datasets, training facts, readable text, and quality.

`parse_card` takes any bytes and never raises; unreadable parts are named in `problems`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from catalog.adapters import CardFacts
from catalog.errors import UnreadableError
from crawler.reading import frontmatter
from crawler.reading.guard import reading
from crawler.reading.prose import has_template_marks, own_words, readable
from crawler.reading.training import TrainingFacts, training_facts

MAX_CARD = 10 * 1024 * 1024
# Longer bodies are cut before parsing: no card written for people is longer.
MAX_BODY = 200_000
_LFS_POINTER = "version https://git-lfs"
_MAX_ENTRY = 300
_MAX_ENTRIES = 200
# Fewer words than these are not a description.
_SOME_WORDS = 6
_LICENSE_PLACEHOLDERS = frozenset(
    {"", "license", "licence", "none", "null", "n/a", "[more information needed]"}
)


class CardQuality(enum.StrEnum):
    """How informative a card is; stored by value."""

    ABSENT = "absent"
    TEMPLATE = "template"
    GENERATED = "generated"
    HYPERPARAMETERS = "hyperparameters"
    INFORMATIVE = "informative"


@dataclass(frozen=True, slots=True)
class Card:
    """The content of a README.md; `front` is its front matter as JSON values.

    `license` is the Hub's id in lower case. `problems` are those for which the card or a part of it was not
    read: not_utf8, lfs_pointer, too_large, bad_yaml, unsafe_tag, alias_bomb, not_a_mapping, and unreadable_
    with the class of a parser's fault.
    """

    front: Mapping[str, Any] = field(default_factory=dict, hash=False)
    problems: tuple[str, ...] = ()
    license: str | None = None
    license_name: str | None = None
    base_models: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    quality: CardQuality = CardQuality.ABSENT
    text: str = ""
    training: TrainingFacts = field(default_factory=TrainingFacts, hash=False)

    @property
    def license_in_words(self) -> str | None:
        """The license id, or for `other` the license's name; None for `other` without a name."""
        if self.license != "other":
            return self.license
        return self.license_name.lower() if self.license_name else None


def parse_card(data: bytes) -> Card:
    """The card in the bytes of a README.md; never raises."""
    try:
        with reading("the card"):
            return _parse(data)
    except UnreadableError as error:
        return Card(problems=(f"unreadable_{error.fault}",))


def card_from_facts(facts: CardFacts) -> Card:
    """A card without its text, of which an adapter's other facts follow as from the card itself."""
    return Card(
        front=facts.front,
        problems=facts.problems,
        **_fields(facts.front),
        quality=next((one for one in CardQuality if one == facts.quality), CardQuality.ABSENT),
        training=TrainingFacts.from_json(facts.training),
    )


def _parse(data: bytes) -> Card:
    problems: list[str] = []
    text = _decode(data, problems)
    if text.startswith(_LFS_POINTER):
        return Card(problems=("lfs_pointer",))
    front_text, body = frontmatter.split(text)
    front, front_problems = frontmatter.load(front_text) if front_text is not None else ({}, ())
    problems.extend(front_problems)
    body = frontmatter.plain_text(body[:MAX_BODY].replace("\r\n", "\n"))
    facts = training_facts(body, _texts(front.get("tags")), _texts(front.get("datasets")))
    prose = readable(body)
    return Card(
        front=front,
        problems=tuple(dict.fromkeys(problems)),
        **_fields(front),
        quality=_quality(body, prose, facts),
        text=prose,
        training=facts,
    )


def _fields(front: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "license": _license(front),
        "license_name": _text(front.get("license_name")),
        "base_models": _texts(front.get("base_model")),
        "datasets": _texts(front.get("datasets")),
    }


def _decode(data: bytes, problems: list[str]) -> str:
    if len(data) > MAX_CARD:
        problems.append("too_large")
        data = data[:MAX_CARD]
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        problems.append("not_utf8")
        return data.decode("utf-8", errors="replace")


def _quality(body: str, prose: str, facts: TrainingFacts) -> CardQuality:
    """Informative if the adapter was described by a person; else by the tools and templates."""
    if own_words(prose) >= _SOME_WORDS:
        return CardQuality.INFORMATIVE
    if facts.has_hyperparameters:
        return CardQuality.HYPERPARAMETERS
    if has_template_marks(body):
        return CardQuality.TEMPLATE
    if prose and facts.tool is not None:
        return CardQuality.GENERATED
    # A title, or a few words, are as uninformative as no card.
    return CardQuality.ABSENT


def _license(front: Mapping[str, Any]) -> str | None:
    value = front.get("license")
    if value is None:
        # The card template of TRL spells the key so, with the word "license" for a value.
        value = front.get("licence")
    if isinstance(value, list):
        value = value[0] if value else None
    if not isinstance(value, str):
        return None
    license_id = value.strip().lower()[:_MAX_ENTRY]
    return None if license_id in _LICENSE_PLACEHOLDERS else license_id


def _text(value: object) -> str | None:
    return value.strip()[:_MAX_ENTRY] or None if isinstance(value, str) else None


def _texts(value: object) -> tuple[str, ...]:
    """A text or a list of texts as distinct texts; entries of other types are skipped."""
    entries = value if isinstance(value, list) else [value]
    texts = (_text(entry) for entry in entries[:_MAX_ENTRIES])
    return tuple(dict.fromkeys(text for text in texts if text is not None))
