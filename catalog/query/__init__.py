"""The filter language: text becomes a query for the database and for plain rows alike."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
