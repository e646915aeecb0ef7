"""Compares what was reported with what Stripe's invoices bill, per customer, meter and span.

Stripe may hold usage that it never bills: what comes after an invoice is final is added to neither that invoice nor the
next one (docs.stripe.com/billing/subscriptions/usage-based/configure-grace-period).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from aggregators.quantities import decimal_text
from aggregators.report_records import ReportedIntent
from aggregators.stripe_sums import SCALE_MAX
from reconciler.billed import DRAFT_WITHIN_MS, Billed, Usage, compare, with_own_items
from reconciler.causes import Cause, Pair
from reconciler.compare import Range
from reconciler.coverage import NOTHING_DUE, Coverage
from reconciler.reading import LastRead, Readable, coverage, plan, read_all
from reconciler.report import Findings, Row, names_text
from reconciler.reports_index import ReportsIndex
from reconciler.stripe_sums import is_of
from reconciler.views import ReconcilePolicy, Views
from schemas.clock import SECOND_MS, Clock
from schemas.errors import InvalidInput, OperatorNeeded, Refused, Transient
from schemas.invoices import CustomerBilling
from schemas.periods import Period
from schemas.reports import OutcomeStatus

# Invoices, invoice items and subscriptions of one customer.
READS_PER_CUSTOMER: Final = 3
# What nobody is to pay for at Stripe.
_NOT_PAID: Final = frozenset({OutcomeStatus.CREDITED, OutcomeStatus.FREE, OutcomeStatus.REPLACED})


@dataclass(slots=True)
class Known:
    """What is known of a customer's usage before its invoices are read: the accounts, and by event name and period when
    the last intent was settled."""

    accounts: set[str] = field(default_factory=set)
    settled_ms: dict[tuple[str, Period], int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InvoiceComparison:
    """Compares the customers of all partitions, because a customer's accounts may be on several."""

    views: Views
    policy: ReconcilePolicy
    clock: Clock
    index: ReportsIndex
    period_of: Callable[[ReportedIntent], Period]
    findings: Findings
    limits: Range
    past: Mapping[str, LastRead]

    async def run(self, partitions: Iterable[int], reads_max: int) -> Coverage:
        """Compare the spans that overlap the range, with at most about `reads_max` calls to Stripe.

        Raises `Transient` or `OperatorNeeded` if the log cannot be read to its end.
        """
        meters, invoices = self.views.stripe, self.views.invoices
        if meters is None or invoices is None:
            return NOTHING_DUE
        try:
            livemode, account = await meters.identity()
        except (Transient, Refused, OperatorNeeded, InvalidInput) as error:
            self.findings.add(Row(Pair.INVOICES, Cause.UNCHECKED, detail=str(error)))
            return NOTHING_DUE
        known, now_ms = self._known(livemode, account), self.clock.now_ms()
        wanted = {customer: each for customer, each in known.items() if self._is_wanted(each)}
        planned = plan(
            (_readable(customer, each, self.past.get(customer), now_ms) for customer, each in wanted.items()), now_ms
        )
        chosen = [each.key for each in planned.keys[: reads_max // READS_PER_CUSTOMER]]
        read_from = invoices.reads

        async def ask(customer: str) -> CustomerBilling:
            from_ms = min(period.start_ms for _, period in known[customer].settled_ms)
            return await invoices.billing_of(customer, from_ms)

        answers = await read_all(chosen, ask, self.clock, self.policy)
        self.findings.stripe_reads += invoices.reads - read_from
        # The topic has the attempts of all events that were sent while Stripe was read.
        for partition in partitions:
            await self.index.catch_up(partition)
        usages = self._usages(livemode, account, answers)
        for customer, answer in answers.items():
            if answer.value is None:
                self._unread(customer, known[customer], answer.unread)
            else:
                await self._compare(customer, usages[customer], answer.value)
        for each in planned.keys[len(chosen) : planned.due]:
            detail = f"over the limit of {reads_max} reads of Stripe (stripe_reads_max)"
            self._unread(each.key, known[each.key], detail)
        read = (customer for customer, answer in answers.items() if answer.value is not None)
        return coverage(planned, read, len(wanted) - len(planned.keys))

    def _paid(self, livemode: bool, account: str) -> Iterable[tuple[str, ReportedIntent]]:
        """The intents that a customer pays for, each with the customer. The next revision stands for a redriven one."""
        for reported in self.index.reported():
            attempt, outcome = reported.attempt, reported.outcome
            customer = attempt.stripe_customer if attempt else outcome.stripe_customer if outcome else ""
            is_free = reported.redrive is not None or (outcome is not None and outcome.status in _NOT_PAID)
            if customer and not is_free and is_of(reported.intent, livemode, account):
                yield customer, reported

    def _known(self, livemode: bool, account: str) -> dict[str, Known]:
        found: dict[str, Known] = {}
        for customer, reported in self._paid(livemode, account):
            known = found.setdefault(customer, Known())
            known.accounts.add(reported.intent.account)
            key = (reported.intent.event_name, self.period_of(reported))
            settled_ms = reported.outcome.settled_at_ms if reported.outcome else 0
            known.settled_ms[key] = max(known.settled_ms.get(key, 0), settled_ms)
        return found

    def _usages(
        self, livemode: bool, account: str, customers: Collection[str]
    ) -> Mapping[str, Mapping[str, Sequence[Usage]]]:
        """By customer and event name, all usage that the customers pay for."""
        usages: dict[str, dict[str, list[Usage]]] = {customer: {} for customer in customers}
        for customer, reported in self._paid(livemode, account):
            if customer not in usages:
                continue
            intent, attempt = reported.intent, reported.attempt
            usage = Usage(
                attempt.timestamp_s * SECOND_MS if attempt else intent.instant_ms,
                reported.billed_minor * int(10 ** (SCALE_MAX - intent.scale)),
                self.period_of(reported),
                intent.account,
                intent.meter,
                reported.outcome is not None,
                reported.is_dead,
            )
            usages[customer].setdefault(intent.event_name, []).append(usage)
        return usages

    def _is_wanted(self, known: Known) -> bool:
        return any(self.limits.overlaps(period) for _, period in known.settled_ms)

    async def _compare(self, customer: str, usages: Mapping[str, Sequence[Usage]], billing: CustomerBilling) -> None:
        for found in compare(usages, billing, self.clock.now_ms()):
            if not self.limits.overlaps(found.span):
                continue
            billed = found
            if found.cause is Cause.UNBILLED and self.views.bills is not None:
                billed = with_own_items(found, await self.views.bills.items(customer, found.event_name, *found.span))
            row = _row(customer, billed)
            if billed.cause is Cause.CONFIRMED:
                self.findings.confirm(row)
            else:
                self.findings.add(row)

    def _unread(self, customer: str, known: Known, detail: str) -> None:
        accounts = names_text(known.accounts)
        row = Row(Pair.INVOICES, Cause.UNCHECKED, None, accounts, stripe_customer=customer, detail=detail)
        self.findings.add(row, len(known.settled_ms))


def _readable(customer: str, known: Known, last: LastRead | None, now_ms: int) -> Readable[str]:
    """A customer's invoices change when a period has ended, and when usage of an ended period is settled."""
    changes: dict[Period, int] = {}
    for (_, period), settled_ms in known.settled_ms.items():
        drafted_ms = period.end_ms + DRAFT_WITHIN_MS
        if drafted_ms <= now_ms:
            changes[period] = max(changes.get(period, 0), drafted_ms, settled_ms)
    changed_ms = max(changes.values(), default=0)
    open_ends = [period.end_ms for period, at_ms in changes.items() if last is None or at_ms >= last.at_ms]
    running_end_ms = max(period.end_ms for _, period in known.settled_ms)
    return Readable(customer, min(open_ends, default=running_end_ms), changed_ms, last)


def _row(customer: str, billed: Billed) -> Row:
    return Row(
        Pair.INVOICES, billed.cause, None, names_text(billed.accounts), ", ".join(billed.meters), billed.span,
        stripe_customer=customer,
        expected=decimal_text(billed.reported, SCALE_MAX),
        found="" if billed.found is None else decimal_text(billed.found, SCALE_MAX),
        detail=billed.detail,
        event_name=billed.event_name,
        items=decimal_text(billed.items, SCALE_MAX) if billed.items else "",
        invoices=", ".join(billed.invoices),
    )  # fmt: skip
