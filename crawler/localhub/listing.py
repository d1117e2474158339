"""The list route: its query, and pages of repositories with keyset cursors."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
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
    return ListQuery(
        tags=tuple(params.get("filter", ())),
        author=_last(params, "author"),
        search=(_last(params, "search") or "").lower(),
        pipeline_tag=_last(params, "pipeline_tag"),
        sort=sort,
        descending=direction == "-1",
        limit=page_limit(params),
        after=_decode_cursor(cursor, sort) if cursor is not None else None,
        fields=parse_expand(params) or _list_fields(params),
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
    keyed.sort(key=_identity_of)
    keyed.sort(key=_value_of, reverse=query.descending)
    page = keyed[: query.limit]
    cursor = _encode_cursor(query.sort, *page[-1][:2]) if len(keyed) > len(page) else None
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


def _number(name: str) -> Callable[[HubRepository], float]:
    """A sort key that counts a repository as zero if its counter is not a number."""

    def key(repository: HubRepository) -> float:
        value = field_value(repository, name)
        return value if isinstance(value, (int, float)) and value == value else 0

    return key


def _text(name: str) -> Callable[[HubRepository], str]:
    def key(repository: HubRepository) -> str:
        value = field_value(repository, name)
        return value if isinstance(value, str) else ""

    return key


SORT_KEYS: Mapping[str, Callable[[HubRepository], Any]] = {
    "createdAt": _text("createdAt"),
    "lastModified": _text("lastModified"),
    "downloads": _number("downloads"),
    "likes": _number("likes"),
    "trendingScore": _number("trendingScore"),
}


def _list_fields(params: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    names = FULL if truth(params, "full") else BASIC
    extra = [name for flag, name in (("cardData", "cardData"), ("config", "config")) if truth(params, flag)]
    return (*names, *extra)


def is_requested(repository: HubRepository, query: ListQuery) -> bool:
    if repository.flag("private"):
        return False
    if query.author is not None and repository.owner != query.author:
        return False
    if query.search not in repository.repo_id.lower():
        return False
    if query.tags:
        tags = repository.tags
        return (
            isinstance(tags, list) and all(tag in tags for tag in query.tags) and _in_task(repository, query)
        )
    return _in_task(repository, query)


def _in_task(repository: HubRepository, query: ListQuery) -> bool:
    return query.pipeline_tag is None or field_value(repository, "pipeline_tag") == query.pipeline_tag


def _follows(value: Any, identity: str, last_value: Any, last_identity: str, descending: bool) -> bool:
    if value == last_value:
        return identity > last_identity
    return bool(value < last_value) if descending else bool(value > last_value)


def _encode_cursor(sort: str, value: Any, identity: str) -> str:
    text = json.dumps({sort: value, "_id": {"$gt": identity}}, separators=(",", ":"))
    return base64.b64encode(text.encode()).decode()


def _decode_cursor(cursor: str, sort: str) -> tuple[Any, str]:
    wrong = BadQueryError("Invalid cursor")
    try:
        parsed = json.loads(base64.b64decode(cursor, validate=True))
    except (binascii.Error, ValueError, RecursionError):
        raise wrong from None
    if not isinstance(parsed, dict) or set(parsed) != {sort, "_id"} or not isinstance(parsed["_id"], dict):
        raise wrong
    value, identity = parsed[sort], parsed["_id"].get("$gt")
    kind = str if sort in ("createdAt", "lastModified") else (int, float)
    if not isinstance(value, kind) or not isinstance(identity, str):
        raise wrong
    return value, identity


def _last(params: Mapping[str, Sequence[str]], name: str) -> str | None:
    values = params.get(name)
    return values[-1] if values else None


def _identity_of(row: tuple[Any, str, HubRepository]) -> str:
    return row[1]


def _value_of(row: tuple[Any, str, HubRepository]) -> Any:
    return row[0]
