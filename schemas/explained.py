"""Why a line of an invoice says what it says, and where an event ended: the answers of explain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple

from schemas.bills import Bill, InvoiceItem
from schemas.intent_ledger import IntentTotals
from schemas.meters import Meter
from schemas.periods import Period
from schemas.upgrades import Money
from schemas.usage_evidence import Arrivals, HourUsage


class Priced(NamedTuple):
    """A part of a quantity that has one price and is rounded by itself. `is_line`: an invoice has this part as the line
    that is explained. `each`: the exact price of a unit or package, such as `$0.002`; "" of a flat amount."""

    text: str
    units: Decimal
    amount_minor: int
    is_line: bool = False
    each: str = ""


class Check(NamedTuple):
    """Two numbers that must be equal, as decimal texts, and whether they are."""

    what: str
    expected: str
    found: str

    @property
    def holds(self) -> bool:
        """Whether the numbers are equal."""
        return Decimal(self.expected) == Decimal(self.found)

    @property
    def equation(self) -> str:
        """Both numbers, such as `4900 = 4900`."""
        return f"{self.expected} {'=' if self.holds else '≠'} {self.found}"


class UsageFacts(NamedTuple):
    """What is known of the usage that an invoice bills of a meter.

    `bills`: what the invoice bills of the meter, by price and span; the other numbers are of all these spans. `items`:
    the invoice items of late usage. `hours`: those of the account, the first ones if `is_cut`. `total`: units that its
    periods count. `others`: units of other accounts that the same customer pays for. `carried`: units of the account's
    hours before the span. `drawn`: units that credits paid. `arrivals` None: the archive did not say.
    """

    meter: Meter
    bills: Sequence[Bill]
    totals: IntentTotals
    items: Sequence[InvoiceItem]
    hours: Sequence[HourUsage]
    is_cut: bool
    total: Decimal
    carried: Decimal
    others: Decimal = Decimal(0)
    drawn: Decimal = Decimal(0)
    arrivals: Arrivals | None = None


class LineExplanation(NamedTuple):
    """A line of an invoice, explained. `kind`: `usage`, `paid_ahead`, `proration`, `late_usage` or `unknown`. `says`:
    sentences, the first one the shortest answer. `unexplained`: what nothing known explains; empty if all is.
    `meter`: whose hours the line opens to, "" if it bills no usage."""

    account: str
    invoice: str
    line: str
    kind: str
    text: str
    span: Period
    quantity: str
    amount: Money
    says: tuple[str, ...]
    priced: tuple[Priced, ...] = ()
    checks: tuple[Check, ...] = ()
    unexplained: tuple[str, ...] = ()
    meter: str = ""
    unit: str = ""
    hours: tuple[tuple[int, Decimal], ...] = ()

    @property
    def holds(self) -> bool:
        """Whether everything is explained and every check holds."""
        return not self.unexplained and all(check.holds for check in self.checks)


class InvoiceExplanation(NamedTuple):
    """An invoice, explained line by line. `checks`: the lines add up to the total."""

    account: str
    invoice: str
    status: str
    total: Money
    lines: tuple[LineExplanation, ...]
    checks: tuple[Check, ...]
    says: tuple[str, ...] = ()
    unexplained: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether every line is explained and all checks hold."""
        holds = (*(each.holds for each in self.lines), *(each.holds for each in self.checks))
        return not self.unexplained and all(holds)


class Ended(NamedTuple):
    """Where an event ended for one meter. `value`: the quantity or text that counted. `period` None: it is counted in
    none that is known. `invoice`, `line`: "" while no invoice bills the period."""

    meter: str
    value: str
    period: Period | None
    says: tuple[str, ...]
    invoice: str = ""
    lines: tuple[str, ...] = ()


class EventExplanation(NamedTuple):
    """An event id, explained. `state`: `counted`, `duplicate`, `waiting`, `dropped`, `quarantined` or `unknown`.
    `facts`: what the archive has of the event. `again`: the instants at which the same id arrived again, the first
    ones."""

    account: str
    id: str
    state: str
    says: tuple[str, ...]
    facts: Mapping[str, str]
    ended: tuple[Ended, ...] = ()
    again: tuple[int, ...] = ()
    unexplained: tuple[str, ...] = ()
