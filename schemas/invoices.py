"""What Stripe's own lists say about customers and their invoices, for comparisons (`StripeInvoices`).

Read from Stripe and not from the mirror: the reader of this judges the mirror too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol

from schemas.billing_events import ObjectKind

# The metadata of an invoice item of late usage: its identifier, the meter's event name, and the quantities from which
# and to which it bills. The item's period is the span of the usage.
ITEM_KEY: Final = "tidemark_item"
ITEM_METER_KEY: Final = "tidemark_meter"
ITEM_FROM_KEY: Final = "tidemark_from"
ITEM_TO_KEY: Final = "tidemark_to"


class MeteredLine(NamedTuple):
    """A line of an invoice whose price is metered: one for each tier. A negative amount is what an earlier invoice of
    the same span billed. `quantity` is in units of the meter; `event_name` is empty if Stripe lists no such meter."""

    subscription: str
    price: str
    event_name: str
    start_ms: int
    end_ms: int
    quantity: Decimal
    amount_minor: int


class ListedInvoice(NamedTuple):
    """An invoice with its metered lines. `status` as at Stripe; `finalizes_ms` is None if Stripe will not do so."""

    id: str
    status: str
    currency: str
    created_ms: int
    finalizes_ms: int | None
    lines: Sequence[MeteredLine]


class ListedItem(NamedTuple):
    """An invoice item of ours. `quantity` is None and `event_name` "" if the metadata cannot be read; `invoice` is ""
    while the item waits for the customer's next one."""

    id: str
    identifier: str
    event_name: str
    start_ms: int
    end_ms: int
    quantity: Decimal | None
    amount_minor: int
    currency: str
    invoice: str


class RunningItem(NamedTuple):
    """An item of a subscription that has not ended, which bills a meter in its current period."""

    subscription: str
    event_name: str
    start_ms: int
    end_ms: int


class CustomerBilling(NamedTuple):
    """What Stripe lists of a customer. `terms` are those of the metered prices of the invoices, as JSON, by id."""

    invoices: Sequence[ListedInvoice]
    items: Sequence[ListedItem]
    running: Sequence[RunningItem]
    terms: Mapping[str, str] = MappingProxyType({})


class ListedPage(NamedTuple):
    """One page of a list as JSON objects, the newest first, with all rows of their nested lists. `after` is the id
    behind which the next page begins, "" at the end."""

    bodies: Sequence[Mapping[str, Any]]
    after: str


class StripeInvoices(Protocol):
    """Reads Stripe's lists. Every call may raise `Transient`, `Refused` or `InvalidInput`, and `OperatorNeeded` for a
    list with too many pages."""

    @property
    def reads(self) -> int:
        """The calls so far, which count towards Stripe's allocation of reads."""
        ...

    async def billing_of(self, stripe_customer: str, from_ms: int) -> CustomerBilling:
        """The customer's invoices created at `from_ms` or later, drafts included, the invoice items of ours, and the
        running items. Costs three calls, one for each further page, and one for each price that was never seen."""
        ...

    async def page(self, kind: ObjectKind, after: str, from_ms: int) -> ListedPage:
        """A page of all objects of a kind; of invoices, those created at `from_ms` or later. Costs one call, and one
        for each object with more than ten parts."""
        ...

    async def active_features(self, stripe_customer: str) -> frozenset[str]:
        """The lookup keys of the features that the customer may use, as Stripe says; of all pages. Costs a call, and
        one for each hundred features more."""
        ...

    async def changed_since(self, since_ms: int) -> AbstractSet[str]:
        """The ids of the objects and of the customers that Stripe's events of the time since name."""
        ...


class UnfinalizedInvoice(NamedTuple):
    """A draft that Stripe tried to make final, and could not. `error`: Stripe's code, such as
    `customer_tax_location_invalid`. `account` is "" for a customer without one."""

    invoice: str
    account: str
    customer: str
    subscription: str
    error: str
    created_ms: int
    total_minor: int
    currency: str
    exponent: int


class UnfinalizedInvoices(Protocol):
    """Reads the mirror. Every call may raise `Transient`."""

    async def count(self) -> int:
        """How many there are."""
        ...

    async def listed(self, limit: int = 100) -> Sequence[UnfinalizedInvoice]:
        """The oldest ones."""
        ...
