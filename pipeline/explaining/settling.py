"""Reads what a correction of a closed period changes of the invoice that bills it (S16)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from decimal import Decimal
from typing import Final

from aggregators.corrections import Change, id_prefix
from aggregators.settlement import Discounts, Facts, discounts_of, settled
from pipeline.explaining.events import bills_over
from pipeline.explaining.stores import ExplainStores
from pipeline.logs.correcting import Planned, Uncorrectable, judge_event, settled_by
from portal.evidence import minutes_of
from schemas.bills import Bill
from schemas.clock import HOUR_MS, MILLISECOND_US
from schemas.control import CorrectionRecord
from schemas.corrections import ArchivedCorrection, CorrectionArchive, Settlement
from schemas.errors import InvalidInput, OperatorNeeded, Transient
from schemas.log import POSITION_MAX
from schemas.meters import Meter
from schemas.periods import Period
from schemas.usage_evidence import ArchivedEvent

# Corrections of an account among which credit notes are looked for, and the events of which these may be.
CORRECTIONS_MAX: Final = 10_000
SETTLED_MAX: Final = 100
LINES_MAX: Final = 10_000
_OF_A_SAMPLE: Final = (
    "only the measurer knows what the hours hold without the sample: void the sample with next_period, and the open "
    "period has the difference"
)


class _UnknownError(Exception):
    """The amount cannot be known; the message says why."""


async def settlements(
    explain: Callable[[], Awaitable[ExplainStores]] | None, archive: CorrectionArchive, planned: Planned
) -> Sequence[Settlement]:
    """By meter, what a correction changes of what was billed; nothing while the period is open. `explain`: what opens
    the stores, None without PostgreSQL. What does not answer makes an amount unknown. Raises no error of a store."""
    if not planned.is_closed:
        return ()
    by_meter: dict[str, list[Change]] = {}
    for change in planned.changes:
        by_meter.setdefault(change.meter.slug, []).append(change)
    samples = [Settlement(slug, planned.period, unknown=_OF_A_SAMPLE) for slug in planned.samples]
    if not by_meter:
        return samples
    why = "PostgreSQL, which has the invoices, is not configured: set TIDEMARK_SQL_URL and TIDEMARK_STRIPE_API_KEY"
    if explain is not None:
        try:
            stores = await explain()
            return [*samples, *[await _settlement(stores, archive, planned, each) for each in by_meter.values()]]
        except (Transient, OperatorNeeded, InvalidInput) as error:
            why = f"the invoices cannot be read: {error}"
    return [*samples, *(Settlement(slug, planned.period, unknown=why) for slug in by_meter)]


async def _settlement(
    stores: ExplainStores, archive: CorrectionArchive, planned: Planned, changes: Sequence[Change]
) -> Settlement:
    meter, account = changes[0].meter, planned.record.account
    try:
        bill = await _bill(stores, account, meter, await _counted_in(stores, archive, planned, meter))
        before = await _settled_before(stores, archive, planned, meter, bill)
        facts = await _facts(stores, account, bill)
    except (_UnknownError, Uncorrectable) as error:
        return Settlement(meter.slug, planned.period, unknown=str(error))
    return settled(meter.slug, bill, facts, before, before + _units(meter, changes))


async def _counted_in(stores: ExplainStores, archive: CorrectionArchive, planned: Planned, meter: Meter) -> Period:
    """The period that has the event, and all that its corrections told so far."""
    account, identifier = planned.record.account, planned.record.event
    event = await archive.event(account, identifier)
    if event is None:
        raise _UnknownError("the archive has the event no more")
    period = await _period_of(stores, meter, event, planned.period)
    for row in await archive.told(event.partition, [account], id_prefix(identifier), POSITION_MAX):
        if row.id.split(":")[2] != meter.slug:
            continue
        told = await archive.event(account, row.id)
        if told is not None and await _period_of(stores, meter, told) != period:
            raise _UnknownError("an earlier correction of the event changed another period: compare both invoices")
    return period


async def _period_of(
    stores: ExplainStores, meter: Meter, event: ArchivedEvent, otherwise: Period | None = None
) -> Period:
    """The period in which an event is counted: `otherwise` if ClickHouse has none, and the event came in its time."""
    time_ms, counted_ms = event.time_us // MILLISECOND_US, event.counted_ms or event.arrived_ms
    periods = await stores.evidence.periods(event.account, meter, time_ms - time_ms % HOUR_MS, counted_ms)
    if len(periods) > 1:
        raise _UnknownError(f"a period was closed within the hour in which event {event.id} came: it is in one of two")
    if periods:
        return periods[0]
    if otherwise is None or counted_ms >= otherwise.end_ms:
        raise _UnknownError(f"ClickHouse has no usage of the hour of event {event.id}")
    return otherwise


async def _bill(stores: ExplainStores, account: str, meter: Meter, period: Period) -> Bill:
    """The only bill of a period."""
    if not meter.stripe_event_name:
        raise _UnknownError("the meter is not reported to Stripe: no invoice bills it")
    bills = await bills_over(stores, account, meter, period)
    standing = [bill for bill in bills if not bill.is_void]
    if len(standing) == 1:
        return standing[0]
    if standing:
        named = ", ".join(sorted({bill.invoice or bill.subscription for bill in standing}))
        raise _UnknownError(f"more than one price or invoice bills the period: {named}")
    if bills:
        raise _UnknownError(f"the invoice {bills[0].invoice} is void: it bills nothing")
    raise _UnknownError("the mirror has no invoice that bills the period to a customer of the account")


async def _settled_before(
    stores: ExplainStores, archive: CorrectionArchive, planned: Planned, meter: Meter, bill: Bill
) -> Decimal:
    """By how many units credit notes of earlier corrections change a bill."""
    span, account, units = minutes_of(Period(bill.start_ms, bill.end_ms)), planned.record.account, Decimal(0)
    rows = await archive.corrections_of(account, None, CORRECTIONS_MAX)
    by_event = _before(rows, planned.record.correction)
    credited = {event: records for event, records in by_event.items() if any(map(_is_credited, records))}
    if len(rows) >= CORRECTIONS_MAX or len(credited) > SETTLED_MAX:
        raise _UnknownError("the account has too many corrections and credit notes to look at: compare by hand")
    for event, records in credited.items():
        judged = await judge_event(archive, account, event, POSITION_MAX)
        if isinstance(judged, str):
            continue
        changes = [
            change
            for place, record in enumerate(records)
            if _is_credited(record)
            for change in settled_by(judged, records[:place], record)
            if change.meter.slug == meter.slug
        ]
        if changes:
            is_own = event == planned.record.event
            period = None if is_own else await _period_of(stores, meter, judged.event)
            if period is None or span.start_ms <= period.start_ms < span.end_ms:
                units += _units(meter, changes)
    return units


def _before(rows: Sequence[ArchivedCorrection], name: str) -> Mapping[str, list[CorrectionRecord]]:
    """By event, the corrections before the one with this name. Of two with one name the first counts."""
    names: set[str] = set()
    by_event: dict[str, list[CorrectionRecord]] = {}
    for row in rows:
        if row.record.correction == name:
            break
        if row.record.correction not in names:
            by_event.setdefault(row.record.event, []).append(row.record)
        names.add(row.record.correction)
    return by_event


def _is_credited(record: CorrectionRecord) -> bool:
    return not record.counts and record.treatment == "credit_note"


async def _facts(stores: ExplainStores, account: str, bill: Bill) -> Facts:
    tables = stores.tables
    span = bill.event_name, bill.stripe_customer, bill.start_ms, bill.end_ms
    totals, drawn = await tables.intents.totals(*span), await tables.intents.drawn(*span)
    items = await tables.bills.items(bill.stripe_customer, bill.event_name, bill.start_ms, bill.end_ms)
    record = await tables.account_records.invoice(account, bill.invoice, LINES_MAX) if bill.finalized_ms else None
    if bill.finalized_ms and record is None:
        raise _UnknownError(f"the invoice {bill.invoice} is of a time in which its customer was another account's")
    mirror = await tables.account_records.mirrored_of(account, stores.clock.now_ms())
    discounts = discounts_of(record, mirror["subscriptions"]) if record else Discounts(0, 0, None)
    return Facts(totals, drawn, items, discounts)


def _units(meter: Meter, changes: Sequence[Change]) -> Decimal:
    return Decimal(sum(each.minor for each in changes)).scaleb(-meter.scale)
