from . import errors
from .catalog import Catalog, open
from .comparison import fingerprint
from .errors import LoradexError, NotFoundError, UsageError
from .events import ProgressCallback, ProgressEvent, ProgressOption
from .merging import MergeRequest, MethodParameter, MethodRow, fold, inspect, merge, methods
from .models import (
    AdaptiveRow,
    AdaptReport,
    TaskScores,
    adapt,
    adaptive_methods,
    evaluate,
    load_base,
    load_task,
    load_tasks,
    train,
)
from .pool import Pool, PoolCheck, PoolExport
from .rows import AdapterDetails, AdapterRow, Rows

__all__ = [
    "AdaptReport",
    "AdapterDetails",
    "AdapterRow",
    "AdaptiveRow",
    "Catalog",
    "LoradexError",
    "MergeRequest",
    "MethodParameter",
    "MethodRow",
    "NotFoundError",
    "Pool",
    "PoolCheck",
    "PoolExport",
    "ProgressCallback",
    "ProgressEvent",
    "ProgressOption",
    "Rows",
    "TaskScores",
    "UsageError",
    "adapt",
    "adaptive_methods",
    "errors",
    "evaluate",
    "fingerprint",
    "fold",
    "inspect",
    "load_base",
    "load_task",
    "load_tasks",
    "merge",
    "methods",
    "open",
    "train",
]
