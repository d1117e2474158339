from . import browse, likeness, listing, nearest, table
from .likeness import CopyRow
from .listing import matching_ids
from .nearest import Neighbour, NeighbourSearch, Subject, downhill, neighbours, sketch_cosine
from .news import CHANGES, CatalogChange, changes
from .ranking import SearchHit, SearchWeights, open_texts, search
from .rows import BY_NAME, COLUMNS, from_current, from_visible, hidden_notes, matching, of_base, plain_rows
from .texts import embed_cards, embed_new_cards
from .vectors import SPACES, BaseFingerprints, Cache, Fingerprints, base_space, indexes, matrix

__all__ = [
    "BY_NAME",
    "CHANGES",
    "COLUMNS",
    "SPACES",
    "BaseFingerprints",
    "Cache",
    "CatalogChange",
    "CopyRow",
    "Fingerprints",
    "Neighbour",
    "NeighbourSearch",
    "SearchHit",
    "SearchWeights",
    "Subject",
    "base_space",
    "browse",
    "changes",
    "downhill",
    "embed_cards",
    "embed_new_cards",
    "from_current",
    "from_visible",
    "hidden_notes",
    "indexes",
    "likeness",
    "listing",
    "matching",
    "matching_ids",
    "matrix",
    "nearest",
    "neighbours",
    "of_base",
    "open_texts",
    "plain_rows",
    "search",
    "sketch_cosine",
    "table",
]
