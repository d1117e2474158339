from .files import read_scores
from .intervals import paired_bootstrap
from .matrix import Ranking, ScoreMatrix, by_score, prior, score_matrix
from .metrics import (
    EXACT_MATCH,
    MOST_SAMPLES,
    OTHER_METRICS,
    SCORE_METRICS,
    SUCCESSORS,
    TASK_METRICS,
    ScoreMetric,
    metric_of,
    score_problem,
)
from .outcomes import (
    MOST_ITEMS,
    Outcomes,
    from_text,
    item_hash,
    list_sha,
    pack_bitmap,
    pack_margins,
    read_outcomes,
    to_text,
    unpack_bitmap,
    unpack_margins,
)
from .prediction import completion, from_like_tasks, likeness
from .racing import CAP, STEP, Measure, race
from .record import BASE, Score

__all__ = [
    "BASE",
    "CAP",
    "EXACT_MATCH",
    "MOST_ITEMS",
    "MOST_SAMPLES",
    "OTHER_METRICS",
    "SCORE_METRICS",
    "STEP",
    "SUCCESSORS",
    "TASK_METRICS",
    "Measure",
    "Outcomes",
    "Ranking",
    "Score",
    "ScoreMatrix",
    "ScoreMetric",
    "by_score",
    "completion",
    "from_like_tasks",
    "from_text",
    "item_hash",
    "likeness",
    "list_sha",
    "metric_of",
    "pack_bitmap",
    "pack_margins",
    "paired_bootstrap",
    "prior",
    "race",
    "read_outcomes",
    "read_scores",
    "score_matrix",
    "score_problem",
    "to_text",
    "unpack_bitmap",
    "unpack_margins",
]
