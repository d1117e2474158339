from .importing import ImportCounts, import_snapshot
from .layout import FORMAT, MANIFEST, TABLES
from .sampling import SampledAdapter, sample_adapters
from .verification import SnapshotFile, SnapshotManifest, read_manifest, verify_rows, verify_snapshot
from .writing import SnapshotChoice, SnapshotCounts, write_snapshot

__all__ = [
    "FORMAT",
    "MANIFEST",
    "TABLES",
    "ImportCounts",
    "SampledAdapter",
    "SnapshotChoice",
    "SnapshotCounts",
    "SnapshotFile",
    "SnapshotManifest",
    "import_snapshot",
    "read_manifest",
    "sample_adapters",
    "verify_rows",
    "verify_snapshot",
    "write_snapshot",
]
