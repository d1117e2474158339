from . import errors
from .catalog import Catalog, open
from .comparison import fingerprint
from .errors import LoradexError, NotFoundError, UsageError
from .events import ProgressCallback, ProgressEvent, ProgressOption
from .merging import MergeRequest, MethodParameter, MethodRow, fold, inspect, merge, methods
from .rows import AdapterDetails, AdapterRow, Rows

__all__ = [
    "AdapterDetails",
    "AdapterRow",
    "Catalog",
    "LoradexError",
    "MergeRequest",
    "MethodParameter",
    "MethodRow",
    "NotFoundError",
    "ProgressCallback",
    "ProgressEvent",
    "ProgressOption",
    "Rows",
    "UsageError",
    "errors",
    "fingerprint",
    "fold",
    "inspect",
    "merge",
    "methods",
    "open",
]
