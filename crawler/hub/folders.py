"""A repository's file list → its adapter folders: root, subfolders, checkpoints, one of them main."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from crawler.hub.tree import RemoteFile

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
CARD = "README.md"
MARKERS = {CONFIG, WEIGHTS, "adapter_model.bin"}
_CHECKPOINT = re.compile(r"^checkpoint-(\d{1,12})$")


@dataclass(frozen=True)
class Folder:
    """One adapter folder: `files` are those directly in it; the card may be a parent's if it has none."""

    subfolder: str
    main: bool
    files: tuple[RemoteFile, ...]
    config: RemoteFile | None = None
    weights: RemoteFile | None = None
    card: RemoteFile | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the files directly in the folder."""
        return tuple(PurePosixPath(file.path).name for file in self.files)


def adapter_folders(files: Sequence[RemoteFile]) -> tuple[Folder, ...]:
    """All adapter folders of a repository, the main one first, then by path; empty without one.

    A folder counts when it directly holds an adapter_config.json or an adapter_model file.
    """
    inside: dict[str, dict[str, RemoteFile]] = defaultdict(dict)
    for file in files:
        folder, _, name = file.path.rpartition("/")
        inside[folder][name] = file
    paths = sorted(folder for folder, names in inside.items() if MARKERS & names.keys())
    main = min(paths, key=_rank, default="")
    paths.sort(key=lambda folder: (folder != main, folder))
    return tuple(
        Folder(
            subfolder=folder,
            main=folder == main,
            files=tuple(inside[folder][name] for name in sorted(inside[folder])),
            config=inside[folder].get(CONFIG),
            weights=inside[folder].get(WEIGHTS),
            card=_card(folder, inside),
        )
        for folder in paths
    )


def _rank(folder: str) -> tuple[int, int, int, str]:
    """The order of preference for main: the root, not a checkpoint, shallow, late checkpoints first."""
    parts = PurePosixPath(folder).parts
    steps = [int(match[1]) for part in parts if (match := _CHECKPOINT.match(part))]
    return (1 if steps else 0, len(parts), -max(steps, default=0), folder)


def _card(folder: str, inside: dict[str, dict[str, RemoteFile]]) -> RemoteFile | None:
    path = PurePosixPath(folder)
    for place in (path, *path.parents):
        key = "" if str(place) == "." else str(place)
        if CARD in inside.get(key, {}):
            return inside[key][CARD]
    return None
