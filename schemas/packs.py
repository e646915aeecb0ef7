"""Packs of credits: who buys one, how, and the lines of paid invoices that sell packs.

Credits exist when an invoice is paid, whoever made the invoice: a page of checkout, a top-up, or a person. A purchase
only says how Stripe was asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

from schemas.prices import PackPrice

PURCHASE_KEY: Final = "tidemark_purchase"
QUANTITY_MAX: Final = 1_000


class How(StrEnum):
    """How a pack is paid: on a page of checkout, or by the card on file because few credits are left."""

    PAGE = "page"
    TOP_UP = "top_up"


class PurchaseState(StrEnum):
    """How far a purchase has come. The list is closed.

    - `wanted`: Stripe is to be asked, or may have answered.
    - `open`: the customer may pay on the page.
    - `paid`: the invoice is paid.
    - `ended`: the page ended without a payment.
    - `failed`: Stripe or the card refused; `detail` says why.
    """

    WANTED = "wanted"
    OPEN = "open"
    PAID = "paid"
    ENDED = "ended"
    FAILED = "failed"


class Purchase(NamedTuple):
    """That an account buys a pack. `price` is the id at Stripe, `credits` what one pack gives.

    `sent_ms`: when Stripe was first asked. `session` and `url`: those of the page; `invoice`: the one that is paid. ""
    until they are known. `ended_ms`: when it was paid, ended or failed.
    """

    id: str
    account: str
    customer: str
    pool: str
    pack: str
    version: int
    price: str
    currency: str
    credits: int
    quantity: int
    how: How
    return_url: str
    by: str
    made_ms: int
    state: PurchaseState = PurchaseState.WANTED
    sent_ms: int | None = None
    session: str = ""
    url: str = ""
    invoice: str = ""
    detail: str = ""
    ended_ms: int | None = None


class SoldPack(NamedTuple):
    """A pack on sale, and the id of its price at Stripe."""

    price: PackPrice
    stripe_price: str


class PackLine(NamedTuple):
    """A line of an invoice that sells packs. `key` is the lookup key of its price.

    `paid_minor` is what the line costs, after discounts and before tax. `paid_ms`: when the invoice was paid. `number`:
    how often the line's credits were granted so far.
    """

    invoice: str
    line: str
    account: str
    customer: str
    key: str
    quantity: int
    paid_minor: int
    currency: str
    exponent: int
    paid_ms: int
    number: int = 0


class LostLine(NamedTuple):
    """A line whose credits were granted under `grant`, and whose payment is gone for `reason`."""

    invoice: str
    line: str
    account: str
    pool: str
    grant: str
    reason: str


class Packs(Protocol):
    """Purchases and the lines that sell packs, in SQL. Every call may raise `Transient`; all are repeatable."""

    async def buy(self, purchase: Purchase) -> Purchase:
        """Note a purchase with an audit row. One with the same id stays as it is, and is returned. Of top-ups, one of
        an account and pool that is not over is returned instead of another."""
        ...

    async def purchase(self, account: str, identifier: str) -> Purchase | None:
        """A purchase of an account."""
        ...

    async def sent(self, identifier: str, now_ms: int) -> Purchase:
        """Note that Stripe is being asked. The first instant stays."""
        ...

    async def settle(
        self,
        purchase: Purchase,
        state: PurchaseState,
        now_ms: int,
        *,
        session: str = "",
        url: str = "",
        invoice: str = "",
        detail: str = "",
    ) -> Purchase:
        """Note what became of a purchase in the state that it has in `purchase`, with an audit row. One that somebody
        moved on stays as it is; returns the purchase."""
        ...

    async def due(self, wanted_ms: int, open_ms: int, limit: int) -> Sequence[Purchase]:
        """Purchases that are wanted and that nobody touched since `wanted_ms`, and open ones that nobody touched since
        `open_ms`, those first that were touched longest ago."""
        ...

    async def of_account(self, account: str, limit: int = 100) -> Sequence[Purchase]:
        """The purchases of an account, newest first."""
        ...

    async def unpacked(self, limit: int) -> Sequence[PackLine]:
        """Lines of paid invoices whose credits are not granted, oldest first; none of customers without an account."""
        ...

    async def granted(self, line: PackLine, pool: str, grant: str) -> None:
        """Note that the credits of a line are granted, under the `source_key` of the grant."""
        ...

    async def lost(self, limit: int) -> Sequence[LostLine]:
        """Lines whose credits are granted and whose invoice is not paid any more, or is refunded in full."""
        ...

    async def taken_back(self, line: LostLine) -> None:
        """Note that the credits of a line were taken back. If the invoice is paid again, they are granted again."""
        ...

    async def low(self, pool: str, below: int, now_ms: int, limit: int) -> Sequence[str]:
        """Accounts that bought a pack of a pool of ours, did not get the money back, and have less than `below` credits
        left in the pool; those whose last top-up is longest ago come first."""
        ...

    async def topped(self, account: str, pool: str, since_ms: int) -> Sequence[Purchase]:
        """The top-ups of an account and pool since an instant, and those that are not over, newest first."""
        ...

    async def pack_credits(self, pool: str, pack: str, version: int) -> int | None:
        """How many credits a version of a pack gives, by the newest catalog that has the version."""
        ...

    async def is_unpacked(self, invoice: str) -> bool:
        """Whether the credits of an invoice are granted."""
        ...

    async def currency(self, customer: str) -> str:
        """The currency of a customer, "" before the first invoice."""
        ...
