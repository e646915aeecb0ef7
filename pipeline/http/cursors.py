"""Cursors of `GET /v1/usage`: the row after which the next page begins, and the question that the row answers."""

from __future__ import annotations

import base64
from hashlib import blake2b

import msgspec

from pipeline.http.errors import ApiError
from schemas.analytics import UsageQuery, UsageRow


class _Cursor(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    question: str
    window_start_ms: int
    groups: tuple[str, ...]


def cursor_behind(query: UsageQuery, row: UsageRow) -> str:
    """The cursor of the page behind a row of the answer to a query."""
    groups = tuple(row.groups[name] for name in query.group_by)
    content = msgspec.json.encode(_Cursor(_question(query), row.window_start_ms or 0, groups))
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def continued(query: UsageQuery, cursor: str) -> UsageQuery:
    """The query for the page that a cursor names. Raises `ApiError` 400 if the cursor belongs to another question."""
    try:
        content = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        page = msgspec.json.decode(content, type=_Cursor)
    except (ValueError, msgspec.MsgspecError):
        page = None
    if page is None or page.question != _question(query) or len(page.groups) != len(query.group_by):
        message = "cursor: is not one of an answer to this question; begin without a cursor"
        raise ApiError(400, "bad_parameter", message, "cursor")
    return query._replace(after=(page.window_start_ms, page.groups))


def _question(query: UsageQuery) -> str:
    return blake2b(repr(query._replace(after=None)).encode(), digest_size=8).hexdigest()
