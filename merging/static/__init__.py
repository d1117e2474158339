"""Merges without a model: plan, cost, merge, inspection, random controls, folding into a base."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
