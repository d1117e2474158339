from . import browse, likeness, nearest
from .likeness import Fingerprinted
from .nearest import Subject, downhill, neighbours
from .ranking import Weights, open_texts, search
from .texts import embed_cards
from .vectors import Fingerprints, indexes, matrix, vector_key

__all__ = [
    "Fingerprinted",
    "Fingerprints",
    "Subject",
    "Weights",
    "browse",
    "downhill",
    "embed_cards",
    "indexes",
    "likeness",
    "matrix",
    "nearest",
    "neighbours",
    "open_texts",
    "search",
    "vector_key",
]
