from .client import Hub, Page
from .exchange import HubSettings
from .folders import MARKERS, Folder, adapter_folders
from .rows import BadRow, ListedRepository, parse_row, reduce_row, valid_name
from .tree import RemoteFile
from .wire import check_endpoint

__all__ = [
    "MARKERS",
    "BadRow",
    "Folder",
    "Hub",
    "HubSettings",
    "ListedRepository",
    "Page",
    "RemoteFile",
    "adapter_folders",
    "check_endpoint",
    "parse_row",
    "reduce_row",
    "valid_name",
]
