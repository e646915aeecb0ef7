"""Compares what was reported with what Stripe's invoices bill, per customer, meter and span.

Stripe may hold usage that it never bills: what comes after an invoice is final is added to neither that invoice nor the
next one (docs.stripe.com/billing/subscriptions/usage-based/configure-grace-period).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from aggregators.quantities import decimal_text
from aggregators.report_records import ReportedIntent
from aggregators.stripe_sums import SCALE_MAX
from reconciler.billed import DRAFT_WITHIN_MS, Billed, Usage, compare, with_own_items
from reconciler.causes import Cause, Pair
from reconciler.compare import Range
from reconciler.coverage import NOTHING_DUE, Coverage
from reconciler.reading import Answer, LastRead, Readable, coverage, plan, read_all
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
_NOT_PAID: Final = frozenset({OutcomeStatus.FREE, OutcomeStatus.REPLACED})

# By customer and event name, all usage that the customer pays for, and when each was settled.
Usages = Mapping[str, Mapping[str, Sequence[tuple[Usage, int]]]]


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
        before, now_ms = self._usages(livemode, account), self.clock.now_ms()
        wanted = {customer: used for customer, used in before.items() if self._is_wanted(used)}
        planned = plan(
            (_readable(customer, used, self.past.get(customer), now_ms) for customer, used in wanted.items()), now_ms
        )
        chosen = [each.key for each in planned.keys[: reads_max // READS_PER_CUSTOMER]]
        read_from = invoices.reads
        from_ms = {customer: min(usage.period.start_ms for usage in _flat(before[customer])) for customer in chosen}

        async def ask(customer: str) -> CustomerBilling:
            return await invoices.billing_of(customer, from_ms[customer])

        answers = await read_all(chosen, ask, self.clock, self.policy)
        self.findings.stripe_reads += invoices.reads - read_from
        # The topic has the attempts of all events that were sent while Stripe was read.
        for partition in partitions:
            await self.index.catch_up(partition)
        after = self._usages(livemode, account)
        for customer, answer in answers.items():
            await self._compare(customer, after[customer], answer)
        for each in planned.keys[len(chosen) : planned.due]:
            detail = f"over the limit of {reads_max} reads of Stripe (stripe_reads_max)"
            self._unread(each.key, after[each.key], detail)
        read = (customer for customer, answer in answers.items() if answer.value is not None)
        return coverage(planned, read, len(wanted) - len(planned.keys))

    def _usages(self, livemode: bool, account: str) -> Usages:
        usages: dict[str, dict[str, list[tuple[Usage, int]]]] = {}
        for reported in self.index.reported():
            intent, attempt, outcome = reported.intent, reported.attempt, reported.outcome
            customer = attempt.stripe_customer if attempt else outcome.stripe_customer if outcome else ""
            # The next revision stands for a redriven intent.
            is_free = reported.redrive is not None or (outcome is not None and outcome.status in _NOT_PAID)
            if not customer or is_free or not is_of(intent, livemode, account):
                continue
            usage = Usage(
                attempt.timestamp_s * SECOND_MS if attempt else intent.instant_ms,
                intent.delta_minor * int(10 ** (SCALE_MAX - intent.scale)),
                self.period_of(reported),
                intent.account,
                intent.meter,
                outcome is not None,
                reported.is_dead,
            )
            of_customer = usages.setdefault(customer, {})
            settled_ms = outcome.settled_at_ms if outcome else 0
            of_customer.setdefault(intent.event_name, []).append((usage, settled_ms))
        return usages

    def _is_wanted(self, used: Mapping[str, Sequence[tuple[Usage, int]]]) -> bool:
        return any(self.limits.overlaps(usage.period) for usage in _flat(used))

    async def _compare(
        self, customer: str, used: Mapping[str, Sequence[tuple[Usage, int]]], answer: Answer[CustomerBilling]
    ) -> None:
        if answer.value is None:
            self._unread(customer, used, answer.unread)
            return
        usages = {event_name: [usage for usage, _ in pairs] for event_name, pairs in used.items()}
        for found in compare(usages, answer.value, self.clock.now_ms()):
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

    def _unread(self, customer: str, used: Mapping[str, Sequence[tuple[Usage, int]]], detail: str) -> None:
        accounts = names_text({usage.account for usage in _flat(used)})
        row = Row(Pair.INVOICES, Cause.UNCHECKED, None, accounts, stripe_customer=customer, detail=detail)
        self.findings.add(row, len({(name, usage.period) for name, pairs in used.items() for usage, _ in pairs}))


def _readable(
    customer: str, used: Mapping[str, Sequence[tuple[Usage, int]]], last: LastRead | None, now_ms: int
) -> Readable[str]:
    """A customer's invoices change when a period has ended, and when usage of an ended period is settled."""
    changes: dict[Period, int] = {}
    for pairs in used.values():
        for usage, settled_ms in pairs:
            drafted_ms = usage.period.end_ms + DRAFT_WITHIN_MS
            if drafted_ms <= now_ms:
                changes[usage.period] = max(changes.get(usage.period, 0), drafted_ms, settled_ms)
    changed_ms = max(changes.values(), default=0)
    open_ends = [period.end_ms for period, at_ms in changes.items() if last is None or at_ms >= last.at_ms]
    running_end_ms = max(usage.period.end_ms for usage in _flat(used))
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


def _flat(used: Mapping[str, Sequence[tuple[Usage, int]]]) -> Iterable[Usage]:
    return (usage for pairs in used.values() for usage, _ in pairs)
