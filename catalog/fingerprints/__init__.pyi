from .copies import (
    LEVELS,
    Group,
    cosines,
    duplicates,
    near_pairs,
    representatives,
    rounding,
)
from .exact import Cosine, exact_cosine
from .measurements import health_of, partial_reasons, pattern_of, record_of, spectrum_of
from .processes import MOST_PROCESSES, FingerprintPool, Measurement, measure_file
from .series import Family, families
from .sketches import (
    DELTA_SIZE,
    FINGERPRINT_VERSION,
    OUTPUT_SIZE,
    Fingerprint,
    fingerprint,
    output_sketch,
    signs,
    stable_rank,
    use_one_thread,
    verdict,
)

__all__ = [
    "DELTA_SIZE",
    "FINGERPRINT_VERSION",
    "LEVELS",
    "MOST_PROCESSES",
    "OUTPUT_SIZE",
    "Cosine",
    "Family",
    "Fingerprint",
    "FingerprintPool",
    "Group",
    "Measurement",
    "cosines",
    "duplicates",
    "exact_cosine",
    "families",
    "fingerprint",
    "health_of",
    "measure_file",
    "near_pairs",
    "output_sketch",
    "partial_reasons",
    "pattern_of",
    "record_of",
    "representatives",
    "rounding",
    "signs",
    "spectrum_of",
    "stable_rank",
    "use_one_thread",
    "verdict",
]
