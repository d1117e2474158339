"""Measured scores: the matrix, files, metrics, prediction of missing scores, racing."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
