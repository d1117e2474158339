"""A Hub in a folder: repositories on disk, served over the Hub's HTTP protocol to the real clients.

`folder` says what the API would say of a folder, `api` answers requests with it, `server` listens.
"""

from catalog.extras import require_extra

require_extra("serve", "A Hub in a folder")

from crawler.localhub.folder import HubFolder  # noqa: E402
from crawler.localhub.omissions import Omission, omissions  # noqa: E402
from crawler.localhub.server import LocalHub, LocalServer, create_app, serve, serve_app  # noqa: E402

__all__ = [
    "HubFolder",
    "LocalHub",
    "LocalServer",
    "Omission",
    "create_app",
    "omissions",
    "serve",
    "serve_app",
]
