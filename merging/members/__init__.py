"""Adapter folders as members of a merge, and the writer of a merge's folder."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
