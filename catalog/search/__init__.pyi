from . import browse, likeness, nearest
from .nearest import Neighbour, Subject, downhill, neighbours, sketch_cosine
from .ranking import SearchHit, SearchWeights, open_texts, search
from .rows import BY_NAME, COLUMNS, from_current
from .texts import embed_cards
from .vectors import SPACES, Fingerprints, indexes, matrix

__all__ = [
    "BY_NAME",
    "COLUMNS",
    "SPACES",
    "Fingerprints",
    "Neighbour",
    "SearchHit",
    "SearchWeights",
    "Subject",
    "browse",
    "downhill",
    "embed_cards",
    "from_current",
    "indexes",
    "likeness",
    "matrix",
    "nearest",
    "neighbours",
    "open_texts",
    "search",
    "sketch_cosine",
]
