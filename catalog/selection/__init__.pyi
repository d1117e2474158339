from .limits import Ranked, left_out_in_words
from .pinning import HIDDEN, candidates, documents_of, pin_members
from .selection import select
from .strategies import STRATEGIES, Question, Sources

__all__ = [
    "HIDDEN",
    "STRATEGIES",
    "Question",
    "Ranked",
    "Sources",
    "candidates",
    "documents_of",
    "left_out_in_words",
    "pin_members",
    "select",
]
