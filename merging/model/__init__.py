"""A base model ready to be asked, and the tasks and prompts that it is asked."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
