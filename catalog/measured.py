"""What is on record of a weights file's values, joined with a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from catalog.adapter import AdapterConfig, parse_header
from catalog.fingerprint import Fingerprint, Verdict, spectrum_norms, verdict
from catalog.records import FingerprintRecord, WeightsRecord
from catalog.weights import WeightsHealth, header_modules, health, scaling_pattern

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def record_of(made: Fingerprint) -> FingerprintRecord:
    """A fingerprint as it is stored: little-endian float32."""
    spectrum, delta, output = (v.astype("<f4").tobytes() for v in (made.spectrum, made.delta, made.output))
    return FingerprintRecord(made.scaling_pattern, made.version, spectrum, delta, output)


def modules_of(header: bytes, size: int) -> tuple[str, ...]:
    """The complete modules in the header of a file of `size` bytes, sorted; raises WeightsError."""
    return header_modules(parse_header(header, size))


def pattern_of(record: WeightsRecord, config: AdapterConfig) -> str:
    """How the scaling differs between the modules of a file whose header is known.

    Raises WeightsError for a broken header and ConfigError for patterns that give no scaling.
    """
    return scaling_pattern(modules_of(record.header or b"", record.size), config)


def health_of(record: WeightsRecord, config: AdapterConfig) -> tuple[WeightsHealth, Verdict] | None:
    """Norm and health of the update under a configuration, None where the values were not read.

    Raises ConfigError for patterns that give no scaling.
    """
    if not record.fingerprints or record.header is None:
        return None
    modules = modules_of(record.header, record.size)
    norms = spectrum_norms(modules, spectrum_of(record.fingerprints[0].spectrum))
    return health(norms, config), verdict(norms, config)


def spectrum_of(stored: bytes) -> NDArray[np.float32]:
    """The stored spectrum as (modules, 8): the norm of B A, then its leading singular values."""
    import numpy as np

    from catalog.fingerprint import LEADING

    return np.frombuffer(stored, dtype="<f4").reshape(-1, 1 + LEADING)
