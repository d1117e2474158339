"""Caches for similarity search: vectors by cosine (FAISS), texts by words (FTS5); a text encoder."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
