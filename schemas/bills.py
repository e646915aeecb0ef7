"""What Stripe's invoices bill of our usage, and what becomes of usage that an invoice left out.

A *bill* is what one finalized invoice bills of one meter for one span. The invoice's quantity never changes after
finalization. So what is unbilled is a difference of three numbers: the usage that we reported for the span, the
invoice's quantity, and the quantity of the invoice items that we added before. The difference is billed by the next
invoice item, whatever the reason for it: an event that came late, that Stripe took after finalization, or that Stripe
rejected.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple, Protocol


class LatePolicy(StrEnum):
    """What becomes of usage that came after its invoice was finalized."""

    NEXT_INVOICE_ITEM = "next_invoice_item"
    WRITE_OFF = "write_off"


class Bill(NamedTuple):
    """What an invoice bills of a meter's usage in `[start_ms, end_ms)`.

    `quantity` is in units of the meter, `amount_minor` before discounts and taxes. `deadline_ms`: until when Stripe
    adds usage to the draft; `finalized_ms`: None for a draft.
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


class InvoiceItemState(StrEnum):
    """Where an invoice item of late usage stands."""

    INTENDED = "intended"
    CREATED = "created"
    WRITTEN_OFF = "written_off"
    HELD = "held"


class InvoiceItem(NamedTuple):
    """Late usage that is billed by an invoice item: from the quantity that was billed before to the quantity that is
    billed with the item. `identifier` is the Idempotency-Key, and in the item's metadata at Stripe."""

    identifier: str
    stripe_customer: str
    subscription: str
    invoice: str
    event_name: str
    price: str
    start_ms: int
    end_ms: int
    from_quantity: Decimal
    to_quantity: Decimal
    amount_minor: int
    currency: str
    exponent: int
    state: InvoiceItemState
    stripe_item: str = ""
    detail: str = ""
    created_ms: int = 0
    sent_ms: int | None = None


class Closings(Protocol):
    """Tells the sink which usage no event can bill any more."""

    async def finalized(self, event_name: str, stripe_customer: str, instant_ms: int) -> str:
        """The finalized invoice that billed the meter of `event_name` for this customer and instant; "" if the mirror
        knows none. May raise `Transient`."""
        ...


class Bills(Closings, Protocol):
    """The store of bills and of the invoice items of late usage."""

    async def bills(self, from_ms: int, to_ms: int, stripe_customer: str = "") -> Sequence[Bill]:
        """The bills of the mirror's invoices whose spans end in `[from_ms, to_ms)`, drafts included."""
        ...

    async def items(self, stripe_customer: str, event_name: str, start_ms: int, end_ms: int) -> Sequence[InvoiceItem]:
        """The invoice items of a bill's span, in the order of their quantities."""
        ...
