"""What plan changes read and write at Stripe: subscriptions, invoices and previews."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from schemas.checkout import StripeSessions
from schemas.plan_changes import InvoicePreview
from schemas.plan_moves import StripeSchedule, StripeSchedules
from schemas.stripe_credits import StripeCredits
from schemas.trials import StripeTrials


class StripeItem(NamedTuple):
    """An item of a subscription at Stripe."""

    id: str
    price: str
    quantity: int | None
    interval: str
    start_ms: int
    end_ms: int


class StripeSubscription(NamedTuple):
    """A subscription at Stripe with what decides about changes. `schedule` None: there is no open one."""

    id: str
    customer: str
    status: str
    currency: str
    collection: str
    has_card: bool
    anchor_ms: int
    cancel_at_ms: int | None
    ends_with_period: bool
    is_update_pending: bool
    is_discounted: bool
    has_item_discounts: bool
    is_taxed: bool
    latest_invoice: str
    items: tuple[StripeItem, ...]
    schedule: StripeSchedule | None = None
    ends: bool = False
    discounts: tuple[str, ...] = ()
    operation: str = ""
    start_ms: int = 0


class Charge(NamedTuple):
    """That so many of a subscription's item are billed until an instant."""

    item: str
    quantity: int
    end_ms: int


class Charges(NamedTuple):
    """What a subscription's items are billed, oldest first. `pending_minor`: the sum of what waits for the next
    invoice, which may be the one of a change."""

    items: tuple[Charge, ...]
    pending_minor: int


class StripeInvoice(NamedTuple):
    """An invoice at Stripe. `pay_url`: where it is paid, "" if it is not open. `remaining_minor`: what is owed."""

    id: str
    status: str
    total_minor: int
    pay_url: str
    remaining_minor: int = 0


class StripeChanges(StripeSchedules, StripeSessions, StripeTrials, StripeCredits, Protocol):
    """What plan changes need of Stripe. Every call may raise `Transient`, `Refused` and `InvalidInput`.

    A call that writes has a key. Within 23 hours the same key gives the same answer, and nothing happens twice. It
    returns the id of what it made or changed, or None if Stripe has stored that it failed by itself (5xx).
    """

    async def subscriptions(self, customer: str) -> Sequence[StripeSubscription]:
        """The subscriptions of a customer that have not ended, oldest first."""
        ...

    async def has_card(self, customer: str) -> bool:
        """Whether a customer has a payment method for invoices."""
        ...

    async def invoice(self, identifier: str) -> StripeInvoice:
        """An invoice."""
        ...

    async def charges(self, customer: str, subscription: str, since_ms: int) -> Charges:
        """What the invoices of a subscription that were made since an instant bill, and what waits for its next one.
        Credits are no charges, and neither are void invoices."""
        ...

    async def preview(self, params: Mapping[str, Any]) -> InvoicePreview:
        """An invoice to come. An answer that is not whole raises `Transient`: nothing is ever taken for 0."""
        ...

    async def update(self, subscription: str, params: Mapping[str, Any], key: str) -> str | None:
        """Change a subscription."""
        ...

    async def subscribe(self, params: Mapping[str, Any], key: str) -> str | None:
        """Make a subscription."""
        ...

    async def cancel(self, subscription: str, params: Mapping[str, Any]) -> None:
        """End a subscription now."""
        ...

    async def resume(self, subscription: str, params: Mapping[str, Any], key: str) -> str | None:
        """End the pause of a subscription."""
        ...

    async def pay(self, invoice: str, key: str) -> str | None:
        """Charge an open invoice to the customer's card. Raises `InvalidInput` if the card does not pay."""
        ...

    async def close_invoice(self, invoice: str, how: str, key: str) -> str | None:
        """Close an open invoice without a payment: `how` is `void` or `mark_uncollectible`."""
        ...

    async def open_invoices(self, subscription: str) -> Sequence[str]:
        """The ids of a subscription's open invoices, oldest first."""
        ...

    async def carried_out(self, key: str, since_ms: int, until_ms: int) -> str | None:
        """The id of the subscription or schedule that a call with this key changed; None if no event of one names the
        key."""
        ...
