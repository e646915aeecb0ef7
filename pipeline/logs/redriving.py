"""Sends the events of the quarantine again, in bulk: which would pass now, then those, in order, step by step.

A step reads a bounded number of entries, appends those that pass to `usage.inbox`, and notes how far it came. After any
end the next process begins at the last note, and what was sent since counts once, because an event keeps its identity.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from typing import Final, NamedTuple

from aggregators.decode import Decoded, decode, timed
from aggregators.judge import WITHOUT_METERS, event_time_us, judge, rules_at
from aggregators.meters import Failure, compiled
from aggregators.partitioning import partition_of
from pipeline.logs.batching import BATCH_BYTES_MAX, batches
from pipeline.logs.marked import Identity
from pipeline.logs.rejected import QuarantineEntry, quarantine_entry
from schemas.adjustments import reserved
from schemas.clock import MILLISECOND_US, Clock
from schemas.errors import InvalidInput
from schemas.log import INBOX_TOPIC, REJECTED_TOPIC, Log
from schemas.meters import MeterSet
from schemas.reasons import UNCHANGED_BY_REDRIVE, Reason
from schemas.redrives import Redrive, RedriveCounts, Redrives, RedriveState, Selection

STEP_RECORDS: Final = 500
# A preview knows so many identities and names so many accounts; further ones are not told apart.
IDENTITIES_MAX: Final = 200_000
ACCOUNTS_MAX: Final = 1_000

# Which of the identities arrived before, as far as the marks know.
Arrived = Callable[[Collection[Identity]], Awaitable[Collection[Identity]]]


class Passing(NamedTuple):
    """An event that passes now, as it is sent. `is_old`: its time is before the dedup window, so the archive decides
    whether it arrived before. `is_unmetered`: no meter counts it."""

    identity: Identity
    raw: bytes
    is_old: bool
    is_unmetered: bool


class Judgement(NamedTuple):
    """What would become of an entry: its events, or why it would be rejected again."""

    entry: QuarantineEntry
    events: Sequence[Passing] = ()
    failure: Failure | None = None


class Preview(NamedTuple):
    """What a redrive would do. `passing` counts entries by the reason for which they were rejected, `failing` those
    that would be rejected again by the reasons before and now. `accounts` counts the passing ones, under "" those of
    further accounts. `arrived` is None if Redis was not asked. `is_whole`: all entries were looked at."""

    counts: RedriveCounts
    passing: Counter[str]
    failing: Counter[tuple[str, str]]
    details: dict[str, str]
    accounts: Counter[str]
    old: int = 0
    unmetered: int = 0
    arrived: int | None = None
    is_whole: bool = True


class Judge:
    """Selects entries, and judges them by the meters in force at an instant. Without a meter set no meter counts."""

    def __init__(self, selection: Selection, meter_set: MeterSet | None, now_ms: int) -> None:
        """Raises `InvalidInput` if the selection names no reason or no meter."""
        if selection.cause and selection.cause not in set(Reason):
            reasons = ", ".join(sorted(Reason))
            raise InvalidInput("cause", f"{selection.cause!r} is no reason; the reasons are {reasons}")
        self._selection = selection
        self._meters = compiled(meter_set) if meter_set is not None else WITHOUT_METERS
        self._rules = rules_at(now_ms, self._meters)
        policy = self._meters.meter_set.policy
        self._event_bytes_max = policy.event_bytes_max
        self._oldest_us = (now_ms - policy.window_ms) * MILLISECOND_US
        self._type = ""
        if selection.meter:
            meter = self._meters.meter_set.meter(selection.meter)
            if meter is None:
                raise InvalidInput("meter", f"{selection.meter!r} is not in the meter set in force")
            self._type = meter.event_type

    def judge(self, entry: QuarantineEntry) -> Judgement | None:
        """What would become of an entry; None if it is not selected.

        Without a reason in the selection, entries are left out whose reason no redrive helps.
        """
        cause = self._selection.cause
        if entry.stream_time_ms < self._selection.since_ms:
            return None
        if entry.reason != cause if cause else entry.reason in UNCHANGED_BY_REDRIVE:
            return None
        decoded = decode(entry.value, self._event_bytes_max)
        if self._type and not any(event.type == self._type for _, event in decoded.events):
            return None
        if entry.cut:
            return Judgement(entry, failure=Failure(Reason.TOO_LARGE, "the entry was cut"))
        if decoded.rejected or not decoded.events:
            first = decoded.rejected[0] if decoded.rejected else None
            failure = Failure(first.reason, first.detail) if first else Failure(Reason.NOT_AN_EVENT, "no event")
            return Judgement(entry, failure=failure)
        return self._judged(entry, decoded)

    def _judged(self, entry: QuarantineEntry, decoded: Decoded) -> Judgement:
        passing = []
        for place, event in decoded.events:
            if why := reserved(event.type, event.id):
                return Judgement(entry, failure=Failure(Reason.RESERVED_TYPE, why))
            # An event without a time keeps that of its first arrival, so that two redrives are one event.
            at_us = event_time_us(event, entry.stream_time_ms)
            contributions = judge(event, at_us, self._rules)
            if isinstance(contributions, Failure):
                return Judgement(entry, failure=contributions)
            raw = timed(decoded.raws.parts[place], event, entry.stream_time_ms)
            if len(raw) > BATCH_BYTES_MAX:
                return Judgement(entry, failure=Failure(Reason.TOO_LARGE, "send it from the producer"))
            is_old = at_us is not None and at_us < self._oldest_us
            passing.append(Passing((event.subject, event.id), raw, is_old, not contributions))
        return Judgement(entry, passing)


class Redriving:
    """Redrives over a log and the notes in SQL."""

    def __init__(self, log: Log, redrives: Redrives, clock: Clock) -> None:
        self._log = log
        self._redrives = redrives
        self._clock = clock

    async def begin(self, redrive_id: str, selection: Selection, by: str, reason: str) -> Redrive:
        """Begin a redrive of what the quarantine holds now; the running one of the same selection, if there is one.
        Raises `InvalidInput` without who and why, and `Transient`."""
        now_ms, firsts, ends = self._clock.now_ms(), [], []
        for partition in range(await self._log.partition_count(REJECTED_TOPIC)):
            bounds = await self._log.bounds(REJECTED_TOPIC, partition)
            firsts.append(bounds.first)
            ends.append(bounds.next)
        redrive = Redrive(redrive_id, selection, by, reason, ends, firsts, begun_ms=now_ms, touched_ms=now_ms)
        return await self._redrives.begin(redrive)

    async def step(self, redrive: Redrive, judge: Judge) -> Redrive:
        """Send the next entries, and return how far the redrive is then; it is done after its last entry.

        Raises `Transient`, and `Fenced` if another process goes on with the redrive. After any end, `step` on what the
        store has sends nothing twice that counts.
        """
        partition = next((at for at, end in enumerate(redrive.ends) if redrive.positions[at] < end), None)
        moved = redrive
        if partition is not None:
            position, end = redrive.positions[partition], redrive.ends[partition]
            entries, position = await read_entries(self._log, partition, position, end)
            sending, counts = chosen(entries, judge, set())
            await self._send([event for judged in sending for event in judged.events])
            positions = [*redrive.positions]
            positions[partition] = position
            moved = moved._replace(positions=positions, counts=added(redrive.counts, counts))
        is_done = all(at >= end for at, end in zip(moved.positions, redrive.ends, strict=True))
        state = RedriveState.DONE if is_done else RedriveState.RUNNING
        moved = moved._replace(state=state, steps=redrive.steps + 1, touched_ms=self._clock.now_ms())
        await self._redrives.move(redrive, moved)
        return moved

    async def _send(self, events: Sequence[Passing]) -> None:
        """Append events to the inbox, those of an account in order, and return after all are durable."""
        count = await self._log.partition_count(INBOX_TOPIC)
        placed = ((partition_of(event.identity[0], count), event.raw) for event in events)
        for partition, value in batches(placed):
            await self._log.append(INBOX_TOPIC, partition, value)


def new_redrive_id() -> str:
    """An id of a redrive."""
    return f"rq_{secrets.token_hex(6)}"


async def read_entries(log: Log, partition: int, position: int, end: int) -> tuple[list[QuarantineEntry], int]:
    """Up to `STEP_RECORDS` entries of a partition from a position on and before `end`, and the position after them."""
    start = max(position, (await log.bounds(REJECTED_TOPIC, partition)).first)
    records = await log.read(REJECTED_TOPIC, partition, start, STEP_RECORDS) if start < end else ()
    if not records:
        return [], end
    return [quarantine_entry(record) for record in records if record.offset < end], records[-1].next_offset


async def all_entries(log: Log) -> AsyncIterator[list[QuarantineEntry]]:
    """All entries that the quarantine holds now, in the order of each partition, at most `STEP_RECORDS` at a time."""
    for partition in range(await log.partition_count(REJECTED_TOPIC)):
        bounds = await log.bounds(REJECTED_TOPIC, partition)
        position = bounds.first
        while position < bounds.next:
            entries, position = await read_entries(log, partition, position, bounds.next)
            yield entries


async def preview(log: Log, judge: Judge, arrived: Arrived | None, is_over: Callable[[], bool]) -> Preview:
    """What a redrive would do; nothing is written. `is_over` ends the look early. Raises `Transient`."""
    found = Preview(RedriveCounts(), Counter(), Counter(), {}, Counter(), arrived=None if arrived is None else 0)
    seen: set[Identity] = set()
    async for entries in all_entries(log):
        if is_over():
            return found._replace(is_whole=False)
        passing, counts = chosen(entries, judge, seen, found)
        found = found._replace(counts=added(found.counts, counts))
        events = [event for judged in passing for event in judged.events]
        before = await arrived({event.identity for event in events}) if arrived is not None and events else ()
        found = found._replace(
            old=found.old + sum(event.is_old for event in events),
            unmetered=found.unmetered + sum(event.is_unmetered for event in events),
            arrived=None if found.arrived is None else found.arrived + len(before),
        )
    return found


def chosen(
    entries: Sequence[QuarantineEntry], judge: Judge, seen: set[Identity], into: Preview | None = None
) -> tuple[list[Judgement], RedriveCounts]:
    """The judgements of the selected entries that pass, each event once, and the counts of all entries.

    `seen` are the identities before, and takes up to `IDENTITIES_MAX`. With `into`, its counters are added to.
    """
    passing, failing, cut, repeated = [], 0, 0, 0
    for entry in entries:
        judged = judge.judge(entry)
        if judged is None:
            continue
        identities = {event.identity for event in judged.events}
        if entry.cut:
            cut += 1
        elif judged.failure is not None:
            failing += 1
        elif identities <= seen:
            repeated += 1
        else:
            passing.append(judged)
            if len(seen) < IDENTITIES_MAX:
                seen |= identities
        if into is not None:
            _explain(into, judged, is_passing=bool(passing) and passing[-1] is judged)
    return passing, RedriveCounts(len(entries), len(passing), failing, cut, repeated)


def _explain(into: Preview, judged: Judgement, *, is_passing: bool) -> None:
    if judged.failure is not None:
        into.failing[judged.entry.reason, judged.failure.reason.value] += 1
        into.details.setdefault(judged.failure.reason.value, judged.failure.detail)
    elif is_passing:
        into.passing[judged.entry.reason] += 1
        for account in {event.identity[0] for event in judged.events}:
            is_named = account in into.accounts or len(into.accounts) < ACCOUNTS_MAX
            into.accounts[account if is_named else ""] += 1


def added(before: RedriveCounts, more: RedriveCounts) -> RedriveCounts:
    """The sums of two counts."""
    return RedriveCounts(*(left + right for left, right in zip(before, more, strict=True)))
