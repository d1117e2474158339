from .importing import ImportCounts, import_snapshot
from .layout import FORMAT, MANIFEST, TABLES
from .verification import Manifest, SnapshotFile, read_manifest, verify_snapshot
from .writing import SnapshotChoice, SnapshotCounts, write_snapshot

__all__ = [
    "FORMAT",
    "MANIFEST",
    "TABLES",
    "ImportCounts",
    "Manifest",
    "SnapshotChoice",
    "SnapshotCounts",
    "SnapshotFile",
    "import_snapshot",
    "read_manifest",
    "verify_snapshot",
    "write_snapshot",
]
