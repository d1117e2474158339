from . import frontmatter
from .cards import MAX_CARD, Card, card_from_facts, parse_card
from .guard import reading

__all__ = ["MAX_CARD", "Card", "card_from_facts", "frontmatter", "parse_card", "reading"]
