"""Compares revenue with the mirror: the movements with what subscriptions bring now, and what is recognized of invoices
with what they bill.

The sums of the mirror are computed here a second time. Only the price of an item is looked up by the same code.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import floor
from typing import Any, Final

from aggregators.mrr import AmountOf, account_revenue
from aggregators.recognition import effects_of, lines_of, schedule_of
from reconciler.causes import Cause, Pair
from reconciler.report import Findings, Row
from reconciler.views import Views
from schemas.clock import DAY_MS, Clock
from schemas.recognition import InvoiceBook
from schemas.revenue import AccountStanding, RevenueStores

ACCOUNTS_AT_ONCE: Final = 200
# A step of the role mirror writes the subscription and its audit row at once, but the two are read one after the other.
AGAIN_MAX: Final = 1_000
# No line is longer; the sum of all its days is taken in steps of a month.
DAYS_MAX: Final = 3_660
STEP_DAYS: Final = 30
MRR: Final = (
    "the movements do not add up to what the subscriptions bring: run `tidemark billing resync --account` for the "
    "account; if it stays, keep `tidemark billing audit` of it: that is a defect"
)
RECOGNITION: Final = (
    "its lines do not add up to it: run `tidemark billing resync --account`; if it stays, what Stripe shows of the "
    "invoice has a part that revenue does not know: that is a defect"
)
# What an amount for a period is in a year.
_A_YEAR: Final = {"day": 365, "week": 52, "month": 12, "year": 1}


@dataclass(frozen=True, slots=True)
class RevenueComparison:
    """Compares all accounts, then all final invoices."""

    views: Views
    clock: Clock
    findings: Findings

    async def run(self) -> None:
        """Compare. Accounts to which something has just happened are looked at a second time. May raise `Transient` and
        `ValueError`."""
        stores = self.views.revenue
        if stores is None:
            if self.views.no_tables:
                self.findings.add(Row(Pair.REVENUE, Cause.UNCHECKED, detail=self.views.no_tables))
            return
        amount = await self.views.amounts() if self.views.amounts is not None else None
        if amount is not None:
            await self._accounts(stores, amount)
        async for page in stores.books.books():
            for book in page:
                self._invoice(book)

    async def _accounts(self, stores: RevenueStores, amount: AmountOf) -> None:
        after = ""
        while standings := await stores.changes.standings(after, ACCOUNTS_AT_ONCE):
            differing = await self._differing(stores, standings, amount)
            if differing:
                # Something may have happened between the two readings.
                names = {each.account for each in differing}
                again = await stores.changes.standings(after, ACCOUNTS_AT_ONCE)
                differing = await self._differing(stores, [each for each in again if each.account in names], amount)
            self.findings.equal(Pair.REVENUE, len(standings) - len({row.account for row in differing}))
            for row in differing:
                self.findings.add(row)
            after = standings[-1].account

    async def _differing(
        self, stores: RevenueStores, standings: Sequence[AccountStanding], amount: AmountOf
    ) -> list[Row]:
        now_ms = self.clock.now_ms()
        summed: dict[str, Counter[str]] = {}
        async for changes in stores.changes.changes_of([each.account for each in standings]):
            found = Counter[str]()
            for each in account_revenue(changes, amount, now_ms).movements:
                found[each.currency] += each.change_minor
            summed[changes[0].account] = found
        rows = []
        for standing in standings:
            expected, found = _brings(standing, amount, now_ms), summed.get(standing.account, Counter())
            rows += [
                Row(
                    Pair.REVENUE, Cause.DIFFERING, account=standing.account, meter=f"mrr {currency}",
                    expected=str(expected[currency]), found=str(found[currency]), detail=MRR,
                )
                for currency in sorted({*expected, *found})
                if expected[currency] != found[currency]
            ]  # fmt: skip
        return rows

    def _invoice(self, book: InvoiceBook) -> None:
        invoice = book.invoice
        expected, found = _billed(book), 0
        for line in lines_of(book):
            schedule = schedule_of(line)
            if line.pace is not None and line.pace.last_day is None:
                # Credits that never expire are earned when they are drawn.
                return
            first = min(line.start_ms, line.finalized_ms) // DAY_MS
            days = [*range(first, first + DAYS_MAX, STEP_DAYS), first + 2 * DAYS_MAX]
            found += sum(sum(effects_of(schedule, *span).values()) for span in pairwise(days))
        if found == expected or (invoice["status"] == "uncollectible" and abs(found) <= abs(expected)):
            self.findings.equal(Pair.REVENUE, 1)
            return
        row = Row(
            Pair.REVENUE, Cause.DIFFERING, stripe_customer=str(invoice["customer_id"]),
            meter=f"recognized {invoice['currency']}", expected=str(expected), found=str(found),
            detail=f"invoice {invoice['id']}: {RECOGNITION}", invoices=str(invoice["id"]),
        )  # fmt: skip
        self.findings.add(row)


def _brings(standing: AccountStanding, amount: AmountOf, now_ms: int) -> Counter[str]:
    """What an account's subscriptions bring a month now, in minor units by currency."""
    yearly: dict[str, Fraction] = {}
    for subscription in standing.subscriptions:
        downgrade_ms = standing.downgrades.get(str(subscription["id"]))
        is_lost = downgrade_ms is not None and downgrade_ms <= now_ms
        if subscription["status"] in ("active", "past_due") and not is_lost and not subscription["deleted"]:
            currency = str(subscription["currency"])
            yearly[currency] = yearly.get(currency, Fraction()) + _of_a_year(standing, subscription, amount, now_ms)
    return Counter({currency: floor(minor / 12 + Fraction(1, 2)) for currency, minor in yearly.items()})


def _of_a_year(standing: AccountStanding, subscription: Mapping[str, Any], amount: AmountOf, now_ms: int) -> Fraction:
    # By how often an item is billed in a year.
    costs: dict[Fraction, Fraction] = {}
    for item in standing.items:
        if item["subscription_id"] == subscription["id"] and item["quantity"] is not None:
            cost = amount(str(item["price_id"]), int(item["quantity"]), str(subscription["currency"]))
            often = Fraction(_A_YEAR[str(item["interval"])], int(item["interval_count"] or 1))
            costs[often] = costs.get(often, Fraction()) + (cost or 0)
    for each in json.loads(subscription["discounts_json"] or "[]"):
        is_known = isinstance(each, dict) and each["duration"] != "once"
        if not is_known or not each["start_ms"] <= now_ms < (each["end_ms"] or now_ms + 1):
            continue
        if each["percent"] is not None:
            costs = {often: cost * (100 - Fraction(each["percent"])) / 100 for often, cost in costs.items()}
        elif costs and each["currency"] == subscription["currency"]:
            most = max(costs)
            costs[most] = max(Fraction(), costs[most] - each["amount_minor"])
    return sum((often * cost for often, cost in costs.items()), Fraction())


def _billed(book: InvoiceBook) -> int:
    """What an invoice bills without taxes, after its credit notes; nothing of a void one."""
    invoice = book.invoice
    if invoice["status"] == "void":
        return 0
    net = int(invoice["total_minor"] or 0) - int(invoice["tax_minor"] or 0)
    gross = int(invoice["total_minor"] or 0)
    for note in book.notes:
        if note["voided_ms"] is None:
            total, tax = int(note["total_minor"] or 0), int(note["tax_minor"] or 0)
            share = total * (int(invoice["total_minor"] or 0) - int(invoice["tax_minor"] or 0)) // gross if gross else 0
            net -= total - tax if tax else share
    return net
