from .cards import MAX_CARD, Card, parse_card
from .guard import UnreadableError, reading

__all__ = ["MAX_CARD", "Card", "UnreadableError", "parse_card", "reading"]
