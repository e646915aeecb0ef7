"""What Stripe's invoices bill of our usage, and what becomes of usage that an invoice left out.

A *bill* is what one invoice bills of one meter for one span. The quantity of a finalized invoice never changes. So what
is unbilled is a difference of three numbers: the usage that we reported for the span, the invoice's quantity, and the
quantity of the invoice items that we made before. The next invoice item bills the difference, whatever its reason: an
event that came late, that Stripe took after finalization, or that Stripe rejected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

from schemas.clock import DAY_MS

# The longest time until a finalized invoice is looked at again.
LOOK_AGAIN_MAX_MS: Final = 7 * DAY_MS


class LatePolicy(StrEnum):
    """What becomes of usage that came after its invoice was finalized."""

    NEXT_INVOICE_ITEM = "next_invoice_item"
    WRITE_OFF = "write_off"


class BillState(StrEnum):
    """Where a bill stands.

    `OPEN`: its period runs. `DRAFT`: Stripe still adds usage. `WAITING`: finalized, and reports of the span have no
    outcome yet. `UNBILLED`: usage is missing on the invoice, and no invoice item bills it yet. `HELD`: a person must
    look. `CONFIRMED`: invoice and invoice items bill what was reported. `VOID`: the invoice bills nothing.
    """

    OPEN = "open"
    DRAFT = "draft"
    WAITING = "waiting"
    UNBILLED = "unbilled"
    HELD = "held"
    CONFIRMED = "confirmed"
    VOID = "void"


class BilledPrice(NamedTuple):
    """What a price at Stripe costs, and which meter it bills; Stripe changes neither. `event_name` is "" without a
    meter. `title` is the product's name, which customers know. `terms`: the fields of the price that decide what a
    quantity costs, as JSON."""

    id: str
    event_name: str
    title: str
    terms: str


class Bill(NamedTuple):
    """What an invoice bills of a meter's usage in `[start_ms, end_ms)`; without an invoice, the span that a
    subscription will bill.

    `quantity` is that of the invoice's lines, and `amount_minor` theirs before discounts and taxes. `deadline_ms`:
    until when Stripe adds usage to the draft; `finalized_ms`: None for a draft. `next_subscription`: whose next invoice
    can take an invoice item, "" if none can.
    """

    stripe_customer: str
    subscription: str
    invoice: str
    event_name: str
    price: str
    start_ms: int
    end_ms: int
    quantity: Decimal
    amount_minor: int
    currency: str
    exponent: int
    deadline_ms: int | None
    finalized_ms: int | None
    is_void: bool = False
    next_subscription: str = ""
    title: str = ""
    terms: str = ""


class InvoiceItemState(StrEnum):
    """Where an invoice item of late usage stands. `HELD`: Stripe refused the item; it is tried again a day later."""

    INTENDED = "intended"
    CREATED = "created"
    WRITTEN_OFF = "written_off"
    HELD = "held"


class InvoiceItem(NamedTuple):
    """Late usage that is billed by an invoice item: from the quantity that was billed before to the quantity that is
    billed with the item. A lower quantity is a credit.

    The items of a customer, meter and span are a chain, by `number` from 0 on. `identifier` is in the item's metadata
    at Stripe. `sent_ms`: when the Idempotency-Key of the present `attempt` was first used; None before the first.
    """

    identifier: str
    stripe_customer: str
    subscription: str
    invoice: str
    event_name: str
    price: str
    start_ms: int
    end_ms: int
    number: int
    from_quantity: Decimal
    to_quantity: Decimal
    amount_minor: int
    currency: str
    exponent: int
    description: str
    state: InvoiceItemState
    stripe_item: str = ""
    detail: str = ""
    created_ms: int = 0
    sent_ms: int | None = None
    attempt: int = 0

    @property
    def idempotency_key(self) -> str:
        """The key under which the present attempt creates the item at Stripe."""
        return f"{self.identifier}.{self.attempt}"


class Closing(NamedTuple):
    """What the controller noted of an invoice: the worst state of its bills, and when to look again. `summary`: what
    the comparison of a draft with Stripe's sum said, "" before it."""

    invoice: str
    state: BillState
    detail: str = ""
    due_ms: int = 0
    summary: str = ""


class NotSold(NamedTuple):
    """Usage in `[start_ms, end_ms)` that no invoice and no subscription item bills, in units of the meter."""

    stripe_customer: str
    event_name: str
    start_ms: int
    end_ms: int
    quantity: Decimal


class Closings(Protocol):
    """Tells the sink which usage no event can bill any more."""

    async def finalized(self, event_name: str, stripe_customer: str, instant_ms: int) -> str:
        """The finalized invoice that billed the meter of `event_name` for this customer and instant; "" if the mirror
        knows none. May raise `Transient`."""
        ...


class Bills(Closings, Protocol):
    """The store of bills and of the invoice items of late usage. Every call may raise `Transient`; no call holds a lock
    when it returns."""

    async def drafts(self, from_ms: int, to_ms: int, limit: int) -> Sequence[str]:
        """The draft invoices whose deadlines are in `[from_ms, to_ms)`, the first deadline first."""
        ...

    async def due(self, oldest_ms: int, now_ms: int, limit: int) -> Sequence[str]:
        """The invoices that were finalized since `oldest_ms` and are to be looked at: those that never were, then
        those that are due for longest, and last those of a clock that was ahead: noted for after
        `LOOK_AGAIN_MAX_MS`."""
        ...

    async def unknown_prices(self, invoices: Sequence[str]) -> Sequence[str]:
        """The prices of the invoices' lines that `add_prices` has not had; without invoices, those of all metered
        subscription items."""
        ...

    async def add_prices(self, prices: Sequence[BilledPrice]) -> None:
        """Keep prices. A price that is known stays as it is."""
        ...

    async def bills_of(self, invoices: Sequence[str]) -> Sequence[Bill]:
        """The bills of the invoices; none of a line whose price is not known yet."""
        ...

    async def bills(self, from_ms: int, to_ms: int, stripe_customer: str = "", limit: int = 1_000) -> Sequence[Bill]:
        """The bills whose spans end in `[from_ms, to_ms)`, drafts and running periods included, the last end first."""
        ...

    async def items(self, stripe_customer: str, event_name: str, start_ms: int, end_ms: int) -> Sequence[InvoiceItem]:
        """The invoice items of a bill's span, by number."""
        ...

    async def intend(self, item: InvoiceItem, reason: str) -> bool:
        """Write a new invoice item and its audit row; False if the chain has one of this number already."""
        ...

    async def unsent(self, held_before_ms: int, limit: int) -> Sequence[InvoiceItem]:
        """The items that are intended, and those that are held and were sent before `held_before_ms`; first those that
        were not sent yet, and then those that were sent first."""
        ...

    async def settle(self, before: InvoiceItem, after: InvoiceItem, now_ms: int) -> bool:
        """Write the progress of an item, and an audit row if its state changed; False if another process was faster."""
        ...

    async def closings(self, invoices: Sequence[str]) -> Mapping[str, Closing]:
        """What was noted of the invoices."""
        ...

    async def note(self, closings: Sequence[Closing]) -> None:
        """Write what is noted of invoices."""
        ...

    async def noted(self, states: Sequence[BillState], limit: int) -> Sequence[Closing]:
        """The notes of invoices in these states, in the store's order of ids."""
        ...

    async def states(self) -> Mapping[BillState, int]:
        """The number of noted invoices by state, without those that are confirmed or void."""
        ...

    async def accounts(self, stripe_customer: str, since_ms: int) -> Sequence[str]:
        """The accounts that were ever linked to a customer, or had usage since `since_ms` that the customer pays."""
        ...

    async def customers(self, after: str, limit: int) -> Sequence[str]:
        """One page of the customers of the mirror, in the store's order, behind `after`."""
        ...

    async def event_names(self, stripe_customer: str) -> Sequence[str]:
        """The event names of all reports that a customer pays."""
        ...


class StripeInvoiceItems(Protocol):
    """Creates invoice items at Stripe and reads prices. Every call may raise `Transient` if no answer came (Stripe may
    have executed the call), `Refused` if the key is wrong, and `InvalidInput` with Stripe's words."""

    async def price(self, identifier: str) -> BilledPrice:
        """A price. Costs two calls at most."""
        ...

    async def create(self, item: InvoiceItem) -> str:
        """Create an item under its Idempotency-Key and return Stripe's id of it. Repeatable within 24 h."""
        ...

    async def made(self, item: InvoiceItem) -> Sequence[InvoiceItem]:
        """The items of the item's chain that Stripe has, by number, also those that no store of ours knows. Costs one
        call for each hundred items that the customer has got since the end of the span."""
        ...

    async def close(self) -> None:
        """Release connections. Safe to call twice."""
        ...
