"""The objects of one customer at Stripe."""

from __future__ import annotations

from typing import Final

from schemas.billing_events import ObjectKind, ObjectName
from sinks.stripe.objects import PART_PAGES_MAX, StripeClientObjects

# docs.stripe.com/api/subscriptions/list and docs.stripe.com/api/subscription_schedules/list: both lists take the
# customer's id. Without a status, the first one leaves out canceled subscriptions.
_LISTS: Final[tuple[tuple[ObjectKind, str, dict[str, object]], ...]] = (
    (ObjectKind.SUBSCRIPTION, "/v1/subscriptions", {"status": "all"}),
    (ObjectKind.SCHEDULE, "/v1/subscription_schedules", {}),
)


class StripeClientOwned(StripeClientObjects):
    """Reads Stripe's objects, those of one customer too (`schemas.billing_events.OwnedObjects`)."""

    async def owned(self, customer: str) -> list[ObjectName]:
        """See `OwnedObjects`. Costs a call per 100 objects of a kind, and at least two."""
        return [
            ObjectName(kind, row["id"])
            for kind, path, options in _LISTS
            async for row in self._rows(path, {**options, "customer": customer}, PART_PAGES_MAX)
        ]
