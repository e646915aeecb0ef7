"""Deliberate defects on the way from a total to a bill: what is reported to Stripe, how often, when, and who pays."""

from __future__ import annotations

from typing import Any, Final
from unittest.mock import patch

import msgspec

import pipeline.billing.customers
import pipeline.billing.redrive
import pipeline.billing.sender
import pipeline.rollup.relays
import sinks.stripe.fake
from aggregators.codec import ReportKey, parse_report_text, parse_value, report_field, report_text
from pipeline.billing.lookup import LookupResult, Presence
from pipeline.billing.partition import ReportPartition
from pipeline.billing.redrive import Redriver
from pipeline.rollup.relays import ReportRelay
from schemas.log import REPORTS_TOPIC
from schemas.periods import AccountState
from schemas.reports import Intent, SendResult, SendStatus
from schemas.rollup import BucketField, TotalKey
from sinks.sql.fake_intents import FakeIntentLedger
from tests.simulation.mutant import Method, Mutant, inner


def _delta_at_publishing(original: Method) -> Method:
    async def relay(self: ReportRelay, partition: int) -> int:
        totals = inner(self._reports)._server.at(partition).totals
        made = vars(pipeline.rollup.relays)["intent_of"]

        def intent_of(checkpoint: Any, start_ms: int, end_ms: int, key: Any, text: str, state: Any) -> Any:
            value = parse_report_text(text)
            now = parse_value(totals[TotalKey(key.account, key.period_start_ms)][key.meter]).minor
            sampled = msgspec.structs.replace(value, current_minor=now)
            return made(checkpoint, start_ms, end_ms, key, report_text(sampled), state)

        with patch.object(pipeline.rollup.relays, "intent_of", intent_of):
            count: int = await original(self, partition)
        return count

    return relay


def _reports_forgotten_first(original: Method) -> Method:
    async def publish(self: ReportRelay, partition: int, intent: Intent) -> None:
        field = report_field(ReportKey(intent.period_start_ms, intent.meter, intent.account))
        entries = inner(self._reports)._server.at(partition).reports
        entries.pop(BucketField(intent.bucket_start_ms, field), None)
        await original(self, partition, intent)

    return publish


def _fresh_identifier(original: Any) -> Any:
    calls: list[int] = []

    def meter_event(*arguments: Any) -> Any:
        calls.append(1)
        event = original(*arguments)
        return event._replace(identifier=f"{event.identifier}/{len(calls)}")

    return meter_event


def _duplicate_is_failure(original: Any) -> Any:
    def classify(*arguments: Any) -> SendResult:
        result: SendResult = original(*arguments)
        return result._replace(status=SendStatus.DEAD) if result.status is SendStatus.DUPLICATE else result

    return classify


def _parts_share_an_identifier(original: Any) -> Any:
    def parts_of(intent: Any) -> Any:
        return [part.model_copy(update={"identifier": intent.identifier}) for part in original(intent)]

    return parts_of


def _always(result: LookupResult) -> Any:
    async def look(*_: Any) -> LookupResult:
        return result

    return look


def _position_first(original: Method) -> Method:
    class Split:
        def __init__(self, ledger: Any) -> None:
            self._ledger = ledger

        async def apply(self, partition: int, believed_offset: int | None, next_offset: int, entries: Any) -> Any:
            await self._ledger.apply(partition, believed_offset, next_offset, [])
            return await self._ledger.apply(partition, next_offset, next_offset, entries)

    async def apply(self: ReportPartition, records: Any) -> None:
        ledger = self._ledger
        with patch.object(self, "_ledger", Split(ledger)):
            await original(self, records)

    return apply


def _any_position(original: Method) -> Method:
    async def apply(self: FakeIntentLedger, partition: int, believed_offset: int | None, *others: Any) -> Any:
        if partition not in self.positions and believed_offset is not None:
            self.positions[partition] = believed_offset
        return await original(self, partition, believed_offset, *others)

    return apply


def _begins_at_the_end(original: Method) -> Method:
    async def begin(self: ReportPartition, now_ms: int) -> int:
        start: int = await original(self, now_ms)
        if self._believed_offset is None:
            start = self.next_offset = (await self._log.bounds(REPORTS_TOPIC, self.number)).next
        return start

    return begin


BILLING: Final = (
    Mutant("the position of the ledger is written before the intents", ReportPartition, "apply", _position_first),
    Mutant("a ledger that was emptied is trusted", FakeIntentLedger, "apply", _any_position),
    Mutant("a ledger that is empty begins at the log's end", ReportPartition, "begin", _begins_at_the_end),
    Mutant("delta sampled at publishing", ReportRelay, "relay", _delta_at_publishing),
    Mutant(
        "a period ends where its last event thought", pipeline.rollup.relays, "intent_of",
        lambda made: lambda *arguments: made(*arguments[:-1], AccountState()),
    ),
    Mutant(
        "a report has the timestamp of its bucket's end, whatever its period", pipeline.billing.sender,
        "event_time_s", lambda _made: lambda intent, _end_ms, _now_ms: intent.bucket_end_ms // 1_000 - 1,
    ),
    Mutant("report forgotten before its intent is durable", ReportRelay, "_publish", _reports_forgotten_first),
    Mutant(
        "the parts of a long value share an identifier", pipeline.rollup.relays, "parts_of",
        _parts_share_an_identifier,
    ),
    Mutant(
        "a long value is not split", pipeline.rollup.relays, "parts_of", lambda _made: lambda intent: [intent],
    ),
    Mutant(
        "a redriven report keeps its identifier", pipeline.billing.redrive, "revised",
        lambda _made: lambda intent: intent.model_copy(update={"revision": intent.revision + 1}),
    ),
    Mutant(
        "a redrive does not ask for Stripe's sum", Redriver, "_look",
        lambda _made: _always(LookupResult(Presence.ABSENT, "not asked")),
    ),
    Mutant("a fresh identifier each send", pipeline.billing.sender, "meter_event", _fresh_identifier),
    Mutant(
        "an account's first customer pays for ever", pipeline.billing.customers, "customer_at",
        lambda made: lambda state, instant_ms: state.customers[0] if made(state, instant_ms) else None,
    ),
    Mutant(
        "an account's last customer pays for all there was", pipeline.billing.customers, "customer_at",
        lambda made: lambda state, instant_ms: state.customers[-1] if made(state, instant_ms) else None,
    ),
    Mutant("duplicate 400 is a failure", sinks.stripe.fake, "classify", _duplicate_is_failure),
)  # fmt: skip
