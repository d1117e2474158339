"""The other packages of loradex, whose names another folder may hide."""

from __future__ import annotations

import importlib.util
from pathlib import Path

NAMES = ("catalog", "cli", "crawler", "merging", "migrations", "studies")


def check_packages() -> None:
    """Returns if `import` reaches loradex's own packages; imports none of them.

    Raises ImportError with one sentence that names the file or folder which hides a package.
    """
    home = Path(__file__).resolve().parents[1]
    for name in NAMES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ImportError(f"The package {name} of loradex is not in {home}; install loradex again.")
        origin = Path(spec.origin)
        if origin.resolve() != home / name / "__init__.py":
            place = origin.parent if origin.name == "__init__.py" else origin
            raise ImportError(
                f"{place} hides the package {name} of loradex, which is in {home}; "
                f"remove {place.parent} from PYTHONPATH, or work in another folder."
            )
