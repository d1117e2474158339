from . import browse, likeness, nearest
from .likeness import Fingerprinted
from .nearest import Neighbour, Subject, downhill, neighbours, sketch_cosine
from .ranking import SearchHit, SearchWeights, open_texts, search
from .texts import embed_cards
from .vectors import SPACES, Fingerprints, indexes, matrix, vector_key

__all__ = [
    "SPACES",
    "Fingerprinted",
    "Fingerprints",
    "Neighbour",
    "SearchHit",
    "SearchWeights",
    "Subject",
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
    "sketch_cosine",
    "vector_key",
]
