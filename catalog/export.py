"""A pool as files: folders that PEFT loads, a mergekit or vLLM recipe, a Hub in a folder, or a list of ids.

An export is made beside its place and appears by one rename. Every byte is compared with the manifest's
sha256 on the way, and `verify_files` compares again whenever asked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from catalog.errors import PoolError, StorageError
from catalog.files import copy_file, replace_folder, temporary_folder
from catalog.pools import MANIFEST_NAME, Manifest, Member, PinnedFile, Problem

Form = Literal["peft", "mergekit", "vllm", "hub", "ids"]
FORMS: tuple[Form, ...] = ("peft", "mergekit", "vllm", "hub", "ids")
ADAPTERS = "adapters"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Content:
    """The bytes of a pinned file: in memory, or in a file to copy."""

    data: bytes | None = None
    path: Path | None = None


Fetch = Callable[[Member, PinnedFile], Content]
Progress = Callable[[int, int], None]


def export(
    manifest: Manifest,
    to: Path,
    form: Form,
    fetch: Fetch | None,
    progress: Progress,
) -> Path:
    """The folder NAME-DIGEST below `to` that holds the pool in this format; one that is there is replaced.

    With `fetch` the adapters' files are copied into it (formats peft, mergekit, vllm and hub); without, only
    recipes and ids that name the Hub. Raises PoolError for bytes that are not the pinned ones and
    StorageError where the disk refuses.
    """
    if fetch is None and form in ("peft", "hub"):
        raise PoolError(f"The format {form} holds the weights; add --weights.")
    target = to / (manifest.folder_name if form in ("peft", "hub") else f"{manifest.folder_name}-{form}")
    try:
        to.mkdir(parents=True, exist_ok=True)
        with temporary_folder(to) as temporary:
            folder = temporary / "pool"
            folder.mkdir()
            (folder / MANIFEST_NAME).write_bytes(manifest.canonical())
            if fetch is not None and form != "ids":
                _write_members(manifest, folder, form, fetch, progress)
            for name, text in _recipes(manifest, form, local=fetch is not None).items():
                (folder / name).write_text(text, encoding="utf-8", newline="\n")
            replace_folder(folder, target, temporary)
    except OSError as error:
        raise StorageError(f"The pool cannot be written below {to}: {error.strerror}.") from error
    return target


def member_folder(member: Member, form: Form = "peft") -> Path:
    """Where a member's files are within an export."""
    if form == "hub":
        return Path(*member.repository.split("/"), *filter(None, member.subfolder.split("/")))
    return Path(ADAPTERS) / member.folder_name


def _write_members(
    manifest: Manifest,
    folder: Path,
    form: Form,
    fetch: Fetch,
    progress: Progress,
) -> None:
    for done, member in enumerate(manifest.members):
        progress(done, len(manifest.members))
        place = folder / member_folder(member, form)
        place.mkdir(parents=True, exist_ok=True)
        for file in member.files:
            _write(fetch(member, file), place / file.name)
            if reason := _difference(place / file.name, file):
                raise PoolError(f"{member.adapter}: {file.name} {reason}; nothing was exported.")
        if form == "hub":
            facts = {"_id": member.hub_id, "sha": member.commit}
            root = folder.joinpath(*member.repository.split("/"))
            (root / ".hub.json").write_text(
                json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8"
            )
    progress(len(manifest.members), len(manifest.members))


def _write(content: Content, place: Path) -> None:
    if content.path is None:
        place.write_bytes(content.data or b"")
    else:
        copy_file(content.path, place)


def _recipes(manifest: Manifest, form: Form, *, local: bool) -> dict[str, str]:
    """The text files of a format by name."""
    if form == "mergekit":
        return {"mergekit.yaml": _mergekit(manifest, local=local)}
    if form == "vllm":
        return {"vllm.txt": "".join(f"{line}\n" for line in _vllm(manifest, local=local))}
    if form == "ids":
        return {"ids.txt": "".join(f"{member.reference}\n" for member in manifest.members)}
    return {}


def _places(manifest: Manifest, *, local: bool) -> Sequence[tuple[Member, str]]:
    """Each member with the words that name it to other programs: a folder, or an id of the Hub."""
    if not local and (inside := next((m for m in manifest.members if m.subfolder), None)):
        raise PoolError(f"{inside.adapter} lies in a subfolder, which others cannot name; add --weights.")
    return [
        (member, member_folder(member).as_posix() if local else member.repository)
        for member in manifest.members
    ]


def _mergekit(manifest: Manifest, *, local: bool) -> str:
    """A recipe of equal weights for mergekit, which reads BASE+LORA and BASE@COMMIT; JSON is YAML."""
    if manifest.base is None:
        raise PoolError("The pool has no one base model, so there is no recipe for mergekit.")
    weight = 1 / max(len(manifest.members), 1)
    models = [
        f"  - model: {json.dumps(f'{manifest.base}+{place}' + ('' if local else f'@{member.commit}'))}\n"
        f"    parameters: {{weight: {weight:.6g}}}\n"
        for member, place in _places(manifest, local=local)
    ]
    where = "# Run mergekit-yaml in this folder: paths are relative to it.\n" if local else ""
    base = f"base_model: {json.dumps(manifest.canonical_base())}\n"
    head = f"{where}{base}merge_method: task_arithmetic\ndtype: bfloat16\n"
    return head + "models:\n" + "".join(models)


def _vllm(manifest: Manifest, *, local: bool) -> list[str]:
    """One JSON a line, each an argument of `vllm serve --lora-modules`."""
    return [
        json.dumps({"name": member.folder_name, "path": place, "base_model_name": manifest.canonical_base()})
        for member, place in _places(manifest, local=local)
    ]


def verify_files(
    manifest: Manifest, place: Callable[[Member, PinnedFile], Path | None], progress: Progress
) -> list[Problem]:
    """The files of a pool that are missing or have other bytes; `place` says where each should be.

    None as a place passes a file over. Every byte is read.
    """
    found: list[Problem] = []
    for done, member in enumerate(manifest.members):
        progress(done, len(manifest.members))
        for file in member.files:
            path = place(member, file)
            if path is None:
                continue
            if not path.is_file():
                found.append(Problem(member.adapter, "missing", f"{member.adapter} has no {file.name}."))
            elif reason := _difference(path, file):
                found.append(Problem(member.adapter, "changed", f"{member.adapter}: {file.name} {reason}."))
    progress(len(manifest.members), len(manifest.members))
    return found


def in_export(manifest: Manifest, folder: Path) -> Callable[[Member, PinnedFile], Path] | None:
    """Where the files of an exported pool are: below `adapters/`, or as in a Hub; None where it has none."""
    forms: tuple[Form, ...] = ("peft", "hub")
    for form in forms:
        if any((folder / member_folder(member, form)).is_dir() for member in manifest.members):
            return partial(_place, folder, form)
    return None


def _place(folder: Path, form: Form, member: Member, file: PinnedFile) -> Path:
    return folder / member_folder(member, form) / file.name


def _difference(path: Path, file: PinnedFile) -> str | None:
    """Why the bytes are not the pinned ones, None where they are."""
    size = path.stat().st_size
    if size != file.size:
        return f"has {size:,} bytes where {file.size:,} were pinned"
    digest = hashlib.sha256()
    with path.open("rb") as opened:
        while chunk := opened.read(_CHUNK):
            digest.update(chunk)
    return None if digest.hexdigest() == file.sha256 else "has other bytes than those pinned"
