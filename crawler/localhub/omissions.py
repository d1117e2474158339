"""Which folders below a served one are not served, or served so that no crawl lists them, and why."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from crawler.hub import MARKERS
from crawler.localhub.folder import DATASETS, HIDDEN, HubFolder, HubRepository, is_name

LAYOUT = "a repository lies at OWNER/NAME"
CACHE = "models--"
_LONGEST = 96
# The tags that a crawl of every base model asks for; one of a base model asks by that.
_TAGS = frozenset({"peft", "lora", "unsloth", "trl", "axolotl", "llama-factory"})


@dataclass(frozen=True)
class Omission:
    """A folder by its path below the served one, and the reason why its content is not available as an
    adapter."""

    path: str
    reason: str


def omissions(folder: HubFolder) -> list[Omission]:
    """Every folder that is not served as a repository, and each repository that no crawl lists, by path."""
    result = list(_outside(folder))
    result += _omissions_of_listing(folder.scan())
    return sorted(result, key=lambda omission: omission.path)


def _outside(folder: HubFolder) -> Iterator[Omission]:
    if any((folder.root / name).is_file() for name in MARKERS):
        yield Omission(".", f"an adapter lies in the served folder itself; {LAYOUT}")
    for owner in _folders(folder, ""):
        if not isinstance(owner, str):
            yield owner
            continue
        inside = list(_folders(folder, owner))
        if owner == DATASETS:
            continue
        if owner.startswith(CACHE):
            yield Omission(owner, _cache(folder, owner))
        elif reason := _wrong_name(owner, "an owner"):
            yield Omission(owner, reason)
        else:
            if any((folder.root / owner / name).is_file() for name in MARKERS):
                yield Omission(owner, f"an adapter lies directly in it; {LAYOUT}")
            elif not inside:
                yield Omission(owner, f"it contains no folder; {LAYOUT}")
            yield from _of_owner(owner, inside)


def _of_owner(owner: str, inside: Iterable[str | Omission]) -> Iterator[Omission]:
    for name in inside:
        if not isinstance(name, str):
            yield name
        elif reason := _wrong_name(name, "a repository"):
            yield Omission(f"{owner}/{name}", reason)


def _folders(folder: HubFolder, below: str) -> Iterator[str | Omission]:
    """The names of the folders in one, by name; unreadable ones as an omission."""
    try:
        entries = sorted(os.scandir(folder.root / below), key=lambda entry: entry.name)
    except OSError as error:
        yield Omission(below or ".", f"it cannot be read ({error.strerror})")
        return
    for entry in entries:
        path = f"{below}/{entry.name}" if below else entry.name
        if entry.is_symlink() and not folder.holds(os.path.realpath(entry.path)):
            yield Omission(path, "it is a link that leads out of the served folder, or nowhere")
        elif entry.is_dir():
            yield entry.name


def _wrong_name(name: str, whose: str) -> str | None:
    """Why this is not a valid name of an owner or repository on the Hub, None if it is."""
    if is_name(name):
        return None
    if name in HIDDEN or name.startswith("."):
        return "it is hidden"
    reasons = (
        (len(name) > _LONGEST, f"its name is longer than {_LONGEST} characters"),
        ("--" in name, "its name contains --"),
        (".." in name, "its name contains .."),
        (name.endswith(".git"), "its name ends with .git"),
        (name.startswith("-") or name.endswith((".", "-")), "its name begins or ends with - or a dot"),
    )
    why = next(
        (text for applies, text in reasons if applies),
        "its name contains characters other than A-Z a-z 0-9 . _ -",
    )
    return f"{why}, which the name of {whose} cannot"


def _cache(folder: HubFolder, name: str) -> str:
    """Advice for a folder of the client library's cache."""
    place = "/".join(name.removeprefix(CACHE).split("--", 1))
    snapshots = sorted(path.name for path in (folder.root / name / "snapshots").glob("*") if path.is_dir())
    copy = f"; copy it: cp -rL {name}/snapshots/{snapshots[-1]} {place}" if snapshots else ""
    return f"it is of a cache of huggingface_hub, not a repository{copy}"


def _omissions_of_listing(repositories: Iterable[HubRepository]) -> Iterator[Omission]:
    """Repositories that are served, and that a crawl does not find or confuses with another one."""
    first: dict[str, str] = {}
    for repository in repositories:
        name = repository.repo_id
        other = first.setdefault(repository.identity, name)
        if other != name:
            yield Omission(name, f"it has the _id of {other} in its .hub.json; a crawl reads one of the two")
        if reason := _unfindable(repository):
            yield Omission(name, reason)


def _unfindable(repository: HubRepository) -> str | None:
    adapters = sorted(path for path in repository.files if path.rpartition("/")[2] in MARKERS)
    if any("/" not in path for path in adapters):
        return None
    tags = repository.tags if isinstance(repository.tags, list) else []
    if any(tag in _TAGS or str(tag).startswith("base_model:adapter:") for tag in tags):
        return None
    if not adapters:
        return "it contains no adapter, so no crawl lists it"
    deep = adapters[0].rpartition("/")[0]
    return f"its adapters lie too deep ({deep}) and its card has no tag peft, so no crawl lists it; {LAYOUT}"
