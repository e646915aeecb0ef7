"""The fake of the ledger of intents: dictionaries in memory, for the simulation, which calls it very often."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal

from aggregators.report_records import recorded
from schemas.clock import SECOND_MS
from schemas.errors import Fenced
from schemas.intent_ledger import IntentState, IntentTotals, LedgerIntent, Waiting
from schemas.reports import ReportEntry
from sinks.sql.intents import EXACT


class FakeIntentLedger:
    """An empty ledger. See `schemas.intent_ledger.IntentLedger`."""

    def __init__(self) -> None:
        self.intents: dict[str, LedgerIntent] = {}
        self.positions: dict[int, int] = {}

    def empty(self) -> None:
        """Lose everything."""
        self.intents.clear()
        self.positions.clear()

    async def position(self, partition: int) -> int | None:
        return self.positions.get(partition)

    async def apply(
        self, partition: int, believed_offset: int | None, next_offset: int, entries: Sequence[tuple[int, ReportEntry]]
    ) -> Sequence[LedgerIntent]:
        if self.positions.get(partition) != believed_offset:
            raise Fenced(f"partition {partition}: another process moved the position from {believed_offset}")
        self.positions[partition] = next_offset
        changed = {}
        for offset, entry in entries:
            before = self.intents.get(entry.identifier)
            after = recorded(before, partition, offset, entry)
            if after is not None and after != before:
                self.intents[entry.identifier] = changed[entry.identifier] = after
        return list(changed.values())

    async def due(self, partition: int, now_ms: int, limit: int) -> Sequence[LedgerIntent]:
        due = [each for each in self._pending(partition) if each.not_before_ms <= now_ms]
        return sorted(due, key=lambda each: (each.not_before_ms, each.offset))[:limit]

    async def waits(self, partition: int, waiting: Sequence[LedgerIntent]) -> None:
        for each in waiting:
            known = self.intents.get(each.intent.identifier)
            is_same = known is not None and (known.state, known.partition) == (IntentState.PENDING, partition)
            if known is not None and is_same and known.attempt == each.attempt:
                self.intents[each.intent.identifier] = known._replace(
                    stripe_customer=each.stripe_customer, hold=str(each.hold), detail=each.detail,
                    not_before_ms=each.not_before_ms, failures=each.failures, absent_at_ms=each.absent_at_ms,
                )  # fmt: skip

    async def end_waits(self, partition: int, after_ms: int) -> None:
        for each in list(self._pending(partition)):
            if each.not_before_ms > after_ms:
                self.intents[each.intent.identifier] = each._replace(not_before_ms=0)

    async def waiting(self, partition: int) -> Sequence[Waiting]:
        by_hold: defaultdict[str, list[LedgerIntent]] = defaultdict(list)
        for each in self._pending(partition):
            by_hold[each.hold].append(each)
        return [
            Waiting(hold, len(held), min(each.intent.period_end_ms for each in held), min(each.offset for each in held))
            for hold, held in sorted(by_hold.items())
        ]

    async def totals(self, event_name: str, stripe_customer: str, start_ms: int, end_ms: int) -> IntentTotals:
        sums: defaultdict[IntentState, Decimal] = defaultdict(Decimal)
        for each in self.intents.values():
            at_ms = each.attempt.timestamp_s * SECOND_MS if each.attempt else each.intent.instant_ms
            whose = (each.intent.event_name, each.stripe_customer)
            if stripe_customer and whose == (event_name, stripe_customer) and start_ms <= at_ms < end_ms:
                quantity = EXACT.scaleb(Decimal(each.billed_minor), -each.intent.scale)
                sums[each.state] = EXACT.add(sums[each.state], quantity)
        state = IntentState
        return IntentTotals(sums[state.ACCEPTED], sums[state.LATE], sums[state.DEAD], sums[state.PENDING])

    async def drawn(self, event_name: str, stripe_customer: str, start_ms: int, end_ms: int) -> Decimal:
        found = Decimal(0)
        for each in self.intents.values():
            at_ms = each.attempt.timestamp_s * SECOND_MS if each.attempt else each.intent.instant_ms
            whose = (each.intent.event_name, each.stripe_customer)
            is_in = stripe_customer and whose == (event_name, stripe_customer) and start_ms <= at_ms < end_ms
            if is_in and each.state not in (IntentState.REDRIVEN, IntentState.REPLACED, IntentState.FREE):
                drawn_minor = each.intent.delta_minor - each.billed_minor
                found = EXACT.add(found, EXACT.scaleb(Decimal(drawn_minor), -each.intent.scale))
        return found

    async def listed(
        self, states: Sequence[IntentState], account: str = "", limit: int = 1_000, *, after: str = ""
    ) -> Sequence[LedgerIntent]:
        def is_wanted(each: LedgerIntent) -> bool:
            return each.state in states and each.intent.identifier > after and account in ("", each.intent.account)

        return sorted(self._where(is_wanted), key=lambda each: each.intent.identifier)[:limit]

    async def found(self, identifiers: Sequence[str]) -> Sequence[LedgerIntent]:
        return [self.intents[identifier] for identifier in set(identifiers) if identifier in self.intents]

    def _pending(self, partition: int) -> Iterator[LedgerIntent]:
        return self._where(lambda each: each.partition == partition and each.state is IntentState.PENDING)

    def _where(self, is_wanted: Callable[[LedgerIntent], bool]) -> Iterator[LedgerIntent]:
        return filter(is_wanted, self.intents.values())
