"""`GET /v1/notices`: what accounts were warned about, and whether the warning arrived."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import Query
from starlette.responses import Response

from aggregators.instants import format_instant_ms
from pipeline.http import models
from pipeline.http.dependencies import Admin, GatewayDependencies
from pipeline.http.errors import ApiError, json_answer, retry_after
from pipeline.http.queries import NoticesParameters
from schemas.notices import Delivery, NoticeOutbox, cursor_of


class NoticesEndpoint:
    """The handler. An app has one object."""

    def __init__(self, dependencies: GatewayDependencies) -> None:
        self._dependencies = dependencies

    async def listed(self, key: Admin, parameters: Annotated[NoticesParameters, Query()]) -> Response:
        """Deliveries of notices, the newest first. A key of one account gets the notices of its own account."""
        if parameters.account and not key.reaches(parameters.account):
            raise ApiError(403, "forbidden", f"key {key.id} belongs to another account", "account")
        account, limit = parameters.account or key.account or "", parameters.limit
        found = await self._outbox().listed(parameters.state, account, limit + 1, parameters.cursor)
        answer = models.NoticesAnswer(notices=[notice_answer(each) for each in found[:limit]])
        if len(found) > limit:
            answer = answer.model_copy(update={"next_cursor": cursor_of(found[limit - 1])})
        return json_answer(answer)

    def _outbox(self) -> NoticeOutbox:
        notices = self._dependencies.notices
        if notices is None:
            raise ApiError(501, "not_configured", "this gateway lists no notices: set TIDEMARK_SQL_URL")
        outbox = notices()
        if outbox is None:
            raise ApiError(503, "not_known_yet", "PostgreSQL has not answered yet", headers=retry_after(2))
        return outbox


def notice_answer(delivery: Delivery) -> models.NoticeAnswer:
    """A delivery in JSON."""
    notice = delivery.notice
    return models.NoticeAnswer(
        id=notice.id,
        type=notice.kind.value,
        account=notice.account,
        made_at=format_instant_ms(notice.made_ms),
        channel=delivery.channel.value,
        state=delivery.state.value,
        detail=delivery.detail,
        failures=delivery.failures,
        due_at=format_instant_ms(delivery.due_ms) if delivery.settled_ms is None else None,
        settled_at=None if delivery.settled_ms is None else format_instant_ms(delivery.settled_ms),
        data=msgspec.json.decode(notice.body)["data"],
    )
