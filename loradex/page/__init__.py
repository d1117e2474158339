"""The page: a catalog in the browser, served on this machine or exported as a folder of files."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
