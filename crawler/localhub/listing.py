"""The list route: its query, and pages of repositories with keyset cursors."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from crawler.localhub.fields import BASIC, FIELDS, FULL, UNKNOWN_HERE, field_value
from crawler.localhub.folder import HubRepository

MAX_PAGE = 1000


class BadQueryError(Exception):
    """A query the Hub answers with 400; the message goes into X-Error-Message."""


@dataclass(frozen=True)
class ListQuery:
    """One request for a list page, as its parameters say; `fields` are the keys in addition to the
    identity."""

    tags: tuple[str, ...] = ()
    author: str | None = None
    search: str = ""
    pipeline_tag: str | None = None
    sort: str = "trendingScore"
    descending: bool = True
    limit: int = MAX_PAGE
    after: tuple[Any, str] | None = None
    fields: tuple[str, ...] = BASIC


def list_query(params: Mapping[str, Sequence[str]]) -> ListQuery:
    """The query of the parameters (name → its values in order). Raises BadQueryError."""
    sort = _last(params, "sort") or "trendingScore"
    if sort not in SORT_KEYS:
        raise BadQueryError(f"Invalid sort field {sort!r}; valid ones are {', '.join(SORT_KEYS)}")
    direction = _last(params, "direction") or "-1"
    if direction not in ("1", "-1"):
        raise BadQueryError("Invalid direction; valid ones are 1 and -1")
    cursor = _last(params, "cursor")
    names: tuple[str, ...] = FULL if truth(params, "full") else BASIC
    names += tuple(name for name in ("cardData", "config") if truth(params, name))
    return ListQuery(
        tags=tuple(params.get("filter", ())),
        author=_last(params, "author"),
        search=(_last(params, "search") or "").lower(),
        pipeline_tag=_last(params, "pipeline_tag"),
        sort=sort,
        descending=direction == "-1",
        limit=page_limit(params),
        after=_decode_place(cursor, sort) if cursor is not None else None,
        fields=parse_expand(params) or names,
    )


def list_page(
    repositories: Iterable[HubRepository], query: ListQuery
) -> tuple[list[HubRepository], str | None]:
    """The repositories of one page in order, and the cursor of the next page, if any.

    The order is by the sort field, then by `_id` upwards, so that a cursor names a place which stays
    valid when repositories come and go between two pages.
    """
    key = SORT_KEYS[query.sort]
    keyed = [(key(repo), repo.identity, repo) for repo in repositories if is_requested(repo, query)]
    if query.after is not None:
        value, identity = query.after
        keyed = [row for row in keyed if _follows(row[0], row[1], value, identity, query.descending)]
    keyed.sort(key=itemgetter(1))
    keyed.sort(key=itemgetter(0), reverse=query.descending)
    page = keyed[: query.limit]
    cursor = None
    if len(keyed) > len(page):
        cursor = encode_cursor({query.sort: page[-1][0], "_id": {"$gt": page[-1][1]}})
    return [repository for _, _, repository in page], cursor


def page_limit(params: Mapping[str, Sequence[str]], most: int = MAX_PAGE) -> int:
    """The requested page size, at most `most`. Raises BadQueryError."""
    limit = _last(params, "limit")
    if limit is None:
        return most
    if not (limit.isascii() and limit.isdigit() and len(limit) < 10 and int(limit) > 0):
        raise BadQueryError("limit must be a positive number")
    return min(int(limit), most)


def parse_expand(params: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The keys that `expand` and `expand[]` name. Raises BadQueryError for an unknown key."""
    keys = (*params.get("expand", ()), *params.get("expand[]", ()))
    for key in keys:
        if key not in FIELDS and key not in UNKNOWN_HERE:
            raise BadQueryError(
                f"Invalid expand {key!r}; valid ones are {', '.join([*FIELDS, *UNKNOWN_HERE])}"
            )
    return tuple(dict.fromkeys(keys))


def truth(params: Mapping[str, Sequence[str]], name: str) -> bool:
    """Whether a flag is switched on, as the client (`true`, `True`) or a person (`1`) writes it."""
    return (_last(params, name) or "").lower() in ("true", "1")


def _sort_key(name: str, unknown: Any) -> Callable[[HubRepository], Any]:
    """A sort key that takes `unknown` where a field has no value of its kind."""
    kind = str if isinstance(unknown, str) else (int, float)

    def key(repository: HubRepository) -> Any:
        value = field_value(repository, name)
        return value if isinstance(value, kind) and value == value else unknown

    return key


SORT_KEYS: Mapping[str, Callable[[HubRepository], Any]] = {
    **{name: _sort_key(name, "") for name in ("createdAt", "lastModified")},
    **{name: _sort_key(name, 0) for name in ("downloads", "likes", "trendingScore")},
}


def is_requested(repository: HubRepository, query: ListQuery) -> bool:
    tags = repository.tags if query.tags else None
    return (
        not repository.flag("private")
        and query.author in (None, repository.owner)
        and query.search in repository.repo_id.lower()
        and (not query.tags or (isinstance(tags, list) and all(name in tags for name in query.tags)))
        and (query.pipeline_tag is None or field_value(repository, "pipeline_tag") == query.pipeline_tag)
    )


def _follows(value: Any, identity: str, last_value: Any, last_identity: str, descending: bool) -> bool:
    if value == last_value:
        return identity > last_identity
    return bool(value < last_value) if descending else bool(value > last_value)


def encode_cursor(place: Mapping[str, Any]) -> str:
    return base64.b64encode(json.dumps(place, separators=(",", ":")).encode()).decode()


def decode_cursor(cursor: str, last: str, *names: str) -> tuple[Any, ...]:
    """The values of a cursor: the text that the next page follows, under `last`, and those under other names.

    Raises BadQueryError.
    """
    try:
        place = json.loads(base64.b64decode(cursor, validate=True))
        values = (place[last]["$gt"], *(place[name] for name in names))
    except (LookupError, RecursionError, TypeError, ValueError):
        raise BadQueryError("Invalid cursor") from None
    if not isinstance(values[0], str):
        raise BadQueryError("Invalid cursor")
    return values


def _decode_place(cursor: str, sort: str) -> tuple[Any, str]:
    identity, value = decode_cursor(cursor, "_id", sort)
    if not isinstance(value, str if sort in ("createdAt", "lastModified") else (int, float)):
        raise BadQueryError("Invalid cursor")
    return value, identity


def _last(params: Mapping[str, Sequence[str]], name: str) -> str | None:
    values = params.get(name)
    return values[-1] if values else None
