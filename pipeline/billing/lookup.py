"""Finds out whether Stripe has an event whose answer was lost more than a day ago (I10).

After Stripe's identifier window, another send could count twice. Instead, Stripe's sum of the meter and customer over
the hour of the event's timestamp is compared with the sum of the reports in the topic. Recent events have other hours,
so an event of the same amount that the sum does not show yet cannot pass for the doubtful one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import StrEnum
from typing import Final, NamedTuple

from aggregators.quantities import decimal_text
from aggregators.report_records import ReportedIntent, ReportedIntents, parse_entries
from aggregators.stripe_sums import SCALE_MAX, StripeSum, bounds_of, may_contain, overlaps, units_of
from schemas.clock import HOUR_MS, SECOND_MS, Clock
from schemas.log import REPORTS_TOPIC, Log
from schemas.periods import Period
from schemas.reports import Attempt, Intent, MeterSummary, ReportEntry, StripeMeters

READ_RECORDS_MAX: Final = 1_000


class Presence(StrEnum):
    """Whether Stripe has an event."""

    PRESENT = "present"
    ABSENT = "absent"
    UNKNOWN = "unknown"


class LookupResult(NamedTuple):
    """The answer of a lookup; `detail` is the reason, for operators."""

    presence: Presence
    detail: str


def hour_of(intent: Intent, attempt: Attempt) -> StripeSum:
    """The sum of the UTC hour that contains the timestamp of an intent's event."""
    hour_ms = attempt.timestamp_s * SECOND_MS // HOUR_MS * HOUR_MS
    return StripeSum(intent.event_name, attempt.stripe_customer, Period(hour_ms, hour_ms + HOUR_MS))


class _Index:
    """The topic's entries that concern the given sums, and how far each partition was read for them."""

    def __init__(self, sums: Iterable[StripeSum]) -> None:
        self.positions: dict[int, int] = {}
        self.reported = ReportedIntents()
        self._spans: dict[str, Period] = {}
        # The identifiers of each queue; a dict, because the order is the log's.
        self._queues: dict[tuple[str, str], dict[str, None]] = {}
        for event_name, _, (start_ms, end_ms) in sums:
            known = self._spans.get(event_name, Period(start_ms, end_ms))
            self._spans[event_name] = Period(min(start_ms, known.start_ms), max(end_ms, known.end_ms))

    def covers(self, sums: Iterable[StripeSum]) -> bool:
        """Whether the entries of these sums are kept too: entries are kept by meter and period, for all customers."""
        spans = ((self._spans.get(event_name), period) for event_name, _, period in sums)
        return all(span and span.start_ms <= start_ms and end_ms <= span.end_ms for span, (start_ms, end_ms) in spans)

    def add(self, partition: int, entry: ReportEntry) -> None:
        """Keep an intent that may belong to one of the sums, and the attempts and outcomes of such intents."""
        if isinstance(entry, Intent):
            # The timestamp that is sent is inside the intent's own period.
            span = self._spans.get(entry.event_name)
            if span is not None and overlaps(entry, span):
                self.reported.add(partition, entry)
            return
        known = self.reported.get(entry.identifier)
        if known is None:
            return
        self.reported.add(partition, entry)
        if isinstance(entry, Attempt):
            queue = self._queues.setdefault((known.intent.event_name, entry.stripe_customer), {})
            queue[entry.identifier] = None

    def sent(self, key: StripeSum, suspects: Collection[str] = frozenset()) -> list[ReportedIntent]:
        """The attempted intents that Stripe's sum may contain. Those of `suspects` have no outcome."""
        queue = map(self.reported.get, self._queues.get((key.event_name, key.stripe_customer), ()))
        return [
            reported._replace(outcome=None) if reported.intent.identifier in suspects else reported
            for reported in queue
            if reported and may_contain(key, reported)
        ]


class StripeLookup:
    """Decides from the whole topic and Stripe's summary whether Stripe has an event.

    Reads every partition, because one customer's accounts may be on several. Reads the topic once for all sums of a
    round; `forget()` ends the round.
    """

    def __init__(self, log: Log, meters: StripeMeters, clock: Clock, settle_ms: int) -> None:
        self._log = log
        self._meters = meters
        self._clock = clock
        self._settle_ms = settle_ms
        self._index = _Index(())

    def forget(self) -> None:
        """Drop the cached entries. Call at the end of a round."""
        self._index = _Index(())

    async def look_up(
        self, identifier: str, key: StripeSum, sums: Iterable[StripeSum], suspects: Collection[str] = frozenset()
    ) -> LookupResult:
        """Whether Stripe has the event of the attempted intent `identifier`, which is part of the sum `key`.

        `suspects` are accepted intents that Stripe may have rejected since; they count as doubtful.
        `sums` are all sums that the round will look up. The caller must not send to the intent's queue meanwhile. Reads
        the topic and one summary; may raise `Transient`. The answer is unknown if the summary may lack a recent send,
        if an entry was appended meanwhile, or if two different choices of events fit the summary.
        """
        wanted = list(sums)
        if not self._index.covers(wanted):
            self._index = _Index(wanted)
        index = self._index
        await self._catch_up(index)
        sent = index.sent(key, suspects)
        doubtful = {reported.intent.identifier for reported in sent if not reported.is_accepted}
        if identifier not in doubtful:
            return _unknown("it is settled, or not in the log any more, or was sent with another instant")
        settled_before_ms = self._clock.now_ms() - self._settle_ms
        others = (each for each in sent if each.intent.identifier != identifier and not each.is_refused)
        if any(_last_ms(reported) > settled_before_ms for reported in others):
            return _unknown("Stripe's summary may not show the latest sends yet")
        summary = await self._summary(key)
        await self._catch_up(index)
        if index.sent(key, suspects) != sent:
            return _unknown("other events of this customer and span were sent meanwhile")
        bounds = bounds_of(sent, settled_before_ms, try_unsettled=True)
        contained = bounds.contained(units_of(summary.value))
        if contained is None or identifier in contained.possible:
            expected = f"{decimal_text(bounds.accepted, SCALE_MAX)} for certain, {len(doubtful)} events in doubt"
            return _unknown(f"Stripe's summary {summary.value} does not decide: {expected}")
        if identifier in contained.certain:
            return LookupResult(Presence.PRESENT, f"Stripe's summary {summary.value} contains it")
        return LookupResult(Presence.ABSENT, f"Stripe's summary {summary.value} does not contain it")

    async def _summary(self, key: StripeSum) -> MeterSummary:
        start_s, end_s = key.period.start_ms // SECOND_MS, key.period.end_ms // SECOND_MS
        if end_s - start_s == HOUR_MS // SECOND_MS:
            return await self._meters.hour_summary(key.event_name, key.stripe_customer, start_s)
        return await self._meters.summary(key.event_name, key.stripe_customer, start_s, end_s)

    async def _catch_up(self, index: _Index) -> None:
        for partition in range(await self._log.partition_count(REPORTS_TOPIC)):
            bounds = await self._log.bounds(REPORTS_TOPIC, partition)
            offset = max(index.positions.get(partition, 0), bounds.first)
            while records := await self._log.read(REPORTS_TOPIC, partition, offset, READ_RECORDS_MAX):
                for record in records:
                    for entry in parse_entries(record.value):
                        index.add(partition, entry)
                offset = records[-1].next_offset
            index.positions[partition] = offset


def _last_ms(reported: ReportedIntent) -> int:
    """When the outcome was written, or else the attempt; 0 without both."""
    if reported.outcome is not None:
        return reported.outcome.settled_at_ms
    return reported.attempt.attempted_at_ms if reported.attempt else 0


def _unknown(detail: str) -> LookupResult:
    return LookupResult(Presence.UNKNOWN, detail)
