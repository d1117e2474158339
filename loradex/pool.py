"""A pool: adapters pinned to commits and hashes, written as folders that PEFT loads, and checked again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, overload

from catalog.adapters import (
    CONFIG_NAME,
    USES,
    WEIGHTS_NAME,
    EngineFacts,
    load_engines,
    read_engine_facts,
    verdicts,
)
from catalog.errors import ConfigError, MergeError, UsageError, WeightsError
from catalog.files import BlobStore
from catalog.pools import (
    EXPORT_RECORD,
    FORMS,
    Manifest,
    Member,
    PinnedFile,
    PoolProblem,
    export,
    in_export,
    license_problems,
    load_problems_of,
    member_folder,
    misread_members,
    read_record,
    rewritten_members,
    verify_added,
    verify_files,
)
from catalog.settings import Settings
from loradex.arguments import check_arguments, check_choice
from loradex.progress import ProgressOption, ProgressStep, reporting
from loradex.rows import MemberVerdict, Rows, cell_text, html_table

_FIRST = 3


@dataclass(frozen=True)
class PoolExport(Sequence[Path]):
    """What an export wrote: the sequence of its adapters' folders, or of the pools' folders without weights.

    `folders` are those of the pool and of its controls. `problems` are members that PEFT does not load,
    `misread` maps a sentence on other engines to the members that it is true of.
    """

    paths: tuple[Path, ...]
    folders: tuple[Path, ...]
    digest: str
    problems: tuple[PoolProblem, ...] = ()
    misread: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Path, ...]: ...
    def __getitem__(self, index: int | slice) -> Path | tuple[Path, ...]:
        return self.paths[index]

    def __len__(self) -> int:
        return len(self.paths)

    def document(self) -> dict[str, Any]:
        """The fields that `pool export --json` prints."""
        document: dict[str, Any] = {
            "folders": [str(folder) for folder in self.folders],
            "digest": self.digest,
        }
        if self.problems:
            document["problems"] = [asdict(problem) for problem in self.problems]
        if self.misread:
            document["misread"] = [{"detail": text, "members": names} for text, names in self.misread.items()]
        return document


@dataclass(frozen=True)
class PoolCheck:
    """The problems of a pool; `ok` means that there are none, except those allowed for an export `as_is`."""

    ok: bool
    problems: Sequence[PoolProblem]
    digest: str


@dataclass(frozen=True, repr=False)
class Pool:
    """A pinned selection of adapters; `Catalog.select` and `Catalog.pool` make it.

    `manifest` is what pool.json holds. `path` is the file or folder that it was read from or saved in, None
    for a pool that is only in the catalog. `left_out` says how many adapters are not in the pool and why,
    where all were asked for, else how many candidates their license or name kept out; `control_pools` are
    the pools that it was selected with, to compare it with.
    """

    manifest: Manifest
    settings: Settings | None = None
    path: Path | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    control_pools: tuple[Pool, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of the pool."""
        return self.manifest.name

    @property
    def base(self) -> str | None:
        """The base model of its members."""
        return self.manifest.base

    @property
    def members(self) -> tuple[Member, ...]:
        """The adapters, in order."""
        return self.manifest.members

    @property
    def digest(self) -> str:
        """The sha256 of the canonical bytes of the manifest, which identifies the pool."""
        return self.manifest.digest

    @property
    def controls(self) -> tuple[Mapping[str, Any], ...]:
        """What the pool is to be compared with: pools by name and digest, and random stand-ins by kind."""
        return self.manifest.controls

    @property
    def folder(self) -> Path | None:
        """The folder of the manifest, which holds the files of an export; None for a pool of the catalog."""
        if self.path is None:
            return None
        return self.path if self.path.is_dir() else self.path.parent

    def __len__(self) -> int:
        return len(self.members)

    def document(self) -> dict[str, Any]:
        """The manifest as plain values, with its digest."""
        return {**asdict(self.manifest), "digest": self.digest}

    def __repr__(self) -> str:
        return f"<Pool {self.name}: {len(self)} members of {self.base}>"

    def _repr_html_(self) -> str:
        """The members as an HTML table, every value escaped."""
        columns = ("adapter", "score", "rank", "license", "why")
        rows = [[cell_text(getattr(member, name)) for name in columns] for member in self.members]
        return html_table(columns, rows, caption=f"{self.name}: {len(self)} members of {self.base}")

    @check_arguments
    def export(
        self,
        to: str | Path | None = None,
        form: str = "peft",
        *,
        weights: bool = True,
        as_is: bool = False,
        normalised: bool | None = None,
        progress: ProgressOption = False,
    ) -> PoolExport:
        """Writes the pool and its controls as files, each in the folder NAME-DIGEST below `to`.

        Every byte is compared with its sha256. Where PEFT would not find the tensors under their names, or
        not load the configuration, both are written as PEFT loads them; export.json has the digests of both.

        Args:
            to: The folder to write below; by default the pools of the data folder.
            form: "peft" for folders that PEFT loads, "hub" for a Hub in a folder, "mergekit", "vllm",
                "sglang" or "lm-eval" for recipes, "gguf" or "ollama" for GGUF files beside the folders, "ids"
                for a list.
            weights: Whether to write the files, too; what is not kept is fetched at its commit. The forms
                peft, gguf, ollama and hub require it.
            as_is: Whether to change no byte, also where PEFT does not load it.
            normalised: Whether to write members in the form that every engine reads (`loradex.normalise`);
                by default for vllm, sglang, gguf and ollama. Members of which scaling * B A is not the whole
                update stay as they are, with a note.
            progress: See `loradex.progress`.

        Returns:
            The folders of the members of this pool, as a sequence of paths, with what is unusual about them.

        Raises:
            PoolError: A file cannot be fetched, or has other bytes than those pinned.
            StorageError: The disk refuses.
            UsageError: The pool has no catalog, whose data folder has the files.

        Example:
            >>> folders = pool.export("out")
            >>> len(folders) == len(pool.members)
            True
        """
        from loradex.fetching import fetching

        settings = self._require_settings()
        engines = load_engines(settings.engines)
        checked_form = check_choice("form", form, FORMS)
        if as_is and checked_form in ("gguf", "ollama"):
            raise UsageError("GGUF files are not the pinned ones; leave out `as_is`.")
        if normalised and (as_is or not weights or checked_form in ("hub", "ids")):
            raise UsageError(
                "Files in the forms hub and ids, and as they are, are not normalised; leave out `normalised`."
            )
        for_engine = checked_form in ("vllm", "sglang", "gguf", "ollama")
        normalising = (for_engine and weights and not as_is) if normalised is None else normalised
        notes: list[str] = []
        folders: list[Path] = []
        problems: list[PoolProblem] = []
        misread: dict[str, list[str]] = {}
        with reporting(progress) as report:
            step = ProgressStep(report, "exporting")
            for manifest in (self.manifest, *self._control_manifests(notes)):
                with fetching(settings, manifest) as fetch:
                    below = Path(to) if to is not None else settings.pools
                    source = fetch if weights else None
                    steps = [_normaliser(manifest, notes)] if normalising else []
                    steps += (
                        [_gguf_writer(manifest, settings, notes)]
                        if checked_form in ("gguf", "ollama")
                        else []
                    )
                    rewrite = partial(_each, steps) if steps else None
                    written = export(
                        manifest,
                        below,
                        checked_form,
                        source,
                        step.working,
                        as_is=as_is,
                        rewrite=rewrite,
                        engines=engines,
                    )
                    folders.append(written)
                if weights:
                    notes += _rewritten_notes(manifest, folders[-1])
                    unloadable = load_problems_of(manifest, folders[-1])
                    notes += [f"not loaded by PEFT: {problem.detail}" for problem in unloadable]
                    problems += unloadable
        if weights:
            misread = misread_members(self.manifest, folders[0], engines)
        notes += [f"misread by other engines: {_names(names)}. {text}" for text, names in misread.items()]
        has_members = weights and checked_form != "ids"
        paths = (
            [folders[0] / member_folder(member, checked_form) for member in self.members]
            if has_members
            else folders
        )
        return PoolExport(tuple(paths), tuple(folders), self.digest, tuple(problems), misread, tuple(notes))

    def runs_in(self) -> Rows[MemberVerdict]:
        """Which engines run each member as PEFT does, and why others do not.

        Of an export its files are read, else what the catalog stores of the members. The rules are those that
        the catalog was opened with, or loradex's own.

        Returns:
            A row for each member and engine; `runs` is None where the files are not known here.

        Raises:
            UsageError, NotFoundError: The file of rules is not a table of engines, or missing.

        Example:
            >>> {row.runs for row in pool.runs_in() if row.engine == "vllm"}
            {True}
        """
        engines = load_engines(None if self.settings is None else self.settings.engines)
        rows = [
            MemberVerdict(member.adapter, row.engine, row.runs, row.reasons, row.remedies, row.option)
            for member, facts in zip(self.members, self._engine_facts(), strict=True)
            for row in verdicts(facts or EngineFacts(whole=False), engines)
        ]
        return Rows(rows, MemberVerdict)

    def _engine_facts(self) -> list[EngineFacts | None]:
        """What engines look at in each member, None where its files are not known here."""
        place = in_export(self.manifest, self.folder) if self.folder is not None else None
        if place is not None:
            return [read_engine_facts(place(row, row.files[0]).parent) for row in self.members]
        if self.settings is None:
            return [None for _ in self.members]
        from catalog.database import pool_store, reading_if_any

        with reading_if_any(self.settings) as session:
            return [pool_store.engine_facts_of(session, row) if session else None for row in self.members]

    @check_arguments
    def verify(
        self, *, use: str | None = None, online: bool = False, progress: ProgressOption = False
    ) -> PoolCheck:
        """What is wrong with the pool: changed bytes, missing files, vanished commits, licenses.

        The files of an export are compared with export.json, and members that PEFT does not load are named.
        Of a pool in the catalog the files that are kept are read.

        Args:
            use: "research", "publish" or "commercial", to judge licenses by; by default what the pool is for.
            online: Whether to ask the Hub if it still has every commit, two requests a member.
            progress: See `loradex.progress`.

        Example:
            >>> pool.verify(use="commercial").ok
            True
        """
        judged = None if use is None else check_choice("use", use, USES)
        with reporting(progress) as report:
            step = ProgressStep(report, "reading")
            problems, lenient = self._file_problems(step.working)
            problems += license_problems(self.manifest, judged)
            if online:
                problems += self._hub_problems(step)
        wrong = [problem for problem in problems if not (lenient and problem.kind == "peft")]
        return PoolCheck(not wrong, tuple(problems), self.digest)

    @check_arguments
    def fetch_weights(self, *, progress: ProgressOption = False) -> None:
        """Fetches every pinned file that is not kept at its commit, and keeps the weights.

        Raises:
            PoolError: A file cannot be fetched, or has other bytes than those pinned.
        """
        from loradex.fetching import fetching

        with fetching(self._require_settings(), self.manifest) as fetch, reporting(progress) as report:
            step = ProgressStep(report, "fetching")
            for done, member in enumerate(self.members):
                step.working(done, len(self.members))
                for file in member.files:
                    fetch(member, file)

    def _require_settings(self) -> Settings:
        if self.settings is None:
            raise UsageError("The files of this pool are found by a catalog; open it with `Catalog.pool`.")
        return self.settings

    def _file_problems(self, progress: Callable[[int, int], None]) -> tuple[list[PoolProblem], bool]:
        """What is wrong with the files, and whether they were exported as they are, for PEFT or not."""
        folder = self.folder
        record = read_record(folder) if folder is not None else None
        problems = verify_files(self.manifest, self._place_of_files(folder), progress, record)
        if folder is None or record is None:
            return problems, True
        problems += verify_added(self.manifest, folder, record)
        harmed = {problem.member for problem in problems}
        problems += [row for row in load_problems_of(self.manifest, folder) if row.member not in harmed]
        return problems, record.as_is

    def _place_of_files(self, folder: Path | None) -> Callable[[Member, PinnedFile], Path | None]:
        """Where each file is: in the export where that has it, else among those that are kept."""
        exported = in_export(self.manifest, folder) if folder is not None else None
        if exported is not None:
            return exported
        blobs = BlobStore(self._require_settings().blobs)
        return lambda _, file: blobs.path(file.sha256) if blobs.has(file.sha256) else None

    def _hub_problems(self, step: ProgressStep) -> list[PoolProblem]:
        from crawler.fetch import hub_problems
        from crawler.hub import Hub, HubSettings

        with Hub(HubSettings.from_environment()) as hub:
            return hub_problems(self.manifest, hub, step.working)

    def _control_manifests(self, notes: list[str]) -> list[Manifest]:
        """The pools that the manifest names as controls, as far as the catalog contains them."""
        if self.control_pools:
            return [pool.manifest for pool in self.control_pools]
        from catalog.database import pool_store, reading_if_any

        names = [str(control["pool"]) for control in self.controls if "pool" in control]
        with reading_if_any(self._require_settings()) as session:
            present = {row["pool"] for row in pool_store.pools(session)} if session and names else set()
            manifests = [pool_store.find_pool(session, name) for name in names if session and name in present]
        notes += [f"its control {name} is not in this catalog" for name in names if name not in present]
        return manifests


def save_pools(pools: Sequence[Pool], settings: Settings, *, replace_others: bool) -> list[Pool]:
    """The pools, written to the catalog in one transaction and below the pools of the data folder.

    Raises PoolError where another pool has the name of one, unless it is to be replaced.
    """
    from datetime import UTC, datetime

    from catalog.database import pool_store, writing

    with writing(settings) as session:
        for pool in pools:
            pool_store.save_pool(session, pool.manifest, datetime.now(UTC), replace=replace_others)
        session.commit()
    return [replace(pool, settings=settings, path=_write_manifest(pool.manifest, settings)) for pool in pools]


def _write_manifest(manifest: Manifest, settings: Settings) -> Path:
    from catalog.files import output_file
    from catalog.pools import MANIFEST_NAME

    path = settings.pools / manifest.folder_name / MANIFEST_NAME
    with output_file(path) as new:
        new.write_bytes(manifest.canonical())
    return path


def _each(steps: Sequence[Callable[[Path], None]], folder: Path) -> None:
    for step in steps:
        step(folder)


def _gguf_writer(manifest: Manifest, settings: Settings, notes: list[str]) -> Callable[[Path], None]:
    """What writes adapter.gguf and a Modelfile into a member's folder, or notes why not."""
    from merging.members import load_member
    from merging.model import checkpoint
    from merging.static import add_gguf

    base = manifest.canonical_base()
    home = checkpoint(base, settings.bases) if base else None

    def write(folder: Path) -> None:
        try:
            add_gguf(
                load_member(folder, purpose="written as GGUF", base=base), folder, base=str(home or base)
            )
        except (ConfigError, MergeError, UsageError, WeightsError) as error:
            notes.append(f"not written as GGUF: {error}")

    return write


def _normaliser(manifest: Manifest, notes: list[str]) -> Callable[[Path], None]:
    """What writes a member's folder in the form that every engine reads, or notes why it stays as it is."""
    from merging.members import load_member
    from merging.static import normalise

    def rewrite(folder: Path) -> None:
        target = folder.parents[1] / "normalised"
        try:
            member = load_member(folder, purpose="rewritten", base=manifest.canonical_base())
            normalise(member, target)
        except (ConfigError, MergeError, UsageError, WeightsError) as error:
            notes.append(f"not normalised: {error}")
            return
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            (target / name).replace(folder / name)
        shutil.rmtree(target)

    return rewrite


def _rewritten_notes(manifest: Manifest, folder: Path) -> list[str]:
    """A sentence on the members that were written in other bytes."""
    record = read_record(folder)
    names = rewritten_members(manifest, record) if record is not None else []
    return [f"written as PEFT loads it, see {EXPORT_RECORD}: {', '.join(names)}"] if names else []


def _names(names: Sequence[str]) -> str:
    """The first few of these names, and how many more there are."""
    more = f" and {len(names) - _FIRST} more" if len(names) > _FIRST else ""
    return f"{', '.join(names[:_FIRST])}{more}"
