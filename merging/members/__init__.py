"""Adapter folders as members of a merge, and the writer of the folder that a merge makes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
