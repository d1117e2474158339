"""A pool: adapters pinned to commits and hashes, how they were chosen, and the manifest that records both.

The manifest is canonical JSON: sorted keys, two spaces, UTF-8, one newline at the end, no time and no place.
The same choice gives the same bytes anywhere, and the sha256 of the bytes is the pool's identity. No database
is needed: the manifest and the files suffice.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_args

from catalog.adapters import USES, BaseTable, Use, initial_table, objection
from catalog.errors import ConfigError, PoolError
from catalog.files import load_json, read_limited, unsafe_path

FORMAT = "loradex-pool/1"
MANIFEST_NAME = "pool.json"
# The number of characters of the digest in the names of folders.
SHORT = 8
MOST_BYTES = 64 * 1024 * 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REPOSITORY = re.compile(r"[A-Za-z0-9._-]{1,200}(/[A-Za-z0-9._-]{1,200})?")
T = TypeVar("T")


@dataclass(frozen=True)
class PinnedFile:
    """A file of an adapter: its name in the adapter's folder, its size in bytes and its sha256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Member:
    """One adapter of a pool, pinned; `score` and `why` record how it was chosen."""

    repository: str
    hub_id: str
    commit: str
    subfolder: str
    files: tuple[PinnedFile, ...]
    rank: int | None = None
    alpha: float | None = None
    scaling: float | None = None
    use_rslora: bool = False
    targets: tuple[str, ...] = ()
    parameters: int | None = None
    norm: float | None = None
    tensor_digest: str | None = None
    license: str | None = None
    score: float | None = None
    why: str = ""

    @property
    def adapter(self) -> str:
        """owner/name, with :folder where it is not in the root."""
        return f"{self.repository}:{self.subfolder}" if self.subfolder else self.repository

    @property
    def reference(self) -> str:
        """owner/name@commit, with :folder where it is not in the root."""
        at = f"{self.repository}@{self.commit}"
        return f"{at}:{self.subfolder}" if self.subfolder else at

    @property
    def folder_name(self) -> str:
        """The name of the adapter's folder, the same everywhere."""
        return self.adapter.replace("/", "--").replace(":", "--")


@dataclass(frozen=True)
class Manifest:
    """The manifest of a pool.

    `chosen` is how the members were chosen: strategy (`by`), seed, filter and all other options, as plain
    JSON. `controls` are what the pool is to be compared with: other pools by name and digest, and random
    stand-ins that the merging side makes (see `merging.static.controls`).
    """

    name: str
    base: str | None
    members: tuple[Member, ...]
    chosen: Mapping[str, Any] = field(default_factory=dict)
    controls: tuple[Mapping[str, Any], ...] = ()
    base_license: str | None = None
    use: Use = "research"

    def canonical(self) -> bytes:
        """The bytes of the manifest."""
        document = {"format": FORMAT, **asdict(self)}
        text = json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
        return f"{text}\n".encode()

    @property
    def digest(self) -> str:
        """The sha256 of the canonical bytes."""
        return hashlib.sha256(self.canonical()).hexdigest()

    def canonical_base(self, table: BaseTable | None = None) -> str | None:
        """The base model by its one name, whatever spelling the manifest has, by `table` or the built-in
        table.
        """
        return (table or initial_table()).canonical(self.base)

    @property
    def folder_name(self) -> str:
        """The name of the pool's folder: its own and the beginning of its digest."""
        return f"{self.name}-{self.digest[:SHORT]}"


def check_name(name: str) -> str:
    """The name of a pool, unchanged; raises PoolError if it is not a valid name of a folder."""
    if not _NAME.fullmatch(name) or unsafe_path(name):
        raise PoolError(f"{name[:80]!r} is not a valid name for a pool; use letters, digits, dots, - and _.")
    return name


def read_manifest(path: Path) -> Manifest:
    """The manifest in a pool.json, or in the folder that holds one; raises NotFoundError and PoolError."""
    file = path / MANIFEST_NAME if path.is_dir() else path
    advice = f"give a pool's {MANIFEST_NAME} or its folder"
    return parse_manifest(read_limited(file, MOST_BYTES, kind="a manifest", advice=advice, error=PoolError))


def parse_manifest(data: bytes) -> Manifest:
    """The manifest in these bytes, with every field validated: an untrusted one may name any path.

    Raises PoolError unless these are the canonical bytes of a manifest of this format.
    """
    try:
        document = load_json(data, max_bytes=MOST_BYTES)
    except ConfigError as error:
        raise PoolError(f"This is not a pool manifest: {error}.") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise PoolError(f"This is not a pool manifest of the format {FORMAT}.")
    try:
        manifest = _manifest(document)
    except (KeyError, TypeError, ValueError) as error:
        raise PoolError(f"The pool manifest cannot be used: {error}.") from error
    if manifest.canonical() != data:
        raise PoolError("The pool manifest was changed after loradex wrote it. Select the pool again.")
    return manifest


def _manifest(document: dict[str, Any]) -> Manifest:
    allowed = {f.name for f in fields(Manifest)} | {"format"}
    if unknown := sorted(set(document) - allowed):
        raise ValueError(f"it has the unknown field {unknown[0]!r}")
    use = _is(str, document["use"], "use")
    if use not in USES:
        raise ValueError(f"{use!r} is not a use of a pool")
    members = tuple(_member(row) for row in _is(list, document["members"], "members"))
    names = [member.folder_name for member in members]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"it contains {repeated} twice")
    return Manifest(
        name=check_name(_is(str, document["name"], "name")),
        base=_or_none(str, document["base"], "base"),
        members=members,
        chosen=_is(dict, document["chosen"], "chosen"),
        controls=tuple(_is(dict, row, "controls") for row in _is(list, document["controls"], "controls")),
        base_license=_or_none(str, document["base_license"], "base_license"),
        use=next(name_of_use for name_of_use in get_args(Use) if name_of_use == use),
    )


def _member(row: Any) -> Member:
    values = dict(_is(dict, row, "member"))
    targets, files = (_is(list, values.pop(name), name) for name in ("targets", "files"))
    member = Member(
        repository=_fits(_REPOSITORY, values.pop("repository"), "repository"),
        hub_id=_is(str, values.pop("hub_id"), "hub_id"),
        commit=_fits(_COMMIT, values.pop("commit"), "commit"),
        subfolder=_below(values.pop("subfolder"), empty=True),
        files=tuple(_file(entry) for entry in files),
        rank=_or_none(int, values.pop("rank"), "rank"),
        alpha=_number(values.pop("alpha"), "alpha"),
        scaling=_number(values.pop("scaling"), "scaling"),
        use_rslora=_is(bool, values.pop("use_rslora"), "use_rslora"),
        targets=tuple(_is(str, entry, "targets") for entry in targets),
        parameters=_or_none(int, values.pop("parameters"), "parameters"),
        norm=_number(values.pop("norm"), "norm"),
        tensor_digest=_or_none(str, values.pop("tensor_digest"), "tensor_digest"),
        license=_or_none(str, values.pop("license"), "license"),
        score=_number(values.pop("score"), "score"),
        why=_is(str, values.pop("why"), "why"),
    )
    if values:
        raise ValueError(f"a member has the unknown field {sorted(values)[0]!r}")
    return member


def _file(row: Any) -> PinnedFile:
    size = _is(int, row["size"], "size")
    if size < 0 or set(row) != {"name", "size", "sha256"}:
        raise ValueError("a file has an invalid size or unknown fields")
    name = _below(row["name"])
    if "/" in name:
        raise ValueError(f"the file {name!r} is not in the adapter's own folder")
    return PinnedFile(name, size, _fits(_SHA256, row["sha256"], "sha256"))


def _below(path: Any, *, empty: bool = False) -> str:
    text = _is(str, path, "path")
    if reason := None if empty and not text else unsafe_path(text):
        raise ValueError(f"the path {text[:80]!r} {reason}")
    return text


def _fits(form: re.Pattern[str], value: Any, name: str) -> str:
    text = _is(str, value, name)
    if not form.fullmatch(text) or unsafe_path(text):
        raise ValueError(f"{text[:80]!r} is not a {name}")
    return text


def _is(kind: type[T], value: Any, name: str) -> T:
    if type(value) is not kind:
        raise TypeError(f"{name} is not a {kind.__name__}")
    return value


def _or_none(kind: type[T], value: Any, name: str) -> T | None:
    return None if value is None else _is(kind, value, name)


def _number(value: Any, name: str) -> float | None:
    if value is not None and type(value) not in (int, float):
        raise TypeError(f"{name} is not a number")
    return None if value is None else float(value)


@dataclass(frozen=True)
class PoolProblem:
    """A problem of a pool: the member (or the pool as a whole), its kind, and a sentence.

    Kinds: missing, changed, vanished, moved, license, peft (plain PEFT does not load all of it).
    """

    member: str
    kind: str
    detail: str


def license_problems(manifest: Manifest, use: Use | None = None) -> list[PoolProblem]:
    """The members, and the base model, whose license forbids the use of the pool (or another `use`)."""
    use_asked = use or manifest.use
    problems = [
        PoolProblem(member.adapter, "license", f"{member.adapter} {reason}.")
        for member in manifest.members
        if (reason := objection(member.license, use_asked))
    ]
    if manifest.base and (reason := objection(manifest.base_license, use_asked)) and manifest.base_license:
        problems.append(PoolProblem(manifest.base, "license", f"The base model {manifest.base} {reason}."))
    return problems
