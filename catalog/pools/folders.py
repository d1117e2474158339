"""A pool as files: folders that PEFT loads, a mergekit or vLLM recipe, a Hub in a folder, or a list of ids.

An export is written to a temporary folder and appears by one rename. Every byte is compared with the
manifest's sha256. If PEFT would not load a file, a changed one is written in its place (`catalog.adapters`),
and export.json has the sha256 of both; `verify_files` compares them again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from catalog.adapters import Engine, engine_problems, load_problems, make_loadable
from catalog.errors import ConfigError, PoolError, StorageError
from catalog.files import (
    Verified,
    copy_file,
    digest_of,
    load_json,
    read_limited,
    replace_folder,
    temporary_folder,
)
from catalog.pools.manifest import MANIFEST_NAME, Manifest, Member, PinnedFile, PoolProblem
from catalog.pools.recipes import ADAPTERS, check_recipe, recipes

Form = Literal["peft", "mergekit", "vllm", "sglang", "gguf", "ollama", "lm-eval", "hub", "ids"]
FORMS: tuple[Form, ...] = get_args(Form)
# Forms that are nothing without the files.
_WITH_WEIGHTS = ("peft", "gguf", "ollama", "hub")
EXPORT_RECORD = "export.json"
RECORD_FORMAT = "loradex-export/1"
_MOST_RECORD = 64 * 1024 * 1024


@dataclass(frozen=True)
class Content:
    """The bytes of a pinned file: in memory, or in a file to copy."""

    data: bytes | None = None
    path: Path | None = None


@dataclass(frozen=True)
class WrittenFile:
    """A file of an export: the sha256 that the manifest pins, and size and sha256 of what was written."""

    source: str
    written: str
    size: int


@dataclass(frozen=True)
class ExportRecord:
    """What export.json says of a pool's files, by their paths in the export; `as_is`: no file was changed.

    `added` are files beside the pinned ones, such as adapter.gguf.
    """

    pool: str
    as_is: bool
    files: Mapping[str, WrittenFile]
    added: Mapping[str, PinnedFile] = field(default_factory=dict)

    def canonical(self) -> bytes:
        """The bytes of export.json."""
        files = [{"path": path, **asdict(file)} for path, file in sorted(self.files.items())]
        document = {"format": RECORD_FORMAT, "pool": self.pool, "as_is": self.as_is, "files": files}
        if self.added:
            document["added"] = [
                {"path": path, "size": file.size, "sha256": file.sha256}
                for path, file in sorted(self.added.items())
            ]
        return f"{json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False)}\n".encode()


Fetch = Callable[[Member, PinnedFile], Content]
Progress = Callable[[int, int], None]


def export(
    manifest: Manifest,
    to: Path,
    form: Form,
    fetch: Fetch | None,
    progress: Progress,
    *,
    as_is: bool = False,
    rewrite: Callable[[Path], None] | None = None,
    engines: Sequence[Engine] | None = None,
) -> Path:
    """Writes the folder NAME-DIGEST below `to` with the pool in this format, replacing an existing one.

    With `fetch` the adapters' files are copied into it (all formats but ids); without, only recipes and ids
    that name the Hub. Files that PEFT would not load are changed so that it does, except in
    the format hub or with `as_is`; `rewrite` may then change a member's folder further. `engines` have the
    rules of recipes, by default the program's own. Raises PoolError for bytes that are not the pinned ones
    and StorageError if writing fails.
    """
    if fetch is None and form in _WITH_WEIGHTS:
        raise PoolError(f"The format {form} contains the weights; add `weights=True`.")
    check_recipe(manifest, form)
    target = to / (manifest.folder_name if form in ("peft", "hub") else f"{manifest.folder_name}-{form}")
    try:
        to.mkdir(parents=True, exist_ok=True)
        with temporary_folder(to) as temporary:
            folder = temporary / "pool"
            folder.mkdir()
            (folder / MANIFEST_NAME).write_bytes(manifest.canonical())
            if fetch is not None and form != "ids":
                _write_members(manifest, folder, form, fetch, progress)
                if form != "hub":
                    _write_record(manifest, folder, as_is=as_is, rewrite=rewrite)
            exported = folder if fetch is not None else None
            for name, text in recipes(manifest, form, exported, engines).items():
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
            content = fetch(member, file)
            if content.path is None:
                (place / file.name).write_bytes(content.data or b"")
            else:
                copy_file(content.path, place / file.name)
            if reason := _difference(place / file.name, file):
                raise PoolError(f"{member.adapter}: {file.name} {reason}; nothing was exported.")
        if form == "hub":
            facts = {"_id": member.hub_id, "sha": member.commit}
            root = folder.joinpath(*member.repository.split("/"))
            (root / ".hub.json").write_text(
                json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8"
            )
    progress(len(manifest.members), len(manifest.members))


def _write_record(
    manifest: Manifest, folder: Path, *, as_is: bool, rewrite: Callable[[Path], None] | None
) -> None:
    """Changes the members' folders so that PEFT loads them, unless `as_is`, and writes export.json."""
    files: dict[str, WrittenFile] = {}
    added: dict[str, PinnedFile] = {}
    for member in manifest.members:
        place = folder / member_folder(member)
        if not as_is:
            make_loadable(place)
            if rewrite is not None:
                rewrite(place)
        for file in member.files:
            written = place / file.name
            path = (member_folder(member) / file.name).as_posix()
            files[path] = WrittenFile(file.sha256, digest_of(written), written.stat().st_size)
        for other in sorted({path.name for path in place.iterdir()} - {file.name for file in member.files}):
            path = (member_folder(member) / other).as_posix()
            added[path] = PinnedFile(other, (place / other).stat().st_size, digest_of(place / other))
    record = ExportRecord(manifest.digest, as_is, files, added)
    (folder / EXPORT_RECORD).write_bytes(record.canonical())


def read_record(folder: Path) -> ExportRecord | None:
    """The content of export.json in an export; None if it is missing, as in exports of earlier versions.

    Raises PoolError for an invalid file.
    """
    file = folder / EXPORT_RECORD
    if not file.is_file():
        return None
    advice = "export the pool again"
    data = read_limited(file, _MOST_RECORD, kind="a record of an export", advice=advice, error=PoolError)
    try:
        document = load_json(data, max_bytes=_MOST_RECORD)
        if not isinstance(document, dict) or document["format"] != RECORD_FORMAT:
            raise ValueError(f"it does not have the format {RECORD_FORMAT}")
        rows = [dict(row) for row in document["files"]]
        files = {str(row.pop("path")): WrittenFile(**row) for row in rows}
        rows = [dict(row) for row in document.get("added", ())]
        added = {
            str(row["path"]): PinnedFile(str(row["path"]).rpartition("/")[2], row["size"], row["sha256"])
            for row in rows
        }
        record = ExportRecord(str(document["pool"]), document["as_is"] is True, files, added)
        if record.canonical() != data:
            raise ValueError("it was edited")
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise PoolError(f"{file} cannot be used: {error}; {advice}.") from error
    return record


def load_problems_of(manifest: Manifest, folder: Path) -> list[PoolProblem]:
    """The members of an export that plain PEFT does not load completely, each with the reasons."""
    problems = []
    for member in manifest.members:
        where = _folder_of(manifest, folder, member)
        reasons = load_problems(where) if where is not None else ()
        if reasons:
            problems.append(PoolProblem(member.adapter, "peft", f"{member.adapter}: {'; '.join(reasons)}."))
    return problems


def _folder_of(manifest: Manifest, folder: Path, member: Member) -> Path | None:
    """The folder of a member's files in an export; None if it has none."""
    place = in_export(manifest, folder)
    where = place(member, member.files[0]).parent if place is not None and member.files else None
    return where if where is not None and where.is_dir() else None


def misread_members(
    manifest: Manifest, folder: Path, engines: Sequence[Engine] | None = None
) -> dict[str, list[str]]:
    """Warnings about engines other than PEFT for the members of an export, each with the members
    concerned."""
    members_by_engine: dict[str, list[str]] = {}
    for member in manifest.members:
        where = _folder_of(manifest, folder, member)
        for sentence in engine_problems(where, engines) if where is not None else ():
            members_by_engine.setdefault(sentence, []).append(member.adapter)
    return members_by_engine


def rewritten_members(manifest: Manifest, record: ExportRecord) -> list[str]:
    """The members of which an export holds a file in other bytes than the pinned ones, in their order."""
    changed = {path for path, file in record.files.items() if file.source != file.written}
    return [
        member.adapter
        for member in manifest.members
        if any((member_folder(member) / file.name).as_posix() in changed for file in member.files)
    ]


def verify_files(
    manifest: Manifest,
    place: Callable[[Member, PinnedFile], Path | None],
    progress: Progress,
    record: ExportRecord | None = None,
    verified: Verified | None = None,
) -> list[PoolProblem]:
    """The files of a pool that are missing or have other bytes; `place` gives the path of each.

    A file whose place is None is skipped. Every byte is read, and compared with the record of an export for
    the pinned file, or without a record with the pinned file itself. With `verified` files are skipped that
    were read before and did not change since.
    """
    problems: list[PoolProblem] = []
    for done, member in enumerate(manifest.members):
        progress(done, len(manifest.members))
        for file in member.files:
            path = place(member, file)
            if path is None:
                continue
            if not path.is_file():
                problems.append(
                    PoolProblem(member.adapter, "missing", f"{member.adapter} has no {file.name}.")
                )
            elif reason := _difference(path, _expected_file(member, file, record), verified):
                problems.append(
                    PoolProblem(member.adapter, "changed", f"{member.adapter}: {file.name} {reason}.")
                )
    progress(len(manifest.members), len(manifest.members))
    return problems


def verify_added(manifest: Manifest, folder: Path, record: ExportRecord) -> list[PoolProblem]:
    """The files that an export wrote beside the pinned ones and that are missing or have other bytes."""
    problems = []
    for member in manifest.members:
        below = f"{member_folder(member).as_posix()}/"
        for path, file in record.added.items():
            if path != f"{below}{file.name}":
                continue
            if not (folder / path).is_file():
                problems.append(
                    PoolProblem(member.adapter, "missing", f"{member.adapter} has no {file.name}.")
                )
            elif reason := _difference(folder / path, file):
                text = f"{member.adapter}: {file.name} {reason.replace('pinned', 'written')}."
                problems.append(PoolProblem(member.adapter, "changed", text))
    return problems


def _expected_file(member: Member, file: PinnedFile, record: ExportRecord | None) -> PinnedFile:
    """The pinned file, or the file written in its place according to a record of exactly this file."""
    path = (member_folder(member) / file.name).as_posix()
    written = record.files.get(path) if record is not None else None
    if written is None or written.source != file.sha256:
        return file
    return PinnedFile(file.name, written.size, written.written)


def in_export(manifest: Manifest, folder: Path) -> Callable[[Member, PinnedFile], Path] | None:
    """The paths of the files of an exported pool: below `adapters/`, or as in a Hub; None if it has none."""
    forms: tuple[Form, ...] = ("peft", "hub")
    for form in forms:
        if any((folder / member_folder(member, form)).is_dir() for member in manifest.members):
            return partial(_place, folder, form)
    return None


def _place(folder: Path, form: Form, member: Member, file: PinnedFile) -> Path:
    return folder / member_folder(member, form) / file.name


def _difference(path: Path, file: PinnedFile, verified: Verified | None = None) -> str | None:
    """Why the bytes are not the pinned ones, None where they are."""
    size = path.stat().st_size
    if size != file.size:
        return f"has {size:,} bytes where {file.size:,} were pinned"
    same = verified.holds(path, file.sha256) if verified else digest_of(path) == file.sha256
    return None if same else "has other bytes than those pinned"
