"""loradex: crawl, verify, screen, index, select and merge the LoRA adapters of a base model.

    import loradex

    with loradex.open("data") as catalog:
        pool = catalog.pool("mine")
    report = loradex.merge(pool, method="ties", rank=16, out="merged")

What is used is loaded when it is first named, so that the import itself loads neither torch nor SQLAlchemy.
"""

from __future__ import annotations

import lazy_loader

from loradex.packages import check_packages

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    """Loads a public name; raises ImportError where a folder of the caller hides a package of loradex."""
    check_packages()
    return _load(name)
