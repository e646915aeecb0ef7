"""Dunning: what becomes of a subscription whose payments failed, from the first failure to the end.

A *case* is one such story of one subscription. Stripe tries the card again; the case says what the customer hears, and
until when the plan holds (`aggregators.dunning`, docs/dunning.md). A case is authoritative: its first failure and the
instant of its downgrade are written once, and only a backup restores them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol


class DunningState(StrEnum):
    """How far a case has come. The list is closed, and in its order; a case never goes back.

    - `notified`: a payment failed.
    - `urgent`: a retry failed too, and some days have passed.
    - `final_warning`: Stripe tries no more, or too much time has passed. The plan is lost on a named day.
    - `downgraded`: the fallback plan gives.
    - `win_back`: the customer is offered everything back.
    - `closed`: see the outcome.
    """

    NOTIFIED = "notified"
    URGENT = "urgent"
    FINAL_WARNING = "final_warning"
    DOWNGRADED = "downgraded"
    WIN_BACK = "win_back"
    CLOSED = "closed"


class DunningOutcome(StrEnum):
    """How a case was closed. `recovered`: all was paid. `churned`: the customer did not pay in time, or left.
    `written_off`: the business asks for the money no more."""

    RECOVERED = "recovered"
    CHURNED = "churned"
    WRITTEN_OFF = "written_off"


class Debt(NamedTuple):
    """An invoice that Stripe tried to collect, as the mirror has it. `first_failed_ms`: its first attempt, which is
    when Stripe made it final. `next_attempt_ms`: None if Stripe tries no more."""

    invoice: str
    status: str
    first_failed_ms: int
    attempts: int
    next_attempt_ms: int | None
    remaining_minor: int
    currency: str
    exponent: int


class Owing(NamedTuple):
    """What the mirror says of a subscription that is to pay. `debts`: its open invoices that Stripe tried to collect
    and no closed case had, and all invoices of its case."""

    account: str
    subscription: str
    status: str
    pause_reason: str | None = None
    cancellation_reason: str | None = None
    ended_ms: int | None = None
    debts: tuple[Debt, ...] = ()


class DunningCase(NamedTuple):
    """One case. `opened_ms`: the first failure; `found_ms`: when the case was made. `downgrade_ms`: from when on the
    subscription gives the fallback plan only; None: it gives its plan. `next_ms`: when the case is looked at again if
    nothing happens before; None of an open case: its customer is not linked to the account now, and nobody is told.

    `cards`: the payment methods that the subscription and its customer had at the first look, and those that were tried
    since, separated by spaces; another one is new. None: nobody has looked yet.

    `amount_minor`: the most that was open at once. `state` is the last one that was reached; of a closed case, the one
    before it was closed is in the steps.
    """

    id: str
    account: str
    subscription: str
    opened_ms: int
    found_ms: int
    state: DunningState
    amount_minor: int
    currency: str
    exponent: int
    downgrade_ms: int | None = None
    next_ms: int | None = None
    closed_ms: int | None = None
    outcome: DunningOutcome | None = None
    cards: str | None = None


class Collecting(NamedTuple):
    """A case about which Stripe may be to be called, with what the mirror says. `own_card`: the subscription's payment
    method, which comes before the customer's default one, `customer_card`. `invoices`: its open ones, oldest first.
    `paid_until_ms`: the end of the subscription's present period."""

    case: DunningCase
    customer: str
    status: str
    own_card: str
    customer_card: str
    paid_until_ms: int
    has_ended: bool
    invoices: tuple[str, ...]


class ListedCase(NamedTuple):
    """A case with what is shown beside it: its open invoices, oldest first, what is open of them, and the page at
    Stripe on which the oldest one is paid, or "". `has_ended`: the subscription has, so a payment does not restore
    the plan. `unbilled`: `unpaid` or `paused` if all was paid, and Stripe still calls the subscription so and bills
    nothing; or ""."""

    case: DunningCase
    invoices: tuple[str, ...] = ()
    open_minor: int = 0
    pay_url: str = ""
    has_ended: bool = False
    unbilled: str = ""


class Recovery(NamedTuple):
    """What became of the cases of one currency whose first failure was in one span. `recovered` and `recovered_minor`
    count what was paid within 30 days of the first failure. A case that was found days after its first failure, such
    as after the loss of the database, is left out: those that had recovered by then were never found."""

    opened_from_ms: int
    currency: str
    exponent: int
    opened: int
    recovered: int
    opened_minor: int
    recovered_minor: int
    running: int


class DunningCounts(NamedTuple):
    """How many cases are open by state, and how many of these are of subscriptions that Stripe canceled because the
    payments failed."""

    open: Mapping[DunningState, int]
    canceled: int


class DunningStore(Protocol):
    """Reads and closes cases. `schemas.entitlements.Entitlements.renew` opens and moves them. Every call may raise
    `Transient`."""

    async def listed(
        self, *, account: str = "", is_open: bool | None = None, limit: int = 100, before: str = ""
    ) -> Sequence[ListedCase]:
        """One page of cases, the newest first failure first; `before` is `cursor_of` the last one of the page before.
        Raises `InvalidInput` for another text."""
        ...

    async def write_off(self, case: str, actor: str, reason: str, now_ms: int) -> DunningCase:
        """Close an open case: its invoices are asked for no more, and the subscription gives by its status. A case
        that is written off stays as it is. Raises `InvalidInput` for an unknown or a closed case, or without a
        reason."""
        ...

    async def collecting(self, after: str, limit: int) -> Sequence[Collecting]:
        """One page of the cases that a new card may pay, that are given up and not cleared away, or whose subscription
        is still paused after the payment; by id, behind the id `after`."""
        ...

    async def tried(self, case: str, card: str) -> None:
        """Note that a payment method is new no more. The same again changes nothing."""
        ...

    async def steps(self, case: str) -> Mapping[DunningState, int]:
        """When a case reached each of its states, in ms UTC."""
        ...

    async def counts(self) -> DunningCounts:
        """How many cases are open."""
        ...

    async def recoveries(self, starts_ms: Sequence[int]) -> Sequence[Recovery]:
        """What became of the cases by span of their first failure: from each start to the next one; those behind the
        last start are left out. By start, then by currency; spans without a case are left out."""
        ...


def cursor_of(listed: ListedCase) -> str:
    """The text after which the next page of `DunningStore.listed` begins."""
    return f"{listed.case.opened_ms}.{listed.case.id}"
