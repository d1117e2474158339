from .fields import FIELDS, fold, query_row, texts_in
from .parser import parse
from .terms import Prefix, Query, texts_asked, to_text

__all__ = ["FIELDS", "Prefix", "Query", "fold", "parse", "query_row", "texts_asked", "texts_in", "to_text"]
