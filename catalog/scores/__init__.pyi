from .files import read_scores
from .intervals import paired_bootstrap
from .matrix import Ranking, ScoreMatrix, by_score, prior, score_matrix
from .metrics import EXACT_MATCH, MOST_SAMPLES, OTHER_METRICS, SUCCESSORS, score_problem
from .prediction import completion, from_like_tasks, likeness
from .racing import CAP, STEP, Measure, race
from .record import BASE, Score

__all__ = [
    "BASE",
    "CAP",
    "EXACT_MATCH",
    "MOST_SAMPLES",
    "OTHER_METRICS",
    "STEP",
    "SUCCESSORS",
    "Measure",
    "Ranking",
    "Score",
    "ScoreMatrix",
    "by_score",
    "completion",
    "from_like_tasks",
    "likeness",
    "paired_bootstrap",
    "prior",
    "race",
    "read_scores",
    "score_matrix",
    "score_problem",
]
