from .limits import Ranked, left_out_in_words
from .pinning import candidates, documents_of, pin_members
from .selection import select
from .strategies import STRATEGIES, Question, Sources

__all__ = [
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
