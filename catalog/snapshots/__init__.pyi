from .importing import ImportCounts, import_snapshot
from .layout import FORMAT, MANIFEST
from .verification import Manifest, verify_snapshot
from .writing import SnapshotChoice, SnapshotCounts, write_snapshot

__all__ = [
    "FORMAT",
    "MANIFEST",
    "ImportCounts",
    "Manifest",
    "SnapshotChoice",
    "SnapshotCounts",
    "import_snapshot",
    "verify_snapshot",
    "write_snapshot",
]
