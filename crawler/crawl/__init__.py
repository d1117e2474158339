"""One crawl: what is asked for, pages, items, screening, and what came of each."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
