"""The catalog as a database: its tables, how it is opened, and all functions that write rows."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
