from .events import ProgressCallback, ProgressEvent, ProgressOption

__all__ = [
    "ProgressCallback",
    "ProgressEvent",
    "ProgressOption",
]
