from . import verified
from .blobs import Blob, BlobStore, BlobWriter, Damage, temporary_store
from .cache import DAMAGES, open_cache, read_facts, write_cache
from .disk import (
    at_work,
    copy_file,
    in_use,
    is_refused,
    may_write,
    read_limited,
    read_up_to,
    remove_abandoned,
    replace_file,
    replace_folder,
    sync,
    temporary_folder,
)
from .paths import unsafe_path
from .storable import UNSTORABLE, clean_json, clean_text
from .strictjson import LFS_POINTER, UTF8_BOM, load_json
from .strictyaml import (
    CORE_TAGS,
    MOST_DEPTH,
    MOST_NODES,
    BoundedLoader,
    YamlError,
    check_events,
    read_yaml,
)
from .verified import Verified, digest_of

__all__ = [
    "CORE_TAGS",
    "DAMAGES",
    "LFS_POINTER",
    "MOST_DEPTH",
    "MOST_NODES",
    "UNSTORABLE",
    "UTF8_BOM",
    "Blob",
    "BlobStore",
    "BlobWriter",
    "BoundedLoader",
    "Damage",
    "Verified",
    "YamlError",
    "at_work",
    "check_events",
    "clean_json",
    "clean_text",
    "copy_file",
    "digest_of",
    "in_use",
    "is_refused",
    "load_json",
    "may_write",
    "open_cache",
    "read_facts",
    "read_limited",
    "read_up_to",
    "read_yaml",
    "remove_abandoned",
    "replace_file",
    "replace_folder",
    "sync",
    "temporary_folder",
    "temporary_store",
    "unsafe_path",
    "verified",
    "write_cache",
]
