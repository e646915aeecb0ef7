"""Sessions of Stripe's hosted pages (`schemas.checkout.StripeSessions`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

import stripe

from schemas.checkout import ACCOUNT_KEY, OPERATION_KEY, StripeSession
from schemas.clock import SECOND_MS
from schemas.errors import InvalidInput
from sinks.stripe.connection import is_stored_failure, json_of, read, stored
from sinks.stripe.objects import PART_PAGES_MAX
from sinks.stripe.schedules import StripeClientSchedules

NAME_KEY: Final = "tidemark_portal"
_SESSIONS: Final = "/v1/checkout/sessions"
_CONFIGURATIONS: Final = "/v1/billing_portal/configurations"


class StripeClientSessions(StripeClientSchedules):
    """Makes and reads sessions, with one API key. For use in one event loop."""

    async def open_sessions(self, customer: str) -> Sequence[StripeSession]:
        """See `StripeSessions`. Costs one call for 100 sessions."""
        wanted = {"customer": customer, "status": "open"}
        return [_session(row) async for row in self._rows(_SESSIONS, wanted, PART_PAGES_MAX)]

    async def session(self, identifier: str) -> StripeSession:
        """See `StripeSessions`. Costs one call."""
        path = f"{_SESSIONS}/{quote(identifier, safe='')}"
        return await read(lambda: self._stripe.raw_request_async("get", path), lambda found: _session(json_of(found)))

    async def expire_session(self, identifier: str) -> None:
        """See `StripeSessions`. Costs one call, and one more if the session is not open."""
        path = f"{_SESSIONS}/{quote(identifier, safe='')}/expire"
        try:
            await read(lambda: self._stripe.raw_request_async("post", path), json_of)
        except InvalidInput:
            if (await self.session(identifier)).status == "open":
                raise

    async def open_checkout(self, params: Mapping[str, Any], key: str) -> StripeSession | None:
        """See `StripeSessions`. Costs one call."""
        found = await self._written("post", _SESSIONS, params, key)
        return None if found is None else _session(found)

    async def open_portal(self, params: Mapping[str, Any]) -> str:
        """See `StripeSessions`. Costs one call."""
        path = "/v1/billing_portal/sessions"
        return await read(
            lambda: self._stripe.raw_request_async("post", path, **params), lambda found: str(json_of(found)["url"])
        )

    async def portal_configuration(self, features: Mapping[str, Any], name: str) -> str:
        """See `StripeSessions`. Costs one call, and one more for the first time. Somebody may have changed the features
        in the dashboard: that stays."""
        rows = [row async for row in self._rows(_CONFIGURATIONS, {"active": True}, PART_PAGES_MAX)]
        for row in rows:
            if (row.get("metadata") or {}).get(NAME_KEY) == name:
                return str(row["id"])
        params = {"features": features, "metadata": {NAME_KEY: name}}
        return await read(
            lambda: self._stripe.raw_request_async("post", _CONFIGURATIONS, **params),
            lambda found: str(json_of(found)["id"]),
        )

    async def _written(self, method: Any, path: str, params: Mapping[str, Any], key: str) -> Mapping[str, Any] | None:
        """The answer of a call that changes something; None if Stripe has stored that it failed by itself."""

        async def call() -> Any:
            try:
                return await stored(lambda: self._stripe.raw_request_async(method, path, **params, idempotency_key=key))
            except stripe.StripeError as error:
                if is_stored_failure(error):
                    return None
                raise

        return await read(call, lambda found: None if found is None else json_of(found))


def _session(body: Mapping[str, Any]) -> StripeSession:
    marks, subscription = body.get("metadata") or {}, body.get("subscription")
    return StripeSession(
        str(body["id"]),
        str(body["status"]),
        str(body["url"] or ""),
        int(body["expires_at"]) * SECOND_MS,
        str(marks.get(ACCOUNT_KEY, "")),
        str(marks.get(OPERATION_KEY, "")),
        _id(subscription),
        _id(body.get("invoice")),
    )


def _id(value: Any) -> str:
    return str(value["id"]) if isinstance(value, Mapping) else str(value or "")
