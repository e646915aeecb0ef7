"""Credit grants at Stripe (`schemas.stripe_credits.StripeCredits`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from schemas.errors import InvalidInput
from schemas.stripe_credits import GRANT_KEY
from sinks.stripe.connection import json_of, read
from sinks.stripe.objects import PART_PAGES_MAX
from sinks.stripe.trials import StripeClientTrials

_GRANTS: Final = "/v1/billing/credit_grants"
_INVOICES: Final = "/v1/invoices"


class StripeClientCredits(StripeClientTrials):
    """Makes credit grants and the invoices of top-ups, with one API key. For use in one event loop."""

    async def grant_of(self, customer: str, key: str) -> str:
        """See `StripeCredits`. Costs one call for 100 grants."""
        async for row in self._rows(_GRANTS, {"customer": customer}, PART_PAGES_MAX):
            if (row.get("metadata") or {}).get(GRANT_KEY) == key:
                return str(row["id"])
        return ""

    async def make_grant(self, params: Mapping[str, Any], key: str) -> str:
        """See `StripeCredits`. Costs one call."""
        found = await self._written("post", _GRANTS, params, key)
        return "" if found is None else str(found["id"])

    async def end_grant(self, identifier: str) -> None:
        """See `StripeCredits`. Costs one call, and one more if something was drawn."""
        path = f"{_GRANTS}/{quote(identifier, safe='')}"
        try:
            await read(lambda: self._stripe.raw_request_async("post", f"{path}/void"), json_of)
        except InvalidInput:
            # Stripe voids only what was never applied to an invoice.
            await read(lambda: self._stripe.raw_request_async("post", f"{path}/expire"), json_of)

    async def marked_invoice(self, customer: str, name: str, value: str) -> str:
        """See `StripeCredits`. Costs one call for 100 invoices."""
        async for row in self._rows(_INVOICES, {"customer": customer}, PART_PAGES_MAX):
            if (row.get("metadata") or {}).get(name) == value:
                return str(row["id"])
        return ""

    async def draft_invoice(self, params: Mapping[str, Any], key: str) -> str:
        """See `StripeCredits`. Costs one call."""
        found = await self._written("post", _INVOICES, params, key)
        return "" if found is None else str(found["id"])

    async def add_item(self, params: Mapping[str, Any], key: str) -> str:
        """See `StripeCredits`. Costs one call."""
        found = await self._written("post", "/v1/invoiceitems", params, key)
        return "" if found is None else str(found["id"])
