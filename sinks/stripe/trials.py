"""What trials need of Stripe (`schemas.trials.StripeTrials`)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from schemas.clock import SECOND_MS
from schemas.errors import InvalidInput
from schemas.trials import Begun
from sinks.stripe.connection import json_of, read
from sinks.stripe.sessions import StripeClientSessions

_COUPONS: Final = "/v1/coupons"
_CODES: Final = "/v1/promotion_codes"


class StripeClientTrials(StripeClientSessions):
    """Makes the discounts of trials and reads their cards, with one API key. For use in one event loop."""

    async def coupon(self, percent: str) -> str:
        """See `StripeTrials`. Costs one call, and one more for the first time."""
        identifier = f"tidemark_early_{percent.replace('.', '_')}"
        params = {"id": identifier, "percent_off": percent, "duration": "once", "name": f"{percent} % off"}
        key = hashlib.sha256(identifier.encode()).hexdigest()
        if await self._has(f"{_COUPONS}/{identifier}"):
            return identifier
        try:
            await self._written("post", _COUPONS, params, key)
        except InvalidInput:
            # Somebody made it meanwhile.
            if not await self._has(f"{_COUPONS}/{identifier}"):
                raise
        return identifier

    async def _has(self, path: str) -> bool:
        try:
            await read(lambda: self._stripe.raw_request_async("get", path), json_of)
        except InvalidInput:
            return False
        return True

    async def promote(self, params: Mapping[str, Any], key: str) -> str | None:
        """See `StripeTrials`. Costs one call."""
        found = await self._written("post", _CODES, params, key)
        return None if found is None else str(found["id"])

    async def promotion(self, code: str) -> str | None:
        """See `StripeTrials`. Costs one call."""
        rows = [row async for row in self._rows(_CODES, {"code": code}, 1)]
        return next((str(row["id"]) for row in rows), None)

    async def email_and_card(self, customer: str) -> tuple[str, str]:
        """See `StripeTrials`. Costs one call, and one more for the card."""
        body = await self._get(f"/v1/customers/{quote(customer, safe='')}")
        method = (body.get("invoice_settings") or {}).get("default_payment_method")
        return str(body.get("email") or ""), await self._fingerprint(method)

    async def begun(self, subscription: str) -> Begun:
        """See `StripeTrials`. Costs two calls, and one or two more for the card."""
        body = await self._get(f"/v1/subscriptions/{quote(subscription, safe='')}")
        email, card = await self.email_and_card(_id(body["customer"]))
        if body.get("default_payment_method"):
            card = await self._fingerprint(body["default_payment_method"])
        end_s = body.get("trial_end")
        return Begun(
            str(body["id"]), str(body["status"]), None if end_s is None else int(end_s) * SECOND_MS, card, email,
            body["cancel_at"] is not None or bool(body["cancel_at_period_end"]),
        )  # fmt: skip

    async def _fingerprint(self, method: Any) -> str:
        if not method:
            return ""
        body = await self._get(f"/v1/payment_methods/{quote(_id(method), safe='')}")
        return str((body.get("card") or {}).get("fingerprint") or "")


def _id(value: Any) -> str:
    return str(value["id"]) if isinstance(value, Mapping) else str(value or "")
