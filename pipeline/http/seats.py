"""Seats over HTTP: `/v1/accounts/{account}/seats`, and what becomes of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from aggregators.instants import format_instant_ms
from pipeline.changes.parts import Parts
from pipeline.changes.seating import SeatsFull, SeatWish, Standing, allowed_text, seat_parts, standings, take_seat
from pipeline.http import seat_models as models
from pipeline.http.api_keys import ApiKey
from pipeline.http.body import Bodies
from pipeline.http.changes import KEY_CHARACTERS_MAX, Text, actor, decoded, parts_of
from pipeline.http.dependencies import Billing, GatewayDependencies, SeatReader
from pipeline.http.errors import ApiError, json_answer
from pipeline.http.queries import AccountInPath, SeatsParameters
from schemas.errors import InvalidInput
from schemas.events import check_account
from schemas.seats import Seat, SeatState

BODY_BYTES_MAX: Final = 16 * 1024


class SeatBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The body of a request for a seat."""

    feature: Text
    holder: Text
    reserve: bool = False
    by: Text = ""


class MoveBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The body of an activation or a release."""

    by: Text = ""


class SeatEndpoints:
    """The handlers. An app has one object."""

    def __init__(self, dependencies: GatewayDependencies) -> None:
        self._dependencies = dependencies
        self._bodies = Bodies(BODY_BYTES_MAX)

    async def listed(
        self, account: AccountInPath, _key: SeatReader, parameters: Annotated[SeatsParameters, Query()]
    ) -> Response:
        """The seats of an account that are held, the oldest first, and for each feature how many there may be."""
        check_account(account)
        parts, limit = await parts_of(self._dependencies), parameters.limit
        now_ms = parts.clock.now_ms()
        found = await parts.seats.listed(account, parameters.feature, now_ms, limit + 1, parameters.cursor)
        answer = seats_answer(account, await standings(seat_parts(parts), account), found[:limit], now_ms)
        if len(found) > limit:
            answer = answer.model_copy(update={"next_cursor": found[limit - 1].id})
        return json_answer(answer)

    async def post(self, request: Request, account: AccountInPath, key: Billing) -> Response:
        """Gives a holder a seat, or reserves one: 201, and 200 to a holder who has one already. The same
        Idempotency-Key gets the same seat, whatever became of it; without one, the holder is the key."""
        async with self._bodies.read(request) as body:
            wanted = decoded(body, SeatBody, '{"feature": "locations", "holder": "loc_17"}')
        name = request.headers.get("idempotency-key", "")
        if len(name) > KEY_CHARACTERS_MAX:
            raise InvalidInput("Idempotency-Key", f"must have at most {KEY_CHARACTERS_MAX} characters")
        parts = await parts_of(self._dependencies)
        wish = SeatWish(account, wanted.feature, wanted.holder, wanted.reserve, name)
        found = await take_seat(seat_parts(parts), wish, actor(wanted.by, key))
        if isinstance(found, SeatsFull):
            raise ApiError(409, "seats_full", found.message, "holder")
        seat, is_new = found
        return json_answer(seat_answer(seat, parts.clock.now_ms()), 201 if is_new else 200)

    async def activate(self, request: Request, account: AccountInPath, seat: str, key: Billing) -> Response:
        """Makes a reserved seat active; never fails for want of a seat. The same request again changes nothing."""
        parts, actor = await self._asked(request, account, key)
        found = await parts.seats.activate(account, seat, actor, parts.clock.now_ms())
        if found is not None and found.state is SeatState.RELEASED:
            message = "the seat was released, or its reservation has expired: ask for a new one"
            raise ApiError(409, "seat_released", message, "seat")
        return _moved(found, parts)

    async def release(self, request: Request, account: AccountInPath, seat: str, key: Billing) -> Response:
        """Releases a seat. The same request again changes nothing."""
        parts, actor = await self._asked(request, account, key)
        return _moved(await parts.seats.release(account, seat, actor, parts.clock.now_ms()), parts)

    async def _asked(self, request: Request, account: str, key: ApiKey) -> tuple[Parts, str]:
        check_account(account)
        async with self._bodies.read(request) as body:
            wanted = decoded(body, MoveBody, '{"by": "ann"}, or nothing') if body.strip() else MoveBody()
        return await parts_of(self._dependencies), actor(wanted.by, key)


def _moved(found: Seat | None, parts: Parts) -> Response:
    if found is None:
        raise ApiError(404, "no_seat", "the account has no such seat: GET …/seats lists them", "seat")
    return json_answer(seat_answer(found, parts.clock.now_ms()))


def seats_answer(account: str, found: Sequence[Standing], seats: Sequence[Seat], now_ms: int) -> models.SeatsAnswer:
    """The seats of an account in JSON."""
    return models.SeatsAnswer(
        account=account,
        features=[_standing(each) for each in found],
        seats=[seat_answer(seat, now_ms) for seat in seats],
    )


def seat_answer(seat: Seat, now_ms: int) -> models.SeatAnswer:
    """A seat in JSON, as it is at an instant."""
    return models.SeatAnswer(
        id=seat.id,
        account=seat.account,
        feature=seat.feature,
        holder=seat.holder,
        state=seat.at(now_ms).value,
        made_at=format_instant_ms(seat.made_ms),
        changed_at=format_instant_ms(seat.changed_ms),
        expires_at=None if seat.expires_ms is None else format_instant_ms(seat.expires_ms),
    )


def _standing(found: Standing) -> models.SeatStandingAnswer:
    return models.SeatStandingAnswer(
        feature=found.feature,
        held=found.holders.held,
        reserved=found.holders.reserved,
        active=found.holders.active,
        allowed=allowed_text(found.allowed),
        quantity=found.paid,
        can_grow=found.can_grow,
    )
