"""The configuration, header and weights of one LoRA adapter, and the names of its base model."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
