from .fields import FIELDS, AsciiLower, fold, query_row, stored_facts, texts_in
from .parser import parse
from .terms import Prefix, Query, texts_asked, to_text

__all__ = [
    "FIELDS",
    "AsciiLower",
    "Prefix",
    "Query",
    "fold",
    "parse",
    "query_row",
    "stored_facts",
    "texts_asked",
    "texts_in",
    "to_text",
]
