"""The members of a merge: adapters in folders, or those of one pool, whose files are fetched first.

Folders alone need no database and no network: what does is imported where a pool is named.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from catalog.adapters import Engine, is_adapter_folder, load_engines, table_with
from catalog.errors import CatalogError, PoolError, UsageError
from catalog.settings import Settings
from loradex.pool import Pool
from loradex.progress import ProgressCallback, ProgressEvent, ProgressStep
from merging.members import BaseWeights, fold_dora, is_base_folder, load_member

if TYPE_CHECKING:
    from catalog.adapters import BaseTable
    from catalog.pools import Manifest
    from catalog.pools import Member as PoolMember
    from merging.members import MergeMember

MemberSource = str | Path | Pool | Sequence[str | Path]


@dataclass(frozen=True)
class MemberSet:
    """Members as they were loaded, and the pool that they are of, if any."""

    members: tuple[MergeMember, ...]
    manifest: Manifest | None = None


class HasSettings(Protocol):
    """A catalog as `loradex.open` gives it."""

    settings: Settings


def settings_of(catalog: HasSettings | Settings | None) -> Settings | None:
    """The places of a catalog, however it is given."""
    return catalog if catalog is None or isinstance(catalog, Settings) else catalog.settings


def read_engines(catalog: HasSettings | Settings | None) -> tuple[Engine, ...]:
    """The rules for engines that a catalog is used with, by default the program's own.

    Raises UsageError or NotFoundError for a file that is not a table of engines, or missing.
    """
    settings = settings_of(catalog)
    return load_engines(None if settings is None else settings.engines)


@contextmanager
def open_members(
    source: MemberSource,
    *,
    settings: Settings | None,
    report: ProgressCallback,
    without: Collection[str] = (),
    purpose: str = "merged",
    table: BaseTable | None = None,
    peft_layers: bool = False,
    bases: Sequence[str | Path | None] = (),
    heads: str | None = None,
) -> Iterator[MemberSet]:
    """The members, for as long as the block runs.

    `source` are folders of adapters, or one pool: itself, its name, its pool.json or folder. `without` names
    layers to leave out, `purpose` is the participle of a refusal ("merged", "evaluated"). Members of a pool
    have its base model by the canonical name that `table` has for it. `peft_layers` accepts
    adapters that PEFT's own layers alone can apply, such as DoRA. DoRA is folded with the first of `bases`
    that is the folder of a base model with its weights. `heads` says what becomes of saved heads and
    embeddings.
    Raises UsageError, NotFoundError, PoolError, and what `merging.members.load_member` raises.
    """
    if isinstance(source, Pool):
        pool = source
    else:
        names = [source] if isinstance(source, (str, Path)) else list(source)
        folders = [Path(name) for name in names]
        if all(is_adapter_folder(folder) for folder in folders):
            options: Any = {"without": without, "purpose": purpose, "peft_layers": peft_layers}
            options["heads"] = heads
            yield MemberSet(load_folded([partial(load_member, path, **options) for path in folders], bases))
            return
        if len(names) > 1:
            wrong = next(folder for folder in folders if not is_adapter_folder(folder))
            raise UsageError(f"{wrong} is not a folder of an adapter; give one pool, or folders of adapters.")
        pool = find_pool(settings, str(names[0]))
    of_pool = pool.manifest.canonical_base(table)
    with _pool_folder(pool, report) as folder:
        options = {"without": without, "purpose": purpose, "peft_layers": peft_layers, "base": of_pool}
        options["heads"] = heads
        loads = [partial(_load_pool_member, folder, row, options) for row in pool.members]
        yield MemberSet(load_folded(loads, bases), pool.manifest)


def load_folded(
    loads: Sequence[Callable[..., MergeMember]], bases: Sequence[str | Path | None]
) -> tuple[MergeMember, ...]:
    """The members that `loads` give, DoRA folded with the first of `bases` that is the folder of a base model
    with its weights.

    Raises what `load_member` and `fold_dora` raise.
    """
    folder = next((Path(base) for base in bases if base and is_base_folder(Path(base))), None)
    if folder is None:
        return tuple(load() for load in loads)
    members = [load(dora=True) for load in loads]
    if not any(member.magnitudes for member in members):
        return tuple(members)
    weights = BaseWeights(folder)
    return tuple(fold_dora(member, weights) for member in members)


def find_pool(settings: Settings | None, pool: str) -> Pool:
    """The pool in a file or folder of that name where there is one, else that of the catalog.

    Raises NotFoundError where neither is there, PoolError for a manifest that cannot be read, UsageError
    where no catalog is given to look a name up in.
    """
    from catalog.pools import MANIFEST_NAME, read_manifest

    path = Path(pool)
    if path.is_file() or (path / MANIFEST_NAME).is_file():
        return Pool(read_manifest(path), settings, path)
    if settings is None:
        raise UsageError(f"{pool} is not a folder of an adapter; a pool is found by name in a `catalog`.")
    from catalog.database import pool_store, reading

    with reading(settings) as session:
        return Pool(pool_store.find_pool(session, pool), settings, path if path.exists() else None)


def read_base_table(settings: Settings, report: ProgressCallback) -> BaseTable:
    """The names of base models that the program and the catalog know.

    Those of the program alone where there is no catalog, or one that cannot be read, which is reported.
    """
    if _is_absent(settings):
        return table_with(())
    from catalog.database import reading_if_any, store

    try:
        with reading_if_any(settings) as session:
            return table_with(store.spellings(session) if session is not None else ())
    except CatalogError as error:
        text = f"names of base models that the catalog adds are left out: {error}"
        report(ProgressEvent("reading the catalog", note=text))
        return table_with(())


def _is_absent(settings: Settings) -> bool:
    """Whether the catalog is the file of the data folder, and is not there."""
    if settings.catalog_url != Settings.make(data=settings.data).catalog_url:
        return False
    try:
        (settings.data / "catalog.db").stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        pass
    return False


def _load_pool_member(
    folder: Path, member: PoolMember, options: Mapping[str, Any], dora: bool = False
) -> MergeMember:
    from catalog.pools import member_folder

    return load_member(
        folder / member_folder(member),
        name=member.adapter,
        digest=next((file.sha256 for file in member.files if file.name.endswith(".safetensors")), None),
        license_id=member.license,
        source={"repository": member.repository, "commit": member.commit, "subfolder": member.subfolder},
        dora=dora,
        **options,
    )


@contextmanager
def _pool_folder(pool: Pool, report: ProgressCallback) -> Iterator[Path]:
    """The folder of a pool's files: its export where it was read from one, else one below the data folder.

    The files of an export are compared with their digests, once after each change of one.
    """
    from catalog.files import Verified
    from catalog.pools import export, in_export, read_record, verify_files

    manifest, settings, folder = pool.manifest, pool.settings, pool.folder
    place = in_export(manifest, folder) if folder is not None else None
    if folder is not None and place is not None:
        verified = Verified(settings.blobs / "verified") if settings else None
        step = ProgressStep(report, "verifying the members")
        problems = verify_files(manifest, place, step.working, read_record(folder), verified)
        if problems:
            raise PoolError(f"{problems[0].detail} Export the pool again.")
        yield folder
        return
    if settings is None:
        raise UsageError(
            f"The files of {manifest.name} are not in the folder of its manifest; give a `catalog`."
        )
    from loradex.fetching import fetching, writable_folder

    with fetching(settings, manifest) as fetch, writable_folder(settings.pools) as below:
        yield export(manifest, below, "peft", fetch, ProgressStep(report, "fetching the members").working)


def split_layers(without: str | Collection[str]) -> Collection[str]:
    """The names of layers; a text holds them with commas between."""
    return [name.strip() for name in without.split(",")] if isinstance(without, str) else without
