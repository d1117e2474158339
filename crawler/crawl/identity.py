"""Which repository bears an `_id` that the listing, or the catalog and the listing, give two names.

A renamed repository keeps its `_id`, and the Hub answers for its old name with the new one. Where the Hub has
both names with the one `_id`, one repository is read, always the same, and the others are named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from catalog.errors import HubAccessError
from crawler.hub import BadRow, Hub, ListedRepository, parse_row


@dataclass(frozen=True)
class Bearer:
    """The repository that is read under an `_id`, and the names of the others that the Hub has with it."""

    repository: ListedRepository
    others: tuple[str, ...]


def bearer(listed: ListedRepository, names: Sequence[str], hub: Hub) -> Bearer:
    """The first of these names under which the Hub has a repository with the `_id` of `listed`.

    One API request a name, none for a name that the Hub gave for an earlier one. Where it has none of them,
    the row of the listing stands. Raises HubError.

    Args:
        names: The name that the catalog knows first, then those of the listing.
    """
    candidates: dict[str, ListedRepository] = {}
    for name in dict.fromkeys(names):
        if name in candidates:
            continue
        row = _look_up(name, hub)
        if row is not None and row.hub_id == listed.hub_id:
            candidates.setdefault(row.name, row)
    if not candidates:
        return Bearer(listed, ())
    first, *other_names = candidates
    return Bearer(candidates[first], tuple(other_names))


def _look_up(name: str, hub: Hub) -> ListedRepository | None:
    """The repository that the Hub has under a name, None where it shows none."""
    try:
        row = parse_row(hub.repository(name))
    except HubAccessError as error:
        if error.status == "unauthorized":
            raise
        return None
    return None if isinstance(row, BadRow) else row
