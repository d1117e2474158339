from . import errors
from .catalog import Catalog, open
from .comparison import fingerprint
from .diagnosis import DoctorReport, doctor
from .engines import EngineCount, EngineRow, EngineVerdict, count_engines, engines, normalise, runs_in
from .errors import LoradexError, NotFoundError, UsageError
from .events import ProgressCallback, ProgressEvent, ProgressOption
from .hub import serve_hub
from .importing import ImportedTasks, TaskRow, import_paper_tasks, import_task, list_tasks
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
from .page import PageExport, export_page, serve_page
from .pool import Pool, PoolCheck, PoolExport
from .rows import AdapterDetails, AdapterRow, Rows
from .snapshots import SnapshotCheck, SnapshotUpload, push_snapshot, verify_snapshot
from .studies import (
    StudyOutcome,
    StudyPlan,
    StudyReport,
    StudyRequest,
    StudyRow,
    built_in_studies,
    report_study,
    run_study,
)

__all__ = [
    "AdaptReport",
    "AdapterDetails",
    "AdapterRow",
    "AdaptiveRow",
    "Catalog",
    "DoctorReport",
    "EngineCount",
    "EngineRow",
    "EngineVerdict",
    "ImportedTasks",
    "LoradexError",
    "MergeRequest",
    "MethodParameter",
    "MethodRow",
    "NotFoundError",
    "PageExport",
    "Pool",
    "PoolCheck",
    "PoolExport",
    "ProgressCallback",
    "ProgressEvent",
    "ProgressOption",
    "Rows",
    "SnapshotCheck",
    "SnapshotUpload",
    "StudyOutcome",
    "StudyPlan",
    "StudyReport",
    "StudyRequest",
    "StudyRow",
    "TaskRow",
    "TaskScores",
    "UsageError",
    "adapt",
    "adaptive_methods",
    "built_in_studies",
    "count_engines",
    "doctor",
    "engines",
    "errors",
    "evaluate",
    "export_page",
    "fingerprint",
    "fold",
    "import_paper_tasks",
    "import_task",
    "inspect",
    "list_tasks",
    "load_base",
    "load_task",
    "load_tasks",
    "merge",
    "methods",
    "normalise",
    "open",
    "push_snapshot",
    "report_study",
    "run_study",
    "runs_in",
    "serve_hub",
    "serve_page",
    "train",
    "verify_snapshot",
]
