"""Credit grants at Stripe, and the invoices of top-ups: what pays for usage in a pool of mode `stripe`.

A grant is *ordered* in SQL before Stripe is asked for it, under a key that says what it is for: the period of a plan,
the line of a paid invoice, or the request of a person. The key is in the grant's metadata, so the grant is found after
an answer that was lost, and in the mirror.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple, Protocol

GRANT_KEY: Final = "tidemark_grant"
# The most unused grants that Stripe keeps for a customer (docs.stripe.com/billing/subscriptions/usage-based).
UNUSED_MAX: Final = 100
KEY_CHARACTERS_MAX: Final = 400
REASON_CHARACTERS_MAX: Final = 500


class Source(StrEnum):
    """What a grant comes from: the plan, a paid invoice, or a person. The list is closed."""

    INCLUDED = "included"
    PAID = "paid"
    PROMOTIONAL = "promotional"


class OrderState(StrEnum):
    """How far an order has come. The list is closed.

    - `wanted`: Stripe is to make the grant.
    - `made`: Stripe has the grant.
    - `ending`: Stripe is to take back what is left of the grant.
    - `ended`: Stripe has taken it back, or never made the grant.
    - `refused`: Stripe refuses the grant; `detail` says why.
    """

    WANTED = "wanted"
    MADE = "made"
    ENDING = "ending"
    ENDED = "ended"
    REFUSED = "refused"


class GrantOrder(NamedTuple):
    """One credit grant that Stripe is to have. `amount_minor` is in minor units of `currency`.

    `key`: what it is for, and `by` and `reason` who wants it and why. `prices`: the ids of those whose usage it pays;
    none for all metered prices. `priority` 0 is drawn first. `sent_ms`: when Stripe was first asked, and `stripe_id`
    the grant's, "" before it is known.
    """

    key: str
    account: str
    customer: str
    pool: str
    source: Source
    amount_minor: int
    currency: str
    prices: tuple[str, ...]
    priority: int
    effective_ms: int
    expires_ms: int | None
    made_ms: int
    by: str
    reason: str
    state: OrderState = OrderState.WANTED
    sent_ms: int | None = None
    stripe_id: str = ""
    detail: str = ""


class MirroredGrant(NamedTuple):
    """A credit grant as the mirror has it. `source`: the key of its order, "" of a grant that Tidemark did not make.

    `available_minor`: what is left as Stripe said at `fetched_ms`; None if the key may not read it. Usage that no
    invoice has billed yet is not taken off.
    """

    id: str
    customer: str
    name: str
    category: str
    currency: str
    exponent: int
    amount_minor: int
    available_minor: int | None
    priority: int
    prices: tuple[str, ...]
    source: str
    created_ms: int
    effective_ms: int
    expires_ms: int | None
    voided_ms: int | None
    fetched_ms: int


class BilledPeriod(NamedTuple):
    """The running period of a metered item of an account's subscription, as the mirror has it."""

    account: str
    customer: str
    subscription: str
    price: str
    start_ms: int
    end_ms: int


class GrantOrders(Protocol):
    """Orders and mirrored grants in SQL. Every call may raise `Transient`; all are repeatable."""

    async def order(self, orders: Sequence[GrantOrder]) -> int:
        """Note orders with an audit row each, but for those whose key is known. Returns how many are new."""
        ...

    async def waiting(self, limit: int) -> Sequence[GrantOrder]:
        """Orders that Stripe is to be asked for, those that were touched longest ago first."""
        ...

    async def sent(self, key: str, now_ms: int) -> GrantOrder:
        """Note that Stripe is being asked. The first instant stays."""
        ...

    async def settle(
        self, order: GrantOrder, state: OrderState, now_ms: int, stripe_id: str, detail: str
    ) -> GrantOrder:
        """Note what became of an order in the state that it has in `order`, with an audit row. An order that somebody
        moved on meanwhile stays as it is; returns the order."""
        ...

    async def end(self, account: str, key: str, by: str, reason: str, now_ms: int) -> GrantOrder | None:
        """Have what is left of a grant taken back, with an audit row; None if the account has no such order. Of an
        order that has ended or is ending, nothing changes."""
        ...

    async def of_account(self, account: str, limit: int = 1_000) -> Sequence[GrantOrder]:
        """The orders of an account, newest first."""
        ...

    async def mirrored(self, customers: Sequence[str], limit: int = 1_000) -> Sequence[MirroredGrant]:
        """The grants of customers that the mirror has, of all linked customers if none is named, by id."""
        ...

    async def periods(self, prices: Sequence[str]) -> Sequence[BilledPeriod]:
        """The running periods of the metered items with one of the prices, of subscriptions that bill."""
        ...

    async def refused(self, limit: int) -> Sequence[GrantOrder]:
        """The newest orders that Stripe refused."""
        ...

    async def stuck(self, refused_since_ms: int, waiting_before_ms: int) -> tuple[int, int]:
        """How many orders Stripe refused since an instant, and how many were made before another one and wait."""
        ...


class StripeCredits(Protocol):
    """Credit grants at Stripe, and invoices of what is sold once.

    Every call may raise `Transient`, `Refused` and `InvalidInput`.
    """

    async def grant_of(self, customer: str, key: str) -> str:
        """The id of the customer's grant with a key in its metadata, or ""."""
        ...

    async def make_grant(self, params: Mapping[str, Any], key: str) -> str:
        """Make a grant; returns its id. The same key gives the same grant within 23 hours; "" if Stripe has stored that
        it failed by itself (5xx)."""
        ...

    async def end_grant(self, identifier: str) -> None:
        """Take back what is left: void a grant of which nothing was drawn, or else end it now. May be repeated."""
        ...

    async def marked_invoice(self, customer: str, name: str, value: str) -> str:
        """The id of the customer's newest invoice with a value in its metadata, or ""."""
        ...

    async def draft_invoice(self, params: Mapping[str, Any], key: str) -> str:
        """Make a draft; returns its id. The same key gives the same draft within 23 hours; "" as `make_grant`."""
        ...

    async def add_item(self, params: Mapping[str, Any], key: str) -> str:
        """Add an invoice item to a draft; returns its id. Keys as `draft_invoice`."""
        ...
