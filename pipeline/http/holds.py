"""`POST /v1/access/holds/{hold}/use` and `…/release`: what became of a quantity that a check held for its caller."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from pipeline.http.access import hold_answer, opened_access, quantity_of
from pipeline.http.api_keys import ApiKey
from pipeline.http.body import Bodies
from pipeline.http.dependencies import Checker, GatewayDependencies
from pipeline.http.errors import ApiError, json_answer

BODY_BYTES_MAX: Final = 16 * 1024


class Used(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The body of a request that uses a hold."""

    quantity: str | None = None


class HoldEndpoints:
    """The handlers. An app has one object."""

    def __init__(self, dependencies: GatewayDependencies) -> None:
        self._dependencies = dependencies
        self._bodies = Bodies(BODY_BYTES_MAX)

    async def use(self, request: Request, hold: str, key: Checker) -> Response:
        """Says how much of a hold was used, at most what was held; all of it without a quantity. Send the events of the
        usage first. The same request again changes nothing."""
        async with self._bodies.read(request) as body:
            wanted = _used(body)
        quantity = None if wanted.quantity is None else quantity_of("quantity", wanted.quantity)
        return await self._ended(hold, key, quantity)

    async def release(self, hold: str, key: Checker) -> Response:
        """Gives the whole quantity of a hold back. The same request again changes nothing."""
        return await self._ended(hold, key, Decimal(0))

    async def _ended(self, hold_id: str, key: ApiKey, used: Decimal | None) -> Response:
        holds = opened_access(self._dependencies)[0].holds
        if holds is None:
            raise ApiError(501, "not_configured", "this gateway takes no holds")
        found = await holds.get(hold_id)
        # A key of another account does not learn that there is such a hold.
        if found is None or not key.reaches(found.account):
            raise ApiError(404, "no_hold", "there is no such hold: an ended one is kept for a day", "hold")
        wanted = found.quantity if used is None else used
        ended = await holds.end(found, wanted)
        answer = hold_answer(ended, self._dependencies.clock.now_ms())
        if ended.used != wanted:
            message = f"the hold is {answer.state} since {answer.expires_at} at the latest"
            raise ApiError(409, "hold_ended", message + (f", with {answer.used}" if ended.used else ""))
        return json_answer(answer)


def _used(body: bytes) -> Used:
    """The body of a request; an empty one says nothing. Raises `ApiError`."""
    try:
        return msgspec.json.decode(body, type=Used) if body.strip() else Used()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        message = f'{str(error)[:200]}; send {{"quantity": "3"}}, or nothing for all that is held'
        raise ApiError(400, "invalid_input", message) from None
