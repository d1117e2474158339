"""Files on this machine: stored by digest, written atomically, read within limits."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
