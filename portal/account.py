"""What the customer's page asks of the business, and the facts about one account from which the page is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple, Protocol

from aggregators.plan_offer import Shop
from schemas.account_records import InvoiceRecord
from schemas.credit_balances import AccountBalance
from schemas.dunning import ListedCase
from schemas.entitlements import Override, Resolved, Value
from schemas.explained import LineExplanation
from schemas.meters import Meter
from schemas.packs import Purchase
from schemas.periods import Period
from schemas.plan_changes import ChangeRequest, InvoicePreview, Operation, Quote, Refusal
from schemas.seats import Seat
from schemas.side_tables import AuditRow, Row


class Used(NamedTuple):
    """The live usage of the running period: units by meter, without meters that have no value. `is_billed`: whether
    somebody pays for it. All usage that arrived before `complete_up_to_ms` is in it."""

    period: Period
    units: Mapping[str, Decimal]
    complete_up_to_ms: int


class Previewed(NamedTuple):
    """Stripe's preview of the next invoice, and when Stripe made it."""

    invoice: InvoicePreview
    at_ms: int


class SeatCount(NamedTuple):
    """The seats of a feature: how many are held, of which some are reserved, how many may be, and how many are paid by
    their number (0 if none are)."""

    feature: str
    held: int
    reserved: int
    allowed: Value
    paid: int


class Facts(NamedTuple):
    """One account at one instant. `mirror`: see `AccountRecords.mirrored_of`. `features`: what the account may do.

    `used` None: the live view does not answer. `preview` None: there is no next invoice, or Stripe does not answer.
    `overrides`: what people granted. `audit`: the last rows, the newest first.
    `seats`: the first ones that are held, the oldest first. `credits` None: there are none, or they are not known.
    `days`: the usage by meter and by the start of each day in UTC, in units; without a meter whose usage nobody knows.
    """

    account: str
    now_ms: int
    shop: Shop
    mirror: Mapping[str, Sequence[Row]] = {}
    features: Mapping[str, Resolved] = {}
    meters: Sequence[Meter] = ()
    used: Used | None = None
    cases: Sequence[ListedCase] = ()
    preview: Previewed | None = None
    days: Mapping[str, Mapping[int, Decimal]] = {}
    invoices: Sequence[Row] = ()
    overrides: Sequence[Override] = ()
    audit: Sequence[AuditRow] = ()
    seat_counts: Sequence[SeatCount] = ()
    seats: Sequence[Seat] = ()
    credits: AccountBalance | None = None


class Hour(NamedTuple):
    """The usage of a meter in one hour of an invoice's span, in units."""

    start_ms: int
    units: Decimal


class CountedEvent(NamedTuple):
    """One event that a meter counts. `value`: the quantity in units, or the text that is counted once."""

    id: str
    time_us: int
    value: str


class Business(Protocol):
    """Answers the page. Every call may raise `Transient` and `InvalidInput`; the page says so to the customer."""

    async def facts(self, account: str) -> Facts:
        """All that the page of an account shows. What a store does not answer is left out, except SQL."""
        ...

    async def quote(self, account: str, request: ChangeRequest) -> Quote | Refusal:
        """Quote a change."""
        ...

    async def kept(self, account: str, quote: str) -> tuple[Quote, Operation | None] | None:
        """A quote of the account, and how far its operation is."""
        ...

    async def accept(self, account: str, quote: str, return_url: str) -> Refusal | str:
        """Carry a quote out, as far as Stripe answers; returns the address of Stripe's page on which the customer goes
        on, "" if there is none. From there the customer comes back to `return_url`."""
        ...

    async def awaited(self, account: str, since_ms: int) -> None:
        """Wait some seconds for a subscription that the customer just bought on Stripe's page; returns without it if
        the customer did not."""
        ...

    async def buy_pack(self, account: str, fields: Mapping[str, str], return_url: str) -> Purchase:
        """Make Stripe's page of a pack. The fields are those of its button. From there the customer comes back to
        `return_url`, with the purchase's id after it."""
        ...

    async def bought(self, account: str, purchase: str) -> tuple[Purchase, bool] | None:
        """A purchase of the account, and whether its credits have arrived, for which some seconds are waited."""
        ...

    async def card_page(self, account: str, return_url: str) -> Refusal | str:
        """The address of Stripe's page on which the customer stores a card, good for minutes."""
        ...

    async def invoices(self, account: str, before: str) -> tuple[Sequence[Row], str]:
        """A page of the account's invoices, newest first, and the `before` of the next page, "" on the last one."""
        ...

    async def invoice(
        self, account: str, identifier: str, lines_max: int
    ) -> tuple[InvoiceRecord, Shop, Sequence[Meter]] | None:
        """An invoice of the account with its first lines, and what says what they are of."""
        ...

    async def explained(self, account: str, invoice: str, line: str) -> LineExplanation | None:
        """Why a line of an invoice says what it says; None if there is no such line, or nobody can explain it now."""
        ...

    async def hours(self, account: str, meter: Meter, span: Period, after_ms: int, limit: int) -> Sequence[Hour]:
        """The hours with usage in the periods that begin in a span, by time, behind an hour."""
        ...

    async def events(
        self, account: str, meter: Meter, hour_ms: int, after: str, limit: int, span: Period
    ) -> Sequence[CountedEvent]:
        """The events of an hour that a meter counts in a span, by id, behind the id `after`."""
        ...
