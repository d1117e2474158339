"""Learning on a task: a new LoRA, the coefficients of members, the gradient of the base model."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
