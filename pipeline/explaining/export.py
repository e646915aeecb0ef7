"""The signed file of an invoice: its lines, the hours of their usage, and every event with its id.

One JSON object a line. It is written as it is read, so its size has no part in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from aggregators.instants import format_instant_ms
from aggregators.late_usage import text_of
from aggregators.signed_lines import LineSigner, file_key
from pipeline.explaining.reading import HOURS_MAX
from pipeline.explaining.stores import ExplainStores
from portal.evidence import minutes_of
from schemas.clock import MILLISECOND_US
from schemas.explained import InvoiceExplanation, LineExplanation
from schemas.meters import Meter
from schemas.periods import Period
from schemas.usage_evidence import EventUsage, HourUsage

VERSION: Final = 1
EVENTS_AT_ONCE: Final = 5_000
REPEATS_MAX: Final = 100_000


class _Counts:
    """What the last line says of the lines before it."""

    def __init__(self) -> None:
        self.lines = self.hours = self.events = 0
        self.open_hours = 0


async def exported(stores: ExplainStores, found: InvoiceExplanation, secret: bytes, salt: str) -> AsyncIterator[bytes]:
    """The lines of the file. Raises `Transient` between two of them; the file is without an end then."""
    signer, counts = LineSigner(file_key(secret, salt)), _Counts()
    yield signer.line({"kind": "explanation", "version": VERSION, "salt": salt, **_head(found, stores.clock.now_ms())})
    for line in found.lines:
        counts.lines += 1
        yield signer.line({"kind": "line", **line_document(line)})
    meter_set = await stores.meter_set()
    # What a meter counted before it was retired is billed all the same.
    meters = {meter.slug: meter for meter in (*meter_set.meters, *meter_set.retired)} if meter_set else {}
    usages = {(line.meter, minutes_of(line.span)): line for line in found.lines if line.meter}
    for slug, span in usages:
        meter = meters.get(slug)
        if meter is not None:
            async for document in _usage(stores, found.account, meter, span, counts):
                yield signer.line(document)
    end = {"lines": counts.lines, "hours": counts.hours, "events": counts.events, "open_hours": counts.open_hours}
    yield signer.line({"kind": "end", **end, "holds": found.holds and not counts.open_hours})


async def _usage(
    stores: ExplainStores, account: str, meter: Meter, span: Period, counts: _Counts
) -> AsyncIterator[Mapping[str, Any]]:
    """The events of each hour, and behind them the hour."""
    adds = meter.aggregation.rule.additive
    yield {
        "kind": "usage", "meter": meter.slug, "unit": meter.unit, "aggregation": meter.aggregation.value, "adds": adds,
        "start": format_instant_ms(span.start_ms), "end": format_instant_ms(span.end_ms),
    }  # fmt: skip
    total, after_ms = Decimal(0), -1
    while hours := await stores.evidence.hours(account, meter, span, after_ms, HOURS_MAX):
        for hour in hours:
            after_ms, added, events = hour.hour_ms, Decimal(0), 0
            async for page in _events(stores, account, meter, hour, span):
                for document, value in page:
                    added += value if adds else 0
                    events += 1
                    yield document
            quantity = Decimal(hour.value_minor).scaleb(-meter.scale)
            total += quantity if adds else 0
            is_open = adds and added != quantity
            counts.hours, counts.events = counts.hours + 1, counts.events + events
            counts.open_hours += is_open
            yield {
                "kind": "hour", "hour": format_instant_ms(hour.hour_ms), "quantity": text_of(quantity),
                "events": events, **({"events_add_up_to": text_of(added)} if is_open else {}),
            }  # fmt: skip
    yield {"kind": "total", "meter": meter.slug, **({"quantity": text_of(total)} if adds else {})}


async def _events(
    stores: ExplainStores, account: str, meter: Meter, hour: HourUsage, span: Period
) -> AsyncIterator[Sequence[tuple[Mapping[str, Any], Decimal]]]:
    """The events of an hour, page by page, each with its quantity, or 0 of a text."""
    after = ""
    while page := await stores.evidence.events(account, meter, hour.hour_ms, after, EVENTS_AT_ONCE, span):
        after = page[-1].id
        repeats = await stores.evidence.repeats(account, [each.id for each in page], REPEATS_MAX)
        again, conflicts = Counter(each.id for each in repeats), {each.id for each in repeats if each.is_conflict}
        yield [
            (_event(each, again[each.id], is_conflict=each.id in conflicts), _quantity(each, meter)) for each in page
        ]
        if len(page) < EVENTS_AT_ONCE:
            return


def _event(each: EventUsage, again: int, *, is_conflict: bool) -> Mapping[str, Any]:
    more: dict[str, Any] = {"arrived_again": again} if again else {}
    more |= {"conflict": True} if is_conflict else {}
    return {
        "kind": "event",
        "id": each.id,
        "time": format_instant_ms(each.time_us // MILLISECOND_US),
        "value": each.value,
        **more,
    }


def _quantity(each: EventUsage, meter: Meter) -> Decimal:
    return Decimal(0) if meter.aggregation.rule.distinct else Decimal(each.value)


def _head(found: InvoiceExplanation, now_ms: int) -> Mapping[str, Any]:
    return {
        "account": found.account, "invoice": found.invoice, "status": found.status,
        "total_minor": found.total.minor, "currency": found.total.currency, "made_at": format_instant_ms(now_ms),
        "says": list(found.says), "checks": [_check(each._asdict()) for each in found.checks],
        "unexplained": list(found.unexplained),
    }  # fmt: skip


def line_document(line: LineExplanation) -> Mapping[str, Any]:
    """A line of the invoice as a JSON object, without its hours."""
    return {
        "line": line.line, "line_kind": line.kind, "text": line.text, "quantity": line.quantity.replace(",", ""),
        "amount_minor": line.amount.minor, "start": format_instant_ms(line.span.start_ms),
        "end": format_instant_ms(line.span.end_ms), "meter": line.meter, "says": list(line.says),
        "priced": [
            {**part._asdict(), "units": text_of(part.units)} for part in line.priced
        ],
        "checks": [_check(each._asdict()) for each in line.checks], "unexplained": list(line.unexplained),
    }  # fmt: skip


def _check(check: Mapping[str, str]) -> Mapping[str, str]:
    return dict(check)
