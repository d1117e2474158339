"""inspect → fetch → describe: one listed repository is read from the Hub, adapter folder by adapter folder.

Each stage is a plain function on frozen values. Reasons against an adapter are values for the catalog; a
HubError or StorageError means that the repository could not be read now and can be retried.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from catalog.adapters import (
    AdapterConfig,
    AdapterRecord,
    AdapterSpec,
    BaseTable,
    DocumentRecord,
    Header,
    RepositoryRecord,
    WeightsRecord,
    header_bytes,
    lora_modules,
    parse_config,
    parse_header,
)
from catalog.errors import (
    ConfigError,
    DamagedFileError,
    HubAccessError,
    HubPayloadError,
    IntegrityError,
    UnreadableError,
    WeightsError,
)
from catalog.files import BlobStore
from catalog.fingerprints import FingerprintPool, Measurement, pattern_of
from crawler.crawl.description import Draft, describe, findings
from crawler.crawl.known import Known
from crawler.crawl.screening import reasons_to_refuse
from crawler.crawl.sharing import SharedWeights, WeightsTask, reading_weights
from crawler.hub import BadRow, Folder, Hub, ListedRepository, RemoteFile, adapter_folders, parse_row
from crawler.reading import MAX_CARD, Card, card_from_facts, parse_card, reading

log = logging.getLogger(__name__)

# Folders beyond this many are listed and not read: each costs requests, and a repository may hold thousands.
MOST_FOLDERS = 256
MOST_CONFIG = 1024 * 1024


@dataclass(frozen=True)
class Tools:
    """The resources of the stages: shared by all workers, thread-safe.

    `blobs` are the files that are kept; `streamed` takes those that are read and not kept. No weights of more
    than `most_weights` bytes are fetched. Files that are streamed are offered to other processes by `shared`.
    """

    hub: Hub
    blobs: BlobStore
    streamed: BlobStore
    bases: BaseTable
    known: Known
    weights: str
    rules: str
    described_with: str
    most_weights: int
    fingerprints: FingerprintPool
    shared: SharedWeights | None = None


@dataclass(frozen=True)
class Processed:
    """A repository that was read, as the catalog stores it."""

    repository: RepositoryRecord
    adapters: tuple[AdapterRecord, ...]


@dataclass(frozen=True)
class Gone:
    """A repository that the Hub no longer has, or no longer shows to this account."""

    repository: RepositoryRecord | None
    detail: str


def process(listed: ListedRepository, tools: Tools) -> Processed | Gone:
    """Reads one repository at the commit that the listing named; without one, it is looked up once.

    Raises HubError and StorageError for errors that may be temporary. Writes blobs, no rows.
    """
    detail = "the listing names no commit of it"
    try:
        if listed.commit is not None:
            return _process(listed, tools)
    except HubAccessError as error:
        if error.status not in {"revision_gone", "private_or_missing"}:
            raise
        detail = str(error)
    fresh = look_up(listed.hub_id, listed.name, tools)
    if fresh is None:
        return Gone(listed, detail)
    if fresh.commit is None:
        # An adapter's row names the commit it was read at: without one there is only the repository's row.
        return Processed(fresh, ())
    return _process(fresh, tools)


def look_up(hub_id: str, name: str, tools: Tools) -> ListedRepository | None:
    """The repository as the Hub shows it now, or None if this `_id` no longer exists."""
    try:
        row = parse_row(tools.hub.repository(name))
    except HubAccessError as error:
        if error.status in {"private_or_missing", "disabled", "gated"}:
            return None
        raise
    if isinstance(row, BadRow):
        raise HubPayloadError(f"The Hub's description of {name} is not valid: {row.reason}.")
    return row if row.hub_id == hub_id else None


def _process(listed: ListedRepository, tools: Tools) -> Processed:
    drafts = (fetch(listed, draft, tools) for draft in inspect(listed, tools))
    records = tuple(describe(listed, draft, tools.bases, tools.described_with) for draft in drafts)
    return Processed(listed, records)


def inspect(listed: ListedRepository, tools: Tools) -> tuple[Draft, ...]:
    """The facts about a repository's adapters without their weights.

    One API request for the file list; then for each adapter folder at most a config, a card and the head of a
    safetensors file, each only if the catalog does not have those bytes yet.
    """
    if listed.disabled:
        return (_unread("disabled", "the repository shows no files"),)
    try:
        tree = tools.hub.tree(listed.name, listed.commit or "")
    except HubAccessError as error:
        if error.status in {"revision_gone", "private_or_missing", "unauthorized"}:
            raise
        return (_unread(error.status, str(error)),)
    root = tuple(file for file in tree.files if "/" not in file.path)
    folders = adapter_folders(tree.files) or (Folder("", main=True, files=root),)
    drafts = [_read_folder(listed, folder, tools) for folder in folders[:MOST_FOLDERS]]
    unread = f"the repository holds {len(folders)} adapter folders, the first {MOST_FOLDERS} are read"
    drafts += [Draft(folder=folder, status="not_read", detail=unread) for folder in folders[MOST_FOLDERS:]]
    return tuple(replace(draft, problems=tree.problems) for draft in drafts)


def fetch(listed: ListedRepository, draft: Draft, tools: Tools) -> Draft:
    """The draft with its weights read, if the policy requires it and they contain LoRA factors.

    Rules decide what is kept, not what is measured: `keep` leaves the verified file in the blob store if the
    adapter is not refused. Any other file is read from there if it is already kept, else from a temporary
    store. A file whose values were read before is not read again, and fetched again only to be kept.
    """
    file, weights, config = draft.folder.weights, draft.weights, draft.config
    if tools.weights == "headers" or file is None or weights is None:
        return draft
    if not (isinstance(draft.spec, AdapterSpec) and isinstance(config, AdapterConfig)):
        return draft
    if draft.status is not None or not draft.spec.modules:
        return draft
    small = file.size <= tools.most_weights
    accepted = not reasons_to_refuse(findings(listed, draft, tools.bases), tools.rules)
    keep = tools.weights == "keep" and accepted and small
    try:
        if not small and not _is_measured(weights, config, tools):
            too_large = f"{file.path} has {file.size:,} bytes; --max-weights is {tools.most_weights:,}"
            return replace(draft, status="too_large", detail=too_large)
        file, content = _identify_file(listed, file, tools)
        weights = replace(weights, digest=file.sha256 or "")
        with tools.known.reading(file.sha256 or ""):
            document = draft.config_document.content if draft.config_document else b""
            weights = _read_values(listed, file, content, weights, config, document, tools, keep=keep)
        header = _header(file, weights.header or b"")
        return replace(draft, weights=weights, spec=_modules(file, header, config))
    except (HubAccessError, IntegrityError, HubPayloadError, WeightsError, ConfigError) as error:
        return _stop_reading(draft, error)


def _is_measured(weights: WeightsRecord, config: AdapterConfig, tools: Tools) -> bool:
    """Whether the values of a weights file are on record with these scalings, so that it is not fetched."""
    record = tools.known.weights(weights.digest)
    return record is not None and record.fingerprint(pattern_of(record, config)) is not None


def _identify_file(
    listed: ListedRepository, file: RemoteFile, tools: Tools
) -> tuple[RemoteFile, bytes | None]:
    """A weights file with its sha256, and its bytes if they had to be fetched for it.

    For a file outside LFS the tree has only git's hash. Such a file is small, and verified by that hash.
    """
    if file.sha256 is not None:
        return file, None
    record = tools.known.weights(file.oid or "")
    if record is not None and record.git_oid == file.oid:
        return replace(file, sha256=record.digest), None
    content = tools.hub.small_file(listed.name, listed.commit or "", file)
    return replace(file, sha256=hashlib.sha256(content).hexdigest()), content


def _read_values(
    listed: ListedRepository,
    file: RemoteFile,
    content: bytes | None,
    weights: WeightsRecord,
    config: AdapterConfig,
    document: bytes,
    tools: Tools,
    *,
    keep: bool,
) -> WeightsRecord:
    record = replace(tools.known.weights(weights.digest) or weights, git_oid=file.oid)
    if not keep and record.fingerprint(pattern_of(record, config)):
        return record
    if tools.shared is not None and content is None and not keep and not tools.blobs.has(weights.digest):
        task = WeightsTask(listed.name, listed.commit or "", file, document)
        result = tools.shared.read(task)
        read = _with_measurement(replace(record, header=result.header), config, lambda: result.measurement)
    else:
        with _file_at_hand(listed, file, content, tools, keep=keep) as path:

            def measure() -> Measurement:
                with reading_weights(f"the values of {file.path}"):
                    return tools.fingerprints.measure(path, config)

            # The header of the verified file decides: the one that came by itself could not be checked.
            read = _with_measurement(replace(record, header=header_bytes(path)), config, measure)
    tools.known.learn_weights(read)
    return read


def _with_measurement(
    read: WeightsRecord, config: AdapterConfig, measure: Callable[[], Measurement]
) -> WeightsRecord:
    """The record with a fingerprint for this config, which is made if it has none."""
    if read.fingerprint(pattern_of(read, config)) is not None:
        return read
    measured = measure()
    fingerprints = (*read.fingerprints, measured.record)
    return replace(read, tensor_digest=measured.tensor_digest, fingerprints=fingerprints)


@contextmanager
def _file_at_hand(
    listed: ListedRepository, file: RemoteFile, content: bytes | None, tools: Tools, *, keep: bool
) -> Iterator[Path]:
    """A weights file with the promised bytes: the kept one, or one from the Hub, to be kept or not."""
    sha256 = file.sha256 or ""
    store = tools.blobs if keep else tools.streamed
    try:
        path = tools.blobs.path_of(sha256)
    except DamagedFileError as error:
        log.warning("%s", error)
        path, store = None, tools.streamed
    if path is not None:
        yield path
        return
    try:
        if content is not None:
            yield store.put(content)
        else:
            yield tools.hub.download(listed.name, listed.commit or "", file, store)
    finally:
        if store is tools.streamed:
            store.remove(sha256)


def _read_folder(listed: ListedRepository, folder: Folder, tools: Tools) -> Draft:
    """Config, card and header of one folder; the first refused file ends the reading."""
    draft = Draft(folder=folder)
    for step in (_with_config, _with_card, _with_header):
        try:
            draft = step(listed, draft, tools)
        except (HubAccessError, IntegrityError, HubPayloadError) as error:
            if isinstance(error, HubAccessError) and error.status in {"revision_gone", "unauthorized"}:
                raise
            return _stop_reading(draft, error)
    return draft


def _with_config(listed: ListedRepository, draft: Draft, tools: Tools) -> Draft:
    file = draft.folder.config
    if file is None:
        return draft
    if file.size > MOST_CONFIG:
        too_large = ConfigError("too_large", f"{file.path} has {file.size:,} bytes.")
        return replace(draft, config=too_large)
    document = _document(listed, file, tools)
    try:
        with reading(file.path):
            return replace(draft, config=parse_config(document.content), config_document=document)
    except ConfigError as error:
        return replace(draft, config=error, config_document=document)
    except UnreadableError as error:
        refused = ConfigError("unreadable", str(error))
        return replace(draft, config=refused, config_document=document)


def _with_card(listed: ListedRepository, draft: Draft, tools: Tools) -> Draft:
    file = draft.folder.card
    if file is None or file.size > MAX_CARD:
        problems = () if file is None else ("too_large",)
        return replace(draft, card=Card(problems=problems))
    digest = file.oid or file.sha256 or ""
    if tools.known.document(digest) is None and (facts := tools.known.card_facts(listed.hub_id, digest)):
        return replace(draft, card=card_from_facts(facts))
    document = _document(listed, file, tools)
    return replace(draft, card=parse_card(document.content), card_document=document)


def _with_header(listed: ListedRepository, draft: Draft, tools: Tools) -> Draft:
    """The draft with the head of its safetensors file, from the catalog if those bytes are known.

    Raises IntegrityError for weights without a hash: they could never be verified.
    """
    file, config = draft.folder.weights, draft.config
    if file is None or not isinstance(config, AdapterConfig) or config.rank is None:
        return draft
    digest = file.sha256 or file.oid
    if digest is None:
        raise IntegrityError(f"{file.path} has no hash to verify it with.")
    weights = WeightsRecord(digest, file.size)
    try:
        with tools.known.fetching(digest):
            record = tools.known.weights(digest) or weights
            content = record.header or tools.hub.header(listed.name, listed.commit or "", file)
            # The hash of a file does not cover its head alone: an invalid head is not kept under it.
            header = _header(file, content)
            weights = replace(record, header=content)
            if record.header is None:
                tools.known.learn_weights(weights)
        return replace(draft, weights=weights, spec=_modules(file, header, config))
    except WeightsError as error:
        return replace(draft, weights=weights, spec=error)


def _header(file: RemoteFile, content: bytes) -> Header:
    """The header in the head of a safetensors file."""
    with reading_weights(f"the header of {file.path}"):
        return parse_header(content, file.size)


def _modules(file: RemoteFile, header: Header, config: AdapterConfig) -> AdapterSpec:
    """The LoRA modules of a header under a config."""
    with reading_weights(f"the names in {file.path}"):
        return lora_modules(header, config)


def _document(listed: ListedRepository, file: RemoteFile, tools: Tools) -> DocumentRecord:
    """A small file: from the catalog if it has those bytes, else from the Hub, verified."""
    digest = file.oid or file.sha256
    if digest is None:
        raise IntegrityError(f"{file.path} has no hash to verify it with.")
    with tools.known.fetching(digest):
        content = tools.known.document(digest)
        if content is not None:
            return DocumentRecord(digest, content)
        document = DocumentRecord(digest, tools.hub.small_file(listed.name, listed.commit or "", file))
        tools.known.learn_document(document)
        return document


def _unread(status: str, detail: str) -> Draft:
    """The draft that stands for a repository whose files cannot be listed."""
    return Draft(folder=Folder("", main=True, files=()), status=status, detail=detail)


def _stop_reading(draft: Draft, error: Exception) -> Draft:
    """The draft as far as it was read, with the reason why reading stopped."""
    if isinstance(error, HubAccessError):
        if error.status == "unauthorized":
            raise error
        status = error.status
    elif isinstance(error, WeightsError):
        return replace(draft, spec=error)
    else:
        status = "integrity" if isinstance(error, IntegrityError) else "not_read"
    return replace(draft, status=status, detail=str(error))
