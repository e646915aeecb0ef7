"""What a backtest of prices reads: who subscribes to what, and the usage of past periods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple, Protocol

from schemas.aggregations import Aggregation
from schemas.periods import Period


class PaidItem(NamedTuple):
    """An item of a subscription, as mirrored. A metered item has no quantity."""

    price: str
    quantity: int | None
    period_end_ms: int


class PaidSubscription(NamedTuple):
    """A subscription that has not ended. It bills from `starts_ms` on, which is after a trial."""

    id: str
    currency: str
    anchor_ms: int
    starts_ms: int
    is_discounted: bool
    items: tuple[PaidItem, ...]


class Payer(NamedTuple):
    """A Stripe customer, the account that is linked to the customer now, "" without one, and the subscriptions."""

    customer: str
    account: str
    subscriptions: tuple[PaidSubscription, ...]


class Payers(Protocol):
    """Reads the mirror. Every call may raise `Transient`."""

    async def payers(self, after: str, limit: int, now_ms: int) -> Sequence[Payer]:
        """The next customers behind the customer `after` who have a subscription that has not ended, in one order."""
        ...


class PeriodTotal(NamedTuple):
    """The usage of an account, meter and period, in units of the meter."""

    account: str
    meter: str
    period: Period
    quantity: Decimal


class PeriodTotals(Protocol):
    """Reads `usage_hourly`. Every call may raise `Transient`."""

    async def totals(
        self, accounts: Sequence[str], meters: Mapping[str, Aggregation], from_ms: int, to_ms: int
    ) -> Sequence[PeriodTotal]:
        """The totals of the periods with usage that end after `from_ms` and begin before `to_ms`, by meters' slugs."""
        ...

    async def first_usage_ms(self, meters: Sequence[str]) -> Mapping[str, int]:
        """The start of the first hour with usage of each meter, of any account. Meters without usage are absent."""
        ...

    async def complete_up_to_ms(self, partitions: int) -> int:
        """All usage that arrived before this instant is in the totals; 0 if a partition has no position yet."""
        ...


class LeftOut(StrEnum):
    """What is not compared, and why. The value is the text for people, behind a number."""

    RUNNING = "periods of usage are not complete"
    CUT = "periods of usage are not those of the subscription"
    NO_USAGE = "periods of usage began before the meter was counted, or the meter has no usage"
    BEGUN_WITHIN = "subscriptions began within a period, whose part is left out"
    NOTHING_DUE = "subscriptions had no invoice in the time"
    DISCOUNTED = "subscriptions have discounts, and are compared without them"
    OTHER_PRICE = "subscriptions have a price that is not the catalog's"
    OTHER_PERIODS = "subscriptions bill at other instants than their anchor says"
    NO_ACCOUNT = "customers belong to no account"
    NO_PRICE = "subscriptions have no price in the new version for their interval and currency"
    NO_QUANTITY = "subscriptions lack a quantity that the new version bills"
    OTHER_INTERVAL = "subscriptions would bill usage by another interval"
    NOT_REACHED = "customers were not reached within the time limit"


class Omission(NamedTuple):
    """Something that is left out, so many `times`. `subject` names whose."""

    reason: LeftOut
    subject: str
    times: int = 1


class BackBill(NamedTuple):
    """What a customer would have been billed in one currency: by the prices in force, and by the new ones.

    `plans` says which versions are compared, as in `team@1 → team@2`. Amounts are in minor units, before discounts and
    taxes. `invoices` is the number of instants at which something was due.
    """

    customer: str
    account: str
    plans: str
    currency: str
    exponent: int
    invoices: int
    before_minor: int
    after_minor: int

    @property
    def difference_minor(self) -> int:
        """How much more the new prices bill; negative: less."""
        return self.after_minor - self.before_minor
