"""Snapshots of a catalog: exported as a folder, checked, imported from a folder or the Hub, and uploaded."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.adapters import FingerprintRecord, adapter_name, parse_config, valid_name
from catalog.database import Session, disposing, for_writing, open_catalog, reading, take_turn, writer_lock
from catalog.errors import (
    CatalogError,
    HubAccessError,
    IntegrityError,
    StorageError,
    UnreadableError,
    UsageError,
    WeightsError,
)
from catalog.extras import require_extra
from catalog.files import BlobStore, replace_folder, temporary_folder, temporary_store
from catalog.fingerprints import measure_file
from catalog.snapshots import (
    MANIFEST,
    TABLES,
    ImportCounts,
    SampledAdapter,
    SnapshotChoice,
    import_snapshot,
    read_manifest,
    sample_adapters,
    verify_rows,
    write_snapshot,
)
from catalog.snapshots import verify_snapshot as check_snapshot
from crawler.hub import Hub, HubSettings, RemoteFile, upload_dataset
from loradex.arguments import check_arguments
from loradex.progress import ProgressOption, ProgressStep, reporting
from loradex.text import format_bytes

if TYPE_CHECKING:
    from catalog.settings import Settings

README = "README.md"
# The relative difference of equal fingerprints that were made on different processors.
_ROUNDING = 1e-3
_VECTORS = ("spectrum", "delta", "output")
_DATASET = re.compile(r"(?P<scheme>hf://datasets/)?(?P<name>[^/@\s]+/[^/@\s]+)(?:@(?P<revision>[^@\s]+))?")


@dataclass(frozen=True)
class SnapshotExport:
    """A snapshot that was written: its folder, the rows of each table, its size, and what was left out.

    `left_out` counts repositories that are `private` or were read behind a gate (`gated`), `cards`, names of
    base models and `scores` that are the user's own, and `crawls` whose listing the snapshot has in part.
    """

    folder: Path
    tables: dict[str, int]
    bytes: int
    left_out: dict[str, int]


@dataclass(frozen=True)
class SnapshotUpload:
    """A snapshot and the data set repository that it is, or would be, uploaded to.

    `files` and `bytes` count what is uploaded, `left_out` is that of its export. `new`: the repository is
    made. `commit` is None where nothing was uploaded.
    """

    repository: str
    folder: Path
    files: int
    bytes: int
    tables: dict[str, int]
    left_out: dict[str, int]
    private: bool
    new: bool
    commit: str | None = None


@dataclass(frozen=True)
class SampleRow:
    """An adapter of a snapshot compared with the Hub: "same", "differs" (`detail` says in what), or "gone",
    where the Hub no longer shows the commit.
    """

    adapter: str
    commit: str
    state: str
    detail: str


@dataclass(frozen=True)
class SnapshotCheck:
    """A snapshot that is as its manifest says: rows by table, bytes, and the adapters that were compared."""

    folder: Path
    tables: dict[str, int]
    bytes: int
    adapters: Sequence[SampleRow]

    @property
    def ok(self) -> bool:
        """Whether no adapter differs from the Hub."""
        return all(row.state != "differs" for row in self.adapters)


def export_to(
    settings: Settings, folder: Path, choice: SnapshotChoice, *, overwrite: bool, progress: ProgressOption
) -> SnapshotExport:
    """Writes a snapshot, in whole or not at all."""
    require_extra("table", "A snapshot")
    _check_target(folder, overwrite=overwrite)
    with reading(settings) as session:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with reporting(progress) as report, temporary_folder(folder.parent) as temporary:
                step = ProgressStep(report, "writing repositories")
                new = temporary / "snapshot"
                new.mkdir()
                counts = write_snapshot(session, new, choice, version("loradex"), step.working)
                if folder.exists() and not any(folder.iterdir()):
                    folder.rmdir()
                replace_folder(new, folder, temporary)
        except OSError as error:
            why = error.strerror or error
            raise StorageError(f"The snapshot cannot be written to {folder}: {why}.") from error
    return SnapshotExport(folder, counts.tables, counts.bytes, counts.left_out)


def import_from(settings: Settings, source: str | Path, progress: ProgressOption) -> ImportCounts:
    """Brings a snapshot into the catalog in one transaction, after all of its files were checked."""
    require_extra("table", "A snapshot")
    if Path(source).is_dir():
        return replace(_import_folder(settings, Path(source)), source=str(source))
    match = _DATASET.fullmatch(source) if isinstance(source, str) else None
    if match is None or not valid_name(match["name"]):
        raise UsageError(
            f"{str(source)!r} is neither a folder nor a data set of the Hub: give the folder of a snapshot, "
            "or write owner/name[@commit]."
        )
    named = match["scheme"] or match["revision"]
    if not named and Path(match["name"].partition("/")[0]).is_dir():
        raise UsageError(
            f"There is no folder {source}; give the folder of a snapshot, or for the data set of the Hub "
            f"write hf://datasets/{source} or {source}@commit."
        )
    with reporting(progress) as report, temporary_folder(_make_folder(settings.data)) as folder:
        step = ProgressStep(report, "fetching files")
        place = _fetch(match["name"], match["revision"] or "main", folder, step.working)
        return replace(_import_folder(settings, folder), source=place)


def _import_folder(settings: Settings, folder: Path) -> ImportCounts:
    manifest = check_snapshot(folder)
    with (
        disposing(open_catalog(settings, create=True)) as engine,
        writer_lock(engine),
        Session(for_writing(engine)) as session,
        session.begin(),
    ):
        take_turn(session)
        return import_snapshot(session, manifest)


def _make_folder(folder: Path) -> Path:
    """The folder, made if it is missing; raises StorageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"The folder {folder} cannot be made: {error.strerror}.") from error
    return folder


def _fetch(name: str, revision: str, folder: Path, progress: Callable[[int, int], None]) -> str:
    """Fetches a snapshot at the commit that a revision names now; returns owner/name@commit.

    Only files that the manifest may name are fetched, each with the size and the sha256 that it states.
    """
    with Hub(HubSettings.from_environment()) as hub:
        row = hub.dataset(name, revision)
        name, commit = str(row["id"]), str(row["sha"])
        place = f"{name}@{commit}"
        listed = {file.path: file for file in hub.tree(name, commit, "datasets").files}
        if MANIFEST not in listed:
            raise CatalogError(f"The data set {place} is not a snapshot of loradex: it has no {MANIFEST}.")
        content = hub.small_file(name, commit, listed[MANIFEST], "datasets")
        (folder / MANIFEST).write_bytes(content)
        _, files = read_manifest(content, place)
        total, free = sum(file.bytes for file in files), shutil.disk_usage(folder).free
        if total > free:
            raise StorageError(
                f"The snapshot {place} has {format_bytes(total)} and the disk of {folder.parent} "
                f"{format_bytes(free)} free; make room."
            )
        store = BlobStore(folder / "blobs", durable=False)
        for number, file in enumerate(files):
            progress(number, len(files))
            remote = RemoteFile(file.path, file.bytes, None, file.sha256)
            path = hub.download(name, commit, remote, store, "datasets")
            (folder / file.path).parent.mkdir(exist_ok=True)
            path.rename(folder / file.path)
        progress(len(files), len(files))
    return place


@check_arguments
def verify_snapshot(
    folder: str | Path,
    *,
    sample: int = 0,
    seed: int = 0,
    weights: bool = False,
    progress: ProgressOption = False,
) -> SnapshotCheck:
    """A snapshot, checked as an import does; with `sample` that many adapters are compared with the Hub too.

    Of each of these, names, sizes and hashes of its files are compared with those at its commit: one API
    request. With `weights` the file is fetched, and its tensors and fingerprint are compared as well.

    Args:
        folder: A snapshot.
        sample: The number of adapters, drawn at random.
        seed: That of the drawing.
        weights: Whether to fetch the weights of these adapters.
        progress: See `loradex.progress`.

    Raises:
        CatalogError: The folder is not a snapshot, or not as its manifest says.
        HubError: The Hub cannot be reached.
    """
    require_extra("table", "A snapshot")
    if sample < 0:
        raise UsageError("`sample` is a number of adapters, 0 or more.")
    folder = Path(folder)
    manifest = check_snapshot(folder)
    with reporting(progress) as report:
        verify_rows(manifest, ProgressStep(report, "reading rows").working)
        adapters = sample_adapters(manifest, sample, seed) if sample else []
        rows = []
        with ExitStack() as stack:
            hub = stack.enter_context(Hub(HubSettings.from_environment())) if adapters else None
            store = stack.enter_context(temporary_store(Path(tempfile.gettempdir()))) if weights else None
            step = ProgressStep(report, "comparing adapters")
            for number, adapter in enumerate(adapters):
                step.working(number, len(adapters))
                if hub is not None:
                    rows.append(_compare(hub, adapter, store))
    size = sum(path.stat().st_size for path in manifest.paths)
    return SnapshotCheck(folder, manifest.rows_of_tables, size, rows)


def _compare(hub: Hub, adapter: SampledAdapter, store: BlobStore | None) -> SampleRow:
    """An adapter of a snapshot beside its repository on the Hub, and its weights if there is a store."""
    name, state, detail = adapter_name(adapter.repository, adapter.subfolder), "same", ""
    try:
        tree = {file.path: file for file in hub.tree(adapter.repository, adapter.commit).files}
        prefix = f"{adapter.subfolder}/" if adapter.subfolder else ""
        remote = {file["name"]: tree.get(prefix + file["name"]) for file in adapter.files}
        wrong = [file["name"] for file in adapter.files if not _agrees(adapter, file, remote[file["name"]])]
        file = remote.get(adapter.weights_name or "")
        if wrong:
            state, detail = "differs", ", ".join(wrong)
        elif store is not None and file is not None and adapter.fingerprint is not None:
            state, detail = _compare_weights(hub, adapter, adapter.fingerprint, file, store)
    except HubAccessError as error:
        state, detail = "gone", error.status
    except (IntegrityError, WeightsError, UnreadableError) as error:
        state, detail = "differs", str(error)
    return SampleRow(name, adapter.commit, state, detail)


def _agrees(adapter: SampledAdapter, file: Mapping[str, Any], remote: RemoteFile | None) -> bool:
    if remote is None or remote.size != file["size"]:
        return False
    own = {file["digest"], adapter.git_oid if file["digest"] == adapter.weights_digest else None}
    return bool({remote.oid, remote.sha256} & (own - {None}))


def _compare_weights(
    hub: Hub, adapter: SampledAdapter, stored: FingerprintRecord, file: RemoteFile, store: BlobStore
) -> tuple[str, str]:
    """Whether the tensors and the fingerprint of a weights file are those of the snapshot."""
    sha256 = adapter.weights_digest or ""
    config = parse_config(adapter.config or b"")
    path = hub.download(adapter.repository, adapter.commit, replace(file, sha256=sha256), store)
    try:
        measured = measure_file(path, config)
    finally:
        store.remove(sha256)
    if measured.tensor_digest != adapter.tensor_digest:
        return "differs", "the digest of its tensors"
    if stored.version != measured.record.version:
        return "same", "tensors compared; its fingerprint is of another version"
    pairs = [(getattr(measured.record, name), getattr(stored, name)) for name in _VECTORS]
    same = all(_is_near(*pair) for pair in pairs)
    return ("same", "weights measured") if same else ("differs", "its fingerprint")


def _is_near(left: bytes, right: bytes) -> bool:
    """Whether two vectors of float32 agree but for the rounding of other processors.

    Values that are not finite, as of weights that are not, must be the same.
    """
    import numpy as np

    one, other = (np.frombuffer(vector, "<f4").astype(float) for vector in (left, right))
    if len(one) != len(other):
        return False
    finite = np.isfinite(other)
    if not np.array_equal(np.where(finite, 0, one), np.where(finite, 0, other), equal_nan=True):
        return False
    difference = np.linalg.norm(one[finite] - other[finite])
    return bool(difference <= _ROUNDING * np.linalg.norm(other[finite]))


@check_arguments
def push_snapshot(
    repository: str, folder: str | Path, *, public: bool = False, upload: bool = False
) -> SnapshotUpload:
    """A snapshot uploaded to a data set repository of the Hub, or what an upload would be.

    The repository is made private unless `public`. One that is there keeps its visibility; a public one is
    written with `public` alone. Files of an earlier snapshot that this one lacks are removed.

    Args:
        repository: Its name, owner/name.
        folder: A snapshot that `Catalog.export_snapshot` wrote; it is checked first.
        public: Whether anybody may read it.
        upload: Whether to upload it; else it is only checked and described.

    Raises:
        CatalogError: The folder is not a snapshot, or not as its manifest says.
        UsageError: The repository is public and `public` was not given, or the snapshot has what only this
            account may read, or own notes.
        HubError: The Hub refuses, or cannot be reached.

    Writes:
        With `upload` the repository, and files of `hf_xet` in its cache.
    """
    require_extra("table", "A snapshot")
    folder, settings = Path(folder), HubSettings.from_environment()
    if not valid_name(repository) or "/" not in repository:
        raise UsageError(f"{repository[:80]!r} is not the name of a data set; write owner/name.")
    manifest = check_snapshot(folder)
    own = [name for name in ("with_private", "with_notes") if manifest.document["choice"].get(name)]
    if public and own:
        raise UsageError(f"The snapshot was written `{own[0]}`; export it without to publish it.")
    private = _is_private(settings, repository)
    if private is False and not public:
        raise UsageError(f"The data set {repository} is public; use `public` to write to it.")
    paths = [MANIFEST, README, *(path.relative_to(folder).as_posix() for path in manifest.paths)]
    paths = [path for path in paths if (folder / path).is_file()]
    result = SnapshotUpload(
        repository,
        folder,
        len(paths),
        sum((folder / path).stat().st_size for path in paths),
        manifest.rows_of_tables,
        dict(manifest.document["left_out"]),
        private=not public if private is None else private,
        new=private is None,
    )
    if not upload:
        return result
    if settings.token is None:
        raise UsageError("An upload needs a token that may write; set HF_TOKEN, or run `hf auth login`.")
    commit = upload_dataset(
        settings,
        repository,
        folder,
        paths,
        new=result.new,
        private=result.private,
        delete=[f"{table}/train-*.parquet" for table in TABLES],
        message="Snapshot of a loradex catalog",
    )
    return replace(result, commit=commit)


def _is_private(settings: HubSettings, repository: str) -> bool | None:
    """Whether a data set repository is private; None where there is none that this account sees."""
    with Hub(settings) as hub:
        try:
            return bool(hub.dataset(repository).get("private"))
        except HubAccessError as error:
            if error.status != "private_or_missing":
                raise
            return None


def _check_target(folder: Path, *, overwrite: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / MANIFEST).is_file():
        raise UsageError(f"{folder} is not empty and not a snapshot; choose another folder.")
    if not overwrite:
        raise UsageError(f"{folder} is a snapshot already; use `overwrite` to replace it.")
