"""The outputs of a model for prompts: likelihoods, losses, texts, and the scores of adapters on tasks."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
