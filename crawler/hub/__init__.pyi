from .budget import MARGIN, Draw, Kind, Lane, Ledger, RateLimit, SharedBudget, usable
from .client import Hub, Page
from .datasets import upload_dataset
from .exchange import HubSettings, limits_of
from .folders import MARKERS, Folder, adapter_folders
from .rows import BadRow, ListedRepository, parse_row, reduce_row
from .tree import RemoteFile
from .wire import check_endpoint

__all__ = [
    "MARGIN",
    "MARKERS",
    "BadRow",
    "Draw",
    "Folder",
    "Hub",
    "HubSettings",
    "Kind",
    "Lane",
    "Ledger",
    "ListedRepository",
    "Page",
    "RateLimit",
    "RemoteFile",
    "SharedBudget",
    "adapter_folders",
    "check_endpoint",
    "limits_of",
    "parse_row",
    "reduce_row",
    "upload_dataset",
    "usable",
]
