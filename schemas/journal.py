"""The journal for the finance system: what money did, numbered without gaps, each fact once. docs/revenue.md.

An entry is written in the transaction that writes what it is about into the mirror, and never changed. Its number is
given later, in the order in which transactions became visible, so a reader who has an entry has all entries before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol


class JournalKind(StrEnum):
    """What an entry is about. The list is closed: a receiver may branch on it.

    - `invoice`: an invoice became final; less than 0 if it credits more than it charges.
    - `payment`: an invoice was paid, whole or in part. `void`: it does not count any more. `write_off`: nobody expects
      what is open of it any more. `credit_note`: a part of it is not owed, or given back. `refund`: a payment went back
      to who paid. `dispute`: the bank took a payment back. Each of these is less than 0 if that was undone.
    - `recognized`: what all accounts together earned in one currency until the end of a day, less what the entries of
      the days before have; it has no account and no object.
    - `plan_change`: a subscription began, ended, or has other prices or quantities. There is no amount.
    """

    INVOICE = "invoice"
    PAYMENT = "payment"
    VOID = "void"
    WRITE_OFF = "write_off"
    CREDIT_NOTE = "credit_note"
    REFUND = "refund"
    DISPUTE = "dispute"
    RECOGNIZED = "recognized"
    PLAN_CHANGE = "plan_change"


class PlanItem(NamedTuple):
    """An item of a subscription. `plan`: that of the catalog, or "". `quantity` is None of a metered price."""

    price: str
    plan: str
    quantity: int | None


class JournalEntry(NamedTuple):
    """One fact. `number` is 0 until it is given.

    `id` follows from the fact: Stripe's object, the kind, and the how many-th of that kind it is, such as
    `in_1/payment/2`. `object`: the Stripe object; `invoice`: the invoice that is concerned, or "". `at_ms`: when it
    happened, as Stripe says; `made_ms`: when it was written. `exponent` of the currency is None, like the amounts,
    where no money moved. `tax_minor`: how much of the amount is tax; None where nobody says. `cause`: the event of
    Stripe, or the resync. `reason`: that of Stripe for an invoice, credit note, refund or dispute, or "". `before` and
    `after`: the items of a subscription.
    """

    id: str
    number: int
    kind: JournalKind
    account: str
    object: str
    invoice: str
    at_ms: int
    made_ms: int
    currency: str
    exponent: int | None
    amount_minor: int | None
    tax_minor: int | None
    cause: str
    reason: str = ""
    before: tuple[PlanItem, ...] = ()
    after: tuple[PlanItem, ...] = ()


class Heard(NamedTuple):
    """From what the facts of an object are known: whose it is, the event that named it, when the event happened, and
    when its objects are written."""

    account: str
    cause: str
    at_ms: int
    now_ms: int


class JournalStore(Protocol):
    """Numbers and reads the journal. Every call may raise `Transient`."""

    async def number(self, now_ms: int, limit: int, *, delivers: bool) -> int:
        """Give numbers to up to `limit` entries that have none, the oldest first; returns how many.

        Two processes at once wait for each other. If it `delivers`, one delivery of each entry is put into the outbox
        of notices in the same transaction. After `Transient` the numbers may be given; repeatable.
        """
        ...

    async def add_recognized(self, day: int, totals: Mapping[str, int], now_ms: int) -> int:
        """Write the entries of the day before `day`, from what was recognized until then by currency; returns how many.
        A day that has entries, and a currency without a change, get none. Repeatable, also by two at once."""
        ...

    async def entries(self, after: int = 0, limit: int = 1_000, account: str = "") -> Sequence[JournalEntry]:
        """Entries with a number above `after`, in their order; of one account if named."""
        ...
