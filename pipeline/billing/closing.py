"""The period-close controller: usage reaches its invoice, or an invoice item bills it.

It looks at the drafts that Stripe will finalize soon, has the customers' usage reported, and says so if some of it will
come too late. It compares finalized invoices with what was reported, and bills the difference once. All of it may run
twice at once, and may be killed after each step: what was done is in SQL and at Stripe.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, NamedTuple

from aggregators.late_usage import Judgement, gaps, item_of, judged, overlapping, text_of, wait_ms
from schemas.bills import (
    LOOK_AGAIN_MAX_MS,
    Bill,
    BilledPrice,
    Bills,
    BillState,
    Closing,
    InvoiceItem,
    InvoiceItemState,
    LatePolicy,
    NotSold,
    StripeInvoiceItems,
)
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS, Clock
from schemas.errors import InvalidInput, Transient
from schemas.intent_ledger import IntentLedger, IntentTotals
from schemas.log import REPORTS_TOPIC, Log
from schemas.periods import INSTANT_MAX_MS
from schemas.reports import StripeMeters

# Stripe keeps an Idempotency-Key for at least 24 h; an hour less leaves room for clocks and slow calls.
SAME_KEY_MS: Final = 23 * HOUR_MS
# A refused item is tried again when Stripe has forgotten the key, and with it the refusal.
REFUSED_RETRY_MS: Final = 25 * HOUR_MS
# So many items, drafts or invoices fail in one turn before the others wait for the next one: then Stripe or the log is
# down.
FAILURES_MAX: Final = 3
# An invoice without Stripe's answer comes behind the others.
FAILED_RETRY_MS: Final = 10 * MINUTE_MS
EQUAL: Final = "equal"
# Stripe adds doubles, so its sum may differ by some of the last digits, which are no money: 0.1 + 0.2 is not 0.3.
SUM_ERROR_MAX: Final = Decimal("1e-9")
KEPT_MS: Final = 400 * DAY_MS
# The worst state of an invoice's bills is that of the invoice.
_WORST: Final = (BillState.HELD, BillState.UNBILLED, BillState.WAITING, BillState.CONFIRMED, BillState.VOID)

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ClosingPolicy:
    """`close_lead_ms`: how long before its deadline a draft is looked at. `alarm_lead_ms`: until when all usage of the
    draft must be at Stripe. `summary_lead_ms`: when the draft is compared with Stripe's sum, which lags behind. The
    limits are for one turn. Bills are looked at until `kept_ms` after finalization: each `fresh_ms` for three days, and
    then each `rest_ms`."""

    late: LatePolicy = LatePolicy.NEXT_INVOICE_ITEM
    close_lead_ms: int = 15 * MINUTE_MS
    alarm_lead_ms: int = 5 * MINUTE_MS
    summary_lead_ms: int = 8 * MINUTE_MS
    drafts_max: int = 2_000
    invoices_max: int = 500
    items_max: int = 100
    summaries_max: int = 50
    customers_max: int = 50
    kept_ms: int = KEPT_MS
    fresh_ms: int = HOUR_MS
    rest_ms: int = 12 * HOUR_MS
    held_ms: int = 6 * HOUR_MS


# Whether the intents of all usage from before a flush are in the log. May raise `Transient`.
Published = Callable[[], Awaitable[bool]]
# Has an account's usage so far reported, without waiting. Harmless if repeated. May raise `Transient`.
Flush = Callable[[str], Awaitable[Published]]


# Whether the account's usage of a bill is told that arrived before an instant, if its meter is measured (S15). May
# raise `Transient`.
Told = Callable[[str, Bill, int], Awaitable[bool]]


class ClosingStatus(NamedTuple):
    """Values of the gauges. `turned_ms` is the end of the last turn, None before it; `late_drafts` will be finalized
    within minutes without all of their usage; `unequal_drafts`: Stripe's sum was another one than ours. `not_sold`:
    customers and meters with usage that nothing bills, None before all customers were looked at."""

    turned_ms: int | None
    drafts: int
    late_drafts: int
    unequal_drafts: int
    states: Mapping[BillState, int]
    not_sold: int | None


async def not_sold(
    bills: Bills, ledger: IntentLedger, customers: Iterable[str], from_ms: int, to_ms: int
) -> Sequence[NotSold]:
    """The usage of these customers that no invoice and no subscription item bills: from before the subscription, or
    after its end."""
    found = []
    for customer in customers:
        names = await bills.event_names(customer)
        sold = await bills.bills(from_ms, INSTANT_MAX_MS, customer) if names else ()
        for name in names:
            for start_ms, end_ms in gaps(sold, name, from_ms, to_ms):
                totals = await ledger.totals(name, customer, start_ms, end_ms)
                if totals.accepted or totals.late:
                    found.append(NotSold(customer, name, start_ms, end_ms, totals.accepted + totals.late))
    return found


class ClosingController:
    """One turn after the other looks at what is due. `scope` is that of the side tables."""

    def __init__(
        self,
        scope: str,
        bills: Bills,
        ledger: IntentLedger,
        items: StripeInvoiceItems,
        meters: StripeMeters,
        flush: Flush,
        told: Told,
        log: Log,
        clock: Clock,
        policy: ClosingPolicy,
    ) -> None:
        self._scope = scope
        self._bills = bills
        self._ledger = ledger
        self._items = items
        self._meters = meters
        self._flush = flush
        self._told = told
        self._log = log
        self._clock = clock
        self._policy = policy
        self._ends: dict[int, int] = {}
        self._flushed: dict[str, Sequence[Published]] = {}
        self._untold: set[str] = set()
        self._published: set[str] = set()
        self._alarmed: set[str] = set()
        self._failed: set[str] = set()
        self._summaries_left = 0
        self._after = ""
        self._not_sold = 0
        self._not_sold_of_all: int | None = None
        self._status = ClosingStatus(None, 0, 0, 0, {}, None)

    def status(self) -> ClosingStatus:
        """The gauges of the last turn."""
        return self._status

    async def turn(self) -> None:
        """Do what is due. May raise `Transient`, also after a part of it, and `Refused` if the key is wrong. What fails
        for one item or one draft delays no other."""
        self._summaries_left = self._policy.summaries_max
        await self._send()
        is_complete = await self._ledger_is_complete()
        drafts, late, unequal = await self._look_at_drafts(is_complete=is_complete)
        if is_complete:
            await self._look_at_finalized()
            await self._look_at_customers()
        states = await self._bills.states()
        self._status = ClosingStatus(self._clock.now_ms(), drafts, late, unequal, states, self._not_sold_of_all)

    async def _ledger_is_complete(self) -> bool:
        """Whether the ledger has all that was in the log at the last turn. A ledger that is being read again knows too
        little, so that every bill would look like too much."""
        ends = {}
        for partition in range(await self._log.partition_count(REPORTS_TOPIC)):
            ends[partition] = (await self._log.bounds(REPORTS_TOPIC, partition)).next
        wanted, self._ends = self._ends or ends, ends
        return all([await self._has_all(partition, end) for partition, end in wanted.items()])

    async def _has_all(self, partition: int, end: int) -> bool:
        """Whether the ledger has all records below an offset. The last offsets of a partition may hold no record."""
        position = await self._ledger.position(partition)
        if position is not None and position >= end:
            return True
        first = (await self._log.bounds(REPORTS_TOPIC, partition)).first if position is None else position
        left = await self._log.read(REPORTS_TOPIC, partition, first, 1)
        return not left or left[0].offset >= end

    async def _learn_prices(self, invoices: Sequence[str]) -> set[str]:
        """Read the prices that are not known yet; returns those that Stripe does not give."""
        missing, failures = set(), 0
        for identifier in await self._bills.unknown_prices(invoices):
            try:
                price: BilledPrice = await self._items.price(identifier)
            except InvalidInput as error:
                _LOG.error("the price %s cannot be read, its invoices are not compared: %s", identifier, error)
                missing.add(identifier)
            except Transient as error:
                failures += 1
                if failures >= FAILURES_MAX:
                    raise
                _LOG.warning("the price %s is read again, its invoices wait: %s", identifier, error)
                missing.add(identifier)
            else:
                await self._bills.add_prices([price])
        return missing

    async def _by_invoice(self, invoices: Sequence[str]) -> Mapping[str, Sequence[Bill]]:
        found: dict[str, list[Bill]] = {invoice: [] for invoice in invoices}
        for bill in await self._bills.bills_of(invoices):
            found[bill.invoice].append(bill)
        return found

    # Drafts.

    async def _look_at_drafts(self, *, is_complete: bool) -> tuple[int, int, int]:
        """Returns the number of drafts that are due, that will close without all usage, and that differ from ours."""
        now_ms = self._clock.now_ms()
        due = await self._bills.drafts(now_ms, now_ms + self._policy.close_lead_ms, self._policy.drafts_max)
        if due:
            await self._learn_prices(due)
        drafts = {invoice: bills for invoice, bills in (await self._by_invoice(due)).items() if bills}
        self._flushed = {invoice: done for invoice, done in self._flushed.items() if invoice in drafts}
        self._published &= drafts.keys()
        self._untold &= drafts.keys()
        self._alarmed &= drafts.keys()
        self._failed &= drafts.keys()
        noted = dict(await self._bills.closings(list(drafts)))
        late = failures = 0
        # Those that failed come last, so that a few of them do not keep the others from being looked at.
        for invoice, bills in sorted(drafts.items(), key=lambda draft: draft[0] in self._failed):
            left_ms, is_reported = (bills[0].deadline_ms or 0) - self._clock.now_ms(), False
            try:
                if failures < FAILURES_MAX:
                    is_reported = await self._is_reported(invoice, bills) and is_complete
                if is_reported and left_ms <= self._policy.summary_lead_ms and invoice not in noted:
                    await self._compare(invoice, bills)
            except (Transient, InvalidInput) as error:
                failures, is_reported = failures + 1, False
                self._failed.add(invoice)
                _LOG.warning("the draft %s is looked at again in a minute: %s", invoice, error)
            if not is_reported and left_ms <= self._policy.alarm_lead_ms:
                late += 1
                self._alarm(invoice, bills[0])
        unequal = sum(closing.summary != EQUAL for closing in noted.values())
        return len(drafts), late, unequal

    async def _is_reported(self, invoice: str, bills: Sequence[Bill]) -> bool:
        """Whether all usage of the customer up to now has an outcome. Asks for it the first time.

        What is measured must be told before. At the alarm, what is there is asked for, and once more when all is told.
        """
        if invoice not in self._flushed or invoice in self._untold:
            accounts = await self._bills.accounts(bills[0].stripe_customer, bills[0].start_ms)
            deadline_ms = bills[0].deadline_ms or 0
            since_ms = deadline_ms - self._policy.close_lead_ms
            is_told = all([await self._told(account, bill, since_ms) for account in accounts for bill in bills])
            if not is_told and (
                invoice in self._untold or deadline_ms - self._clock.now_ms() > self._policy.alarm_lead_ms
            ):
                return False
            self._flushed[invoice] = [await self._flush(account) for account in accounts]
            self._published.discard(invoice)
            if not is_told:
                self._untold.add(invoice)
                return False
            self._untold.discard(invoice)
        if not all([await is_published() for is_published in self._flushed[invoice]]):
            return False
        if invoice not in self._published:
            # In the next turn it is known that the ledger has what was published.
            self._published.add(invoice)
            return False
        return not any([(await self._totals(bill)).pending for bill in bills])

    def _alarm(self, invoice: str, bill: Bill) -> None:
        if invoice not in self._alarmed:
            self._alarmed.add(invoice)
            _LOG.error(
                "Stripe finalizes the draft %s of %s in minutes, and usage of the customer is not reported: an invoice "
                "item will bill it; see docs/runbook/late-usage.md",
                invoice,
                bill.stripe_customer,
            )

    async def _compare(self, invoice: str, bills: Sequence[Bill]) -> None:
        """Compare each bill of a draft with Stripe's sum once, as far as the turn's limit of reads allows."""
        if self._summaries_left < len(bills):
            return
        differences = [difference for bill in bills if (difference := await self._difference(bill))]
        summary = "; ".join(differences) or EQUAL
        if differences:
            _LOG.warning("the draft %s: %s", invoice, summary)
        await self._bills.note([Closing(invoice, BillState.DRAFT, summary=summary)])

    async def _difference(self, bill: Bill) -> str:
        """How Stripe's sum of a bill's span differs from the usage that Stripe took from us; "" if it does not."""
        self._summaries_left -= 1
        # Stripe's sums are of whole minutes, and no report has a timestamp in the minute of a boundary.
        start_s, end_s = (ms // MINUTE_MS * MINUTE_MS // SECOND_MS for ms in (bill.start_ms, bill.end_ms))
        found = Decimal((await self._meters.summary(bill.event_name, bill.stripe_customer, start_s, end_s)).value)
        ours = (await self._totals(bill)).accepted
        if abs(found - ours) <= SUM_ERROR_MAX * max(abs(ours), Decimal(1)):
            return ""
        return f"Stripe's sum of {bill.event_name} is {text_of(found)}, and we reported {text_of(ours)}"

    async def _totals(self, bill: Bill) -> IntentTotals:
        return await self._ledger.totals(bill.event_name, bill.stripe_customer, bill.start_ms, bill.end_ms)

    # Finalized invoices.

    async def _look_at_finalized(self) -> None:
        now_ms, policy = self._clock.now_ms(), self._policy
        due = await self._bills.due(now_ms - policy.kept_ms, now_ms, policy.invoices_max)
        if not due:
            return
        missing, failures = await self._learn_prices(due), 0
        for invoice, bills in (await self._by_invoice(due)).items():
            try:
                if missing and missing & set(await self._bills.unknown_prices([invoice])):
                    closing = Closing(
                        invoice, BillState.HELD, "one of its prices cannot be read", now_ms + policy.fresh_ms
                    )
                else:
                    closing = await self._checked(invoice, bills)
            except InvalidInput as error:
                closing = Closing(invoice, BillState.HELD, str(error), now_ms + policy.held_ms)
            except Transient as error:
                failures += 1
                closing = Closing(invoice, BillState.WAITING, str(error), now_ms + FAILED_RETRY_MS)
            await self._bills.note([closing])
            if failures >= FAILURES_MAX:
                raise Transient(f"Stripe does not answer about {failures} invoices: {closing.detail}")

    async def _checked(self, invoice: str, bills: Iterable[Bill]) -> Closing:
        """Compare the bills of an invoice, and intend invoice items for what is unbilled."""
        now_ms = self._clock.now_ms()
        found: defaultdict[BillState, list[tuple[int, str]]] = defaultdict(list)
        for bill in bills:
            state, reason, wait = await self._checked_bill(bill)
            found[state].append((now_ms + wait, reason))
        for state in _WORST:
            if state in found:
                due_ms = min(due for rows in found.values() for due, _ in rows)
                return Closing(invoice, state, found[state][0][1], due_ms)
        return Closing(invoice, BillState.CONFIRMED, "", now_ms + LOOK_AGAIN_MAX_MS)

    async def _checked_bill(self, bill: Bill) -> tuple[BillState, str, int]:
        """The state of a bill, the reason, and after how many milliseconds to look again."""
        policy, now_ms = self._policy, self._clock.now_ms()
        totals = await self._totals(bill)
        items = await self._bills.items(bill.stripe_customer, bill.event_name, bill.start_ms, bill.end_ms)
        judgement = judged(bill, totals, items)
        if judgement.state is BillState.UNBILLED and judgement.amount_minor:
            wait = wait_ms(bill, judgement, totals, items, now_ms)
            if wait:
                return judgement.state, judgement.reason, min(wait, policy.fresh_ms)
            if reason := await self._doubt(bill, judgement):
                return BillState.HELD, reason, policy.held_ms
            await self._intend(bill, judgement, items)
        match judgement.state:
            case BillState.UNBILLED | BillState.WAITING:
                return judgement.state, judgement.reason, 0
            case BillState.HELD:
                return judgement.state, judgement.reason, policy.held_ms
            case BillState.VOID:
                return judgement.state, judgement.reason, LOOK_AGAIN_MAX_MS
        is_fresh = now_ms < (bill.finalized_ms or 0) + 3 * DAY_MS
        return judgement.state, judgement.reason, policy.fresh_ms if is_fresh else policy.rest_ms

    async def _doubt(self, bill: Bill, judgement: Judgement) -> str:
        """Why no item may bill the difference; "" if one may."""
        others = await self._bills.bills(bill.start_ms + 1, INSTANT_MAX_MS, bill.stripe_customer)
        if other := overlapping(bill, others):
            return f"the invoice {other} bills the same meter for a part of the same time: correct one of the two"
        if judgement.amount_minor < 0:
            if self._summaries_left < 1:
                return "a credit, and Stripe's sum is not read yet"
            if difference := await self._difference(bill):
                return f"a credit, but {difference}: somebody else reports usage, or a dead letter arrived"
        return ""

    async def _intend(self, bill: Bill, judgement: Judgement, items: Sequence[InvoiceItem]) -> None:
        item = item_of(self._scope, bill, judgement, items, self._policy.late, self._clock.now_ms())
        known = {each.number for each in items}
        if made := [each for each in await self._items.made(item) if each.number not in known]:
            # The database was lost or restored from a copy, and what it knew is in the items' metadata.
            for each in made:
                await self._bills.intend(each, "found at Stripe")
            return
        if await self._bills.intend(item, f"unbilled on {bill.invoice}"):
            _LOG.warning(
                "%s of %s is not on the invoice %s: %s",
                f"{text_of(judgement.unbilled)} {bill.event_name}",
                bill.stripe_customer,
                bill.invoice,
                "written off" if item.state is InvoiceItemState.WRITTEN_OFF else "an invoice item bills it",
            )

    async def _look_at_customers(self) -> None:
        """Look for usage that nothing bills, a page of customers each turn."""
        customers = await self._bills.customers(self._after, self._policy.customers_max)
        if not self._after and customers:
            await self._learn_prices(())
        if len(customers) < self._policy.customers_max:
            self._after = ""
        else:
            self._after = customers[-1]
        now_ms = self._clock.now_ms()
        found = await not_sold(self._bills, self._ledger, customers, now_ms - self._policy.kept_ms, now_ms)
        self._not_sold += len({(each.stripe_customer, each.event_name) for each in found})
        if not self._after:
            self._not_sold_of_all, self._not_sold = self._not_sold, 0

    # Invoice items.

    async def _send(self) -> None:
        """Create the intended items at Stripe. No lock is held meanwhile; the key makes a repetition harmless."""
        held_before_ms, failures = self._clock.now_ms() - REFUSED_RETRY_MS, 0
        for item in await self._bills.unsent(held_before_ms, self._policy.items_max):
            tried: InvoiceItem | None = item
            if failures >= FAILURES_MAX:
                return
            try:
                tried = await self._tried(item)
                if tried is not None:
                    await self._created(tried, await self._items.create(tried))
            except Transient as error:
                # Stripe repeats a stored error for a day, and meanwhile other items and the drafts go on.
                failures += 1
                _LOG.warning("the invoice item %s is tried again: %s", item.identifier, error)
            except InvalidInput as error:
                # Tried again a day later, also if it could not be looked for.
                now_ms, before = self._clock.now_ms(), tried or item
                held = before._replace(state=InvoiceItemState.HELD, detail=str(error), sent_ms=now_ms)
                await self._bills.settle(before, held, now_ms)
                _LOG.error("Stripe refuses the invoice item %s of %s: %s", item.identifier, item.stripe_customer, error)

    async def _tried(self, item: InvoiceItem) -> InvoiceItem | None:
        """The item with a key under which Stripe creates it once; None if there is nothing to create."""
        now_ms = self._clock.now_ms()
        if item.sent_ms is not None and 0 <= now_ms - item.sent_ms < SAME_KEY_MS:
            return item
        # An answer, or a later copy of the database, may have been lost under a key that Stripe has forgotten.
        is_new = item.sent_ms is None and 0 <= now_ms - item.created_ms < SAME_KEY_MS
        made = () if is_new else await self._items.made(item)
        if found := next((each.stripe_item for each in made if each.identifier == item.identifier), ""):
            await self._created(item, found)
            return None
        # The subscription may have ended since.
        bills = await self._bills.bills_of([item.invoice])
        same = [bill for bill in bills if (bill.price, bill.start_ms) == (item.price, item.start_ms)]
        tried = item._replace(
            state=InvoiceItemState.INTENDED,
            subscription=same[0].next_subscription if same else item.subscription,
            sent_ms=now_ms,
            attempt=item.attempt + 1,
            detail="",
        )
        return tried if await self._bills.settle(item, tried, now_ms) else None

    async def _created(self, item: InvoiceItem, stripe_item: str) -> None:
        created = item._replace(state=InvoiceItemState.CREATED, stripe_item=stripe_item, detail="")
        await self._bills.settle(item, created, self._clock.now_ms())
        _LOG.info("the invoice item %s bills late usage of %s", stripe_item, item.stripe_customer)
