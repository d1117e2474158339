from .fields import FIELDS, AsciiLower, fold, query_row, stored_facts, texts_in
from .parser import parse
from .terms import And, Flag, Not, Prefix, Query, asks_for, texts_asked, to_text

__all__ = [
    "FIELDS",
    "And",
    "AsciiLower",
    "Flag",
    "Not",
    "Prefix",
    "Query",
    "asks_for",
    "fold",
    "parse",
    "query_row",
    "stored_facts",
    "texts_asked",
    "texts_in",
    "to_text",
]
