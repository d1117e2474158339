from .encoder import (
    DEFAULT_MODEL,
    Embedder,
    check_vectors,
    chunks,
    content_of,
    has_content,
    load_embedder,
)
from .vectors import IndexState, Space, VectorIndex, VectorSource, check_index, open_index
from .words import LEAST_SCORED, AdapterText, WordHit, WordIndex, open_words

__all__ = [
    "DEFAULT_MODEL",
    "LEAST_SCORED",
    "AdapterText",
    "Embedder",
    "IndexState",
    "Space",
    "VectorIndex",
    "VectorSource",
    "WordHit",
    "WordIndex",
    "check_index",
    "check_vectors",
    "chunks",
    "content_of",
    "has_content",
    "load_embedder",
    "open_index",
    "open_words",
]
