from . import browse, likeness, nearest
from .nearest import Neighbour, Subject, downhill, neighbours, sketch_cosine
from .ranking import SearchHit, SearchWeights, open_texts, search
from .rows import BY_NAME, COLUMNS, StoredAdapter, from_current, is_refused
from .texts import embed_cards
from .vectors import SPACES, Fingerprints, indexes, matrix, vector_key

__all__ = [
    "BY_NAME",
    "COLUMNS",
    "SPACES",
    "Fingerprints",
    "Neighbour",
    "SearchHit",
    "SearchWeights",
    "StoredAdapter",
    "Subject",
    "browse",
    "downhill",
    "embed_cards",
    "from_current",
    "indexes",
    "is_refused",
    "likeness",
    "matrix",
    "nearest",
    "neighbours",
    "open_texts",
    "search",
    "sketch_cosine",
    "vector_key",
]
