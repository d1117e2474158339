"""The stored measurements of a weights file, joined with a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from catalog.adapters import (
    AdapterConfig,
    AdapterFolder,
    FingerprintRecord,
    WeightsHealth,
    WeightsRecord,
    fingerprint_pattern,
    has_first_names,
    header_modules,
    health,
    parse_header,
)
from catalog.fingerprints.sketches import Fingerprint, Verdict, spectrum_norms, verdict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def record_of(fingerprint: Fingerprint) -> FingerprintRecord:
    """A fingerprint as it is stored: little-endian float32."""
    spectrum, delta, output = (
        v.astype("<f4").tobytes() for v in (fingerprint.spectrum, fingerprint.delta, fingerprint.output)
    )
    return FingerprintRecord(fingerprint.scaling_pattern, fingerprint.version, spectrum, delta, output)


def partial_reasons(folder: AdapterFolder, fingerprint: Fingerprint) -> tuple[str, ...]:
    """The reasons why the fingerprint of a local adapter does not cover its whole update."""
    lost = ("non_finite",) if None in fingerprint.norms.values() else ()
    return (*(feature.reason for feature in folder.partial), *lost)


def pattern_of(record: WeightsRecord, config: AdapterConfig) -> str:
    """The pattern of the fingerprint of a file whose header is known (`fingerprint_pattern`).

    Raises WeightsError for a broken header and ConfigError for patterns that give no scaling.
    """
    return fingerprint_pattern(parse_header(record.header or b"", record.size), config)


def health_of(record: WeightsRecord, config: AdapterConfig) -> tuple[WeightsHealth, Verdict] | None:
    """Norm and health of the update under a configuration, None where the values were not read under the
    names that it has now.

    Raises ConfigError for patterns that give no scaling.
    """
    if not record.fingerprints or record.header is None:
        return None
    header = parse_header(record.header, record.size)
    modules = header_modules(header, config)
    # Spectra do not include scalings: that of the plain pattern serves every adapter with its names.
    measured = record.fingerprint(fingerprint_pattern(header, config))
    if measured is None and has_first_names(header, config):
        measured = record.fingerprint("")
    if measured is None:
        return None
    norms = spectrum_norms(modules, spectrum_of(measured.spectrum))
    return health(norms, config), verdict(norms, config)


def spectrum_of(stored: bytes) -> NDArray[np.float32]:
    """The stored spectrum as (modules, 8): the norm of B A, then its leading singular values."""
    import numpy as np

    from catalog.fingerprints.sketches import LEADING

    return np.frombuffer(stored, dtype="<f4").reshape(-1, 1 + LEADING)
