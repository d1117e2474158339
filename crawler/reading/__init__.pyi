from . import frontmatter
from .cards import MAX_CARD, Card, parse_card
from .guard import reading

__all__ = ["MAX_CARD", "Card", "frontmatter", "parse_card", "reading"]
