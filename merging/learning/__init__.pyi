from .adaptation import Adapted, adapt
from .adaptive import ADAPTIVE, find_adaptive
from .combination import ADAPT_RECORD
from .course import Recipe
from .gradients import centred, direction, exact_scores
from .training import TRAIN_RECORD, Settings, default_rates, train, worn
from .variants import VARIANTS

__all__ = [
    "ADAPTIVE",
    "ADAPT_RECORD",
    "TRAIN_RECORD",
    "VARIANTS",
    "Adapted",
    "Recipe",
    "Settings",
    "adapt",
    "centred",
    "default_rates",
    "direction",
    "exact_scores",
    "find_adaptive",
    "train",
    "worn",
]
