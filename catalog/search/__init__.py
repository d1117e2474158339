"""Queries on a catalog: lists, search by words and meaning, nearest adapters, copies."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
