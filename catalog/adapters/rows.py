"""An adapter of a catalog as a user names it, as lists show it, as it is compared, and all known of it.

A name is `owner/name`, optionally `@commit` and `:subfolder`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from catalog.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from catalog.adapters.engine_rules import EngineVerdict

_FORM = re.compile(r"(?P<name>[^@:\s]+)(?:@(?P<commit>[0-9a-fA-F]{4,40}))?(?::(?P<subfolder>[^\x00-\x1f]+))?")


@dataclass(frozen=True)
class AdapterRow:
    """One adapter of a catalog at its current commit.

    `verdict` and `reasons` say what the rules in use make of it; `partial` lists the reasons for which its
    update is more than scaling * B A. `norm` is the Frobenius norm of that product. None stands for a value
    that the catalog does not hold. `own_tags`, `note` and `hidden` are what the user wrote about it.
    """

    adapter: str
    commit: str
    base: str | None
    rank: int | None
    alpha: float | None
    scaling: float | None
    targets: Sequence[str] | None
    parameters: int | None
    license: str | None
    verdict: str
    reasons: Sequence[str]
    norm: float | None
    health: str | None
    partial: Sequence[str] | None
    own_tags: Sequence[str]
    note: str | None
    hidden: bool


@dataclass(frozen=True)
class AdapterDetails(AdapterRow):
    """Everything known of one adapter: its row, its repository, its configuration, files, card and training.

    `uses` says what in its license speaks against each use, None if nothing does. `details` says what was
    seen, by reason. `base_raw` is the base model as the adapter spells it. `card` is its text without
    mark-up; `card_left_out`: a snapshot left it out, and `Catalog.card` fetches it.
    """

    hub_id: str
    aliases: Sequence[str]
    created: datetime | None
    modified: datetime | None
    gone: datetime | None
    gated: str | None
    downloads: int | None
    likes: int | None
    tags: Sequence[str] | None
    current: bool
    main: bool
    other_adapters: Sequence[str]
    base_raw: str | None
    base_kind: str | None
    base_evidence: str | None
    peft_type: str | None
    task_type: str | None
    use_rslora: bool | None
    modules: int | None
    dtypes: Sequence[str] | None
    weights: Mapping[str, str | None]
    files: Sequence[Mapping[str, Any]] | None
    card_quality: str | None
    card: str
    card_left_out: bool
    training: Mapping[str, Any]
    details: Mapping[str, str]
    runs_in: Sequence[EngineVerdict]
    uses: Mapping[str, str | None]


@dataclass(frozen=True)
class AdapterNotes:
    """What a user wrote about an adapter: tags in order, a note, and whether lists leave it out.

    `adapter` is its newest name in the catalog, or the one that an import gave.
    """

    adapter: str
    hub_id: str
    subfolder: str
    tags: tuple[str, ...] = ()
    note: str | None = None
    hidden: bool = False

    def __bool__(self) -> bool:
        """Whether there is anything."""
        return bool(self.tags or self.note is not None or self.hidden)


def vector_key(weights_digest: str, scaling_pattern: str) -> str:
    """The name of a fingerprint: the file's digest, and the pattern if any."""
    return f"{weights_digest}+{scaling_pattern}" if scaling_pattern else weights_digest


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter at its current commit; `id` is its row.

    `partial` are the reasons why its B A is not its whole update; `is_refused`: the rules refuse it.
    The fields of maps (`health`, `library`, `front`) and `delta`, the sketch of the update over its largest
    scaling, are None if they were not requested.
    """

    id: int
    repository: str
    hub_id: str
    owner: str
    commit: str
    subfolder: str
    base: str | None
    rank: int | None
    alpha: float | None
    scaling: float | None
    use_rslora: bool | None
    targets: Any
    parameters: int | None
    norm: float | None
    license: str | None
    partial: Any
    scaling_pattern: str | None
    weights_digest: str
    weights_name: str | None
    tensor_digest: str | None
    config_digest: str | None
    card_digest: str | None
    health: str | None = None
    library: str | None = None
    front: Any = None
    is_refused: bool = False
    delta: NDArray[Any] | None = field(default=None, repr=False, compare=False)

    @property
    def adapter(self) -> str:
        """Its short name."""
        return adapter_name(self.repository, self.subfolder)

    @property
    def key(self) -> str:
        """The key of its vectors."""
        return vector_key(self.weights_digest, self.scaling_pattern or "")

    @property
    def datasets(self) -> tuple[str, ...]:
        """The datasets that its card's front matter names."""
        datasets = self.front.get("datasets") if isinstance(self.front, dict) else None
        datasets = [datasets] if isinstance(datasets, str) else datasets
        return tuple(name for name in datasets if isinstance(name, str)) if isinstance(datasets, list) else ()


@dataclass(frozen=True)
class AdapterReference:
    """A repository's name, a commit or its beginning, and a folder; None for the current and the main one."""

    name: str
    commit: str | None = None
    subfolder: str | None = None

    @classmethod
    def parse(cls, text: str) -> AdapterReference:
        """The reference that a user typed; `:.` is the root. Raises UsageError."""
        match = _FORM.fullmatch(text.strip())
        if match is None:
            raise UsageError(
                f"{text!r} does not name an adapter; write owner/name, owner/name@commit or "
                "owner/name:folder."
            )
        commit, subfolder = match["commit"], match["subfolder"]
        if subfolder is not None:
            subfolder = subfolder.strip("/")
            subfolder = "" if subfolder == "." else subfolder
        return cls(match["name"], commit.lower() if commit else None, subfolder)

    def __str__(self) -> str:
        commit = f"@{self.commit}" if self.commit else ""
        return (
            f"{self.name}{commit}:{self.subfolder or '.'}"
            if self.subfolder is not None
            else f"{self.name}{commit}"
        )


def adapter_name(name: str, subfolder: str) -> str:
    """The short name of an adapter at its current commit: its repository's, and its folder below the root."""
    return f"{name}:{subfolder}" if subfolder else name
