"""Reads where an event ended: the archive, the meters that count it, the period, and the invoice that bills it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import starmap
from typing import Final

from aggregators.decode import decode
from aggregators.instants import format_instant_ms
from pipeline.explaining.stores import ExplainStores
from portal.evidence import minutes_of
from schemas.adjustments import forms_of
from schemas.analytics import DedupOutcome
from schemas.bills import Bill
from schemas.clock import DAY_MS, HOUR_MS, MILLISECOND_US
from schemas.corrections import ArchivedCorrection
from schemas.explained import Ended, EventExplanation
from schemas.meters import Meter
from schemas.periods import Period
from schemas.reasons import REMEDIES, Reason
from schemas.usage_evidence import ArchivedEvent, Repeat

AGAIN_MAX: Final = 100
BILLS_MAX: Final = 1_000
LINES_MAX: Final = 200
# The longest span of an invoice after the start of a period.
AHEAD_MS: Final = 400 * DAY_MS


async def explained_event(stores: ExplainStores, account: str, identifier: str) -> EventExplanation:
    """Where an event of an account ended. Raises `Transient`."""
    event = await stores.evidence.event(account, identifier)
    if event is None:
        return await _not_archived(stores, account, identifier)
    again = await stores.evidence.repeats(account, [identifier], AGAIN_MAX)
    state, first = _judged(event)
    says = [first, *_repeated(again), *await _corrected(stores, account, identifier)]
    facts = {
        "type": event.type,
        "source": event.source,
        "time": format_instant_ms(event.time_us // MILLISECOND_US),
        "arrived": format_instant_ms(event.arrived_ms),
        "partition": str(event.partition),
        "offset": str(event.position >> 16),
        "data": event.data,
    }
    found = EventExplanation(account, identifier, state, tuple(says), facts, again=tuple(e.arrived_ms for e in again))
    if state != "counted":
        return found
    meter_set = await stores.meter_set()
    meters, retired = (meter_set.meters, meter_set.retired) if meter_set else ((), ())
    wanted = [each for each in (*meters, *retired) if event.type in {form.event_type for form in forms_of(each)}]
    ended = [each for meter in wanted if (each := await _ended(stores, meter, event)) is not None]
    # A retired meter counted what came before its end.
    gone = {meter.slug for meter in retired}
    ended = [each for each in ended if each.period is not None or each.meter not in gone]
    if ended:
        return found._replace(ended=tuple(ended))
    if samples := [each.slug for each in meters if each.aggregation.rule.measured and each.event_type == event.type]:
        sample = f"It is a sample of {', '.join(samples)}: adjustments add what the meter measures of it."
        return found._replace(says=(*found.says, sample))
    return found._replace(says=(*found.says, "No meter of the meter set counts it: it is archived and costs nothing."))


def _judged(event: ArchivedEvent) -> tuple[str, str]:
    """The state of an archived event, and a sentence."""
    arrived = format_instant_ms(event.arrived_ms)
    if not event.is_deferred:
        return "counted", f"It arrived first at {arrived}, and counts once."
    late = f"It arrived first at {arrived}, later than the dedup window, so the archive was asked whether it is new"
    if event.counted_ms is None:
        return "waiting", f"{late}: the decision is not made yet."
    at = format_instant_ms(event.counted_ms)
    if event.outcome == DedupOutcome.DUPLICATE:
        return "duplicate", f"{late}. At {at} it was found to have come before: it counts no further time."
    if event.outcome == DedupOutcome.LATE:
        return "dropped", f"{late}. At {at} its period was closed, and it went to the quarantine: see its reason there."
    return "counted", f"{late}. At {at} it was found to be new, and counts once, from then on."


def _repeated(again: Sequence[Repeat]) -> Iterable[str]:
    if again:
        conflicts = sum(each.is_conflict for each in again)
        more = " or more" if len(again) >= AGAIN_MAX else ""
        other = f" {conflicts} of them had other content: two operations may have one id." if conflicts else ""
        yield f"The same id arrived {len(again)}{more} times again, and was not counted again.{other}"


async def _corrected(stores: ExplainStores, account: str, identifier: str) -> list[str]:
    """A sentence for each correction of an event, oldest first; the last one that counts decides."""
    if stores.corrections is None:
        return []
    rows = await stores.corrections.corrections_of(account, identifier, AGAIN_MAX)
    return [_correction(row) for row in rows]


def _correction(row: ArchivedCorrection) -> str:
    record, at = row.record, format_instant_ms(row.stream_time_ms)
    what = "voided it" if record.kind == "void" else "gave it other data"
    settled = "" if record.counts else ", and is settled outside"
    return f"The correction {record.correction} of {at} {what}{settled}: {record.by} wrote {record.reason!r}."


async def _ended(stores: ExplainStores, meter: Meter, event: ArchivedEvent) -> Ended | None:
    used = await stores.evidence.used(meter, event)
    if used is None:
        return None
    time_ms = event.time_us // MILLISECOND_US
    hour_ms = time_ms - time_ms % HOUR_MS
    periods = await stores.evidence.periods(event.account, meter, hour_ms, event.counted_ms or event.arrived_ms)
    if not periods:
        why = "ClickHouse has no usage of its hour yet: it is on its way, or was counted before a meter began."
        return Ended(meter.slug, used.value, None, (why,))
    if len(periods) > 1:
        named = " or ".join(starmap(_dates, periods))
        why = f"A period was closed within the hour in which it arrived, so it is counted in one of: {named}."
        return Ended(meter.slug, used.value, None, (why,))
    period = periods[0]
    says = [f"Counted in the period {_dates(*period)}."]
    ended = Ended(meter.slug, used.value, period, ())
    if hour_ms < period.start_ms:
        says.append("Its own time is before that period, which was closed when it came: late usage is carried forward.")
    if not meter.stripe_event_name:
        return ended._replace(says=(*says, "The meter is not reported to Stripe: no invoice bills it."))
    bill = await _bill(stores, event.account, meter, period)
    if bill is None:
        return ended._replace(says=(*says, "No invoice bills the period: nobody pays for the meter then."))
    if not bill.invoice:
        return ended._replace(says=(*says, f"The subscription {bill.subscription} will bill it."))
    says.append(f"Billed by the invoice {bill.invoice}{'' if bill.finalized_ms else ', which is a draft'}.")
    lines = await _lines(stores, event.account, bill)
    return ended._replace(says=tuple(says), invoice=bill.invoice, lines=lines)


async def _bill(stores: ExplainStores, account: str, meter: Meter, period: Period) -> Bill | None:
    """What bills the meter's usage of a period to the account's customer."""
    found = await bills_over(stores, account, meter, period)
    return next((bill for bill in found if not bill.is_void), None)


async def bills_over(stores: ExplainStores, account: str, meter: Meter, period: Period) -> list[Bill]:
    """All that bills the meter's usage of a period to a customer of the account, that of the newest link first."""
    links = await stores.tables.links(account)
    customers = [link.customer for link in links if link.customer and link.starts_ms <= period.end_ms]
    found: list[Bill] = []
    for customer in dict.fromkeys(reversed(customers)):
        for bill in await stores.tables.bills.bills(period.start_ms, period.end_ms + AHEAD_MS, customer, BILLS_MAX):
            span = minutes_of(Period(bill.start_ms, bill.end_ms))
            if bill.event_name == meter.stripe_event_name and span.start_ms <= period.start_ms < span.end_ms:
                found.append(bill)
    return found


async def _lines(stores: ExplainStores, account: str, bill: Bill) -> tuple[str, ...]:
    record = await stores.tables.account_records.invoice(account, bill.invoice, LINES_MAX)
    wanted = (bill.price, bill.start_ms, bill.end_ms)
    rows = record.lines if record else ()
    return tuple(str(row["id"]) for row in rows if (row["price_id"], row["start_ms"], row["end_ms"]) == wanted)


async def _not_archived(stores: ExplainStores, account: str, identifier: str) -> EventExplanation:
    """An event that is not in the archive: perhaps in the quarantine, on its way, or never sent."""
    found = await stores.quarantined(is_event(account, identifier)) if stores.quarantined else None
    if found is None or found.reason is None:
        looked = f"Of the quarantine, {found.looked:,} entries were looked at." if found else ""
        says = ("The archive has no event of the account with this id: it never came, or is on its way.", looked)
        return EventExplanation(account, identifier, "unknown", tuple(each for each in says if each), {})
    known = found.reason in set(Reason)
    remedy = f"What to do: {REMEDIES[Reason(found.reason)]}." if known else ""
    says = (f"It was not counted: {found.reason}: {found.detail}.", remedy)
    facts = {"reason": found.reason, "position": found.position, "arrived": format_instant_ms(found.at_ms)}
    return EventExplanation(account, identifier, "quarantined", tuple(each for each in says if each), facts)


def is_event(account: str, identifier: str) -> Callable[[bytes], bool]:
    """Whether the bytes of a quarantined record have an event of an account with an id."""
    text = identifier.encode()

    def wanted(value: bytes) -> bool:
        # Most are another one, and decoding is slow.
        if text not in value and b"\\" not in value:
            return False
        decoded = decode(value, len(value) + 1)
        events = [event for _, event in decoded.events]
        return any((event.subject, event.id) == (account, identifier) for event in events)

    return wanted


def _dates(start_ms: int, end_ms: int) -> str:
    return f"{format_instant_ms(start_ms)} to {format_instant_ms(end_ms)}"
