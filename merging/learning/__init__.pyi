from .adaptation import Adaptation, adapt
from .adaptive import ADAPTIVE, find_adaptive
from .combination import ADAPT_RECORD
from .continuation import Continuation
from .course import Recipe
from .curvature import Curvature, curvature_at_start, largest_eigenvalue
from .gradients import center_scores, direction, exact_scores
from .machine import (
    adapter_bytes,
    adapters_that_fit,
    free_memory,
    generating_speed,
    largest_batch,
    random_base,
    reading_speed,
    step_seconds,
    step_tokens,
)
from .training import TRAIN_RECORD, TrainingSettings, TrainReport, default_rates, train, wear_adapter
from .variants import VARIANTS

__all__ = [
    "ADAPTIVE",
    "ADAPT_RECORD",
    "TRAIN_RECORD",
    "VARIANTS",
    "Adaptation",
    "Continuation",
    "Curvature",
    "Recipe",
    "TrainReport",
    "TrainingSettings",
    "adapt",
    "adapter_bytes",
    "adapters_that_fit",
    "center_scores",
    "curvature_at_start",
    "default_rates",
    "direction",
    "exact_scores",
    "find_adaptive",
    "free_memory",
    "generating_speed",
    "largest_batch",
    "largest_eigenvalue",
    "random_base",
    "reading_speed",
    "step_seconds",
    "step_tokens",
    "train",
    "wear_adapter",
]
