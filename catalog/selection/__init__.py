"""Selecting a pool: candidates, strategies that rank them, limits, the manifest and its controls."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
