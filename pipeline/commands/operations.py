"""The commands for meter sets and quarantine, as functions."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from aggregators.decode import decode, is_batch, timed
from aggregators.meters import definition_change
from pipeline.logs.quarantine import Header
from pipeline.open import (
    Base,
    apply_meter_set,
    following,
    meter_set_in_force,
    open_base,
    open_stripe,
)
from pipeline.settings import Settings
from schemas.errors import InvalidInput
from schemas.log import INBOX_TOPIC, REJECTED_TOPIC, Log, Record
from schemas.meters import Meter, MeterSet

READ_RECORDS_MAX = 1_000


@contextlib.asynccontextmanager
async def _opened(settings: Settings, *, create: bool = False) -> AsyncIterator[Base]:
    base = await open_base(settings, create=create)
    try:
        yield base
    finally:
        await base.log.close()


class MeterSetPlan(NamedTuple):
    """A meter set that is not applied yet. `lines` say what will change. `is_final`: usage will no longer be counted or
    reported as before, so the command asks."""

    proposed: MeterSet
    lines: tuple[str, ...]
    is_final: bool


async def plan_meter_set(settings: Settings, path: Path) -> MeterSetPlan:
    """Plan the application of a meter set file. Raises `InvalidInput` if it contradicts the meter set in force."""
    current = await meter_set_in_force(settings)
    return checked_meter_set(current, following(current, path), path.name)


def checked_meter_set(current: MeterSet | None, proposed: MeterSet, name: str) -> MeterSetPlan:
    """The plan for a meter set that follows the one in force. Raises `InvalidInput` with the file's name if it
    contradicts it."""
    if current is None:
        return MeterSetPlan(proposed, (), is_final=False)
    change = definition_change(current, proposed)
    if change:
        raise InvalidInput(name, change)
    if proposed.version <= current.version and proposed != current:
        raise InvalidInput(f"{name}: version", _raised(current.version))
    return meter_set_plan(current, proposed)


def _raised(version: int) -> str:
    return (
        f"must be above {version}, the version in force: write `version: {version + 1}`. A file for a new `tidemark "
        "dev` is given to `dev --meters FILE` in a new folder"
    )


def meter_set_plan(current: MeterSet, proposed: MeterSet) -> MeterSetPlan:
    """What changes for usage from the record of the proposed meter set on.

    Raises `InvalidInput` if a maximum, a latest value or another total that is no sum would go to another Stripe meter:
    that one would get only the change of the total, and bill it.
    """
    lines, is_final = [], False
    for meter in current.meters:
        after = proposed.meter(meter.slug)
        name = meter.stripe_event_name
        if after is None:
            lines.append(f"- {meter.slug}: counted and reported no more")
        elif name != after.stripe_event_name:
            if name and after.stripe_event_name and not meter.aggregation.rule.additive:
                raise InvalidInput(
                    f"{meter.slug}.stripe_event_name",
                    f"cannot change from {name} to {after.stripe_event_name}: the total of a {meter.aggregation} meter "
                    "is no sum, and the other Stripe meter would get only its change; add a meter under another slug",
                )
            lines.append(f"~ {meter.slug}: reported to Stripe {_as(after)}, before {_as(meter)}")
        if after is not None:
            lines += [
                f"~ {meter.slug}: {field} {getattr(after, field)}, before {getattr(meter, field)}"
                for field in ("on_bad", "allow_negative", "unit")
                if getattr(after, field) != getattr(meter, field)
            ]
        is_final |= after is None or (name is not None and name != after.stripe_event_name)
    lines += [
        f"+ {meter.slug}: counted from now on, reported to Stripe {_as(meter)}"
        for meter in proposed.meters
        if current.meter(meter.slug) is None
    ]
    for setting, before in current.policy:
        if before != (now := getattr(proposed.policy, setting)):
            lines.append(f"~ policy.{setting}: {now}, before {before}")
    return MeterSetPlan(proposed, tuple(lines), is_final)


def _as(meter: Meter) -> str:
    return f"as {meter.stripe_event_name}" if meter.stripe_event_name else "not at all"


async def apply_planned_meter_set(settings: Settings, plan: MeterSetPlan) -> str:
    """Append the meter set to every partition; returns a message."""
    async with _opened(settings, create=True) as base:
        await apply_meter_set(base, plan.proposed)
    return (
        f"meter set version {plan.proposed.version} with {len(plan.proposed.meters)} meters is in the log of every "
        "partition"
    )


async def create_at_stripe(settings: Settings, meter_set: MeterSet) -> list[str]:
    """Create the meters of the meter set that Stripe does not have yet; returns a line for each.

    Only this function creates meters: a typo in a meter set must not make one. Raises `InvalidInput` without a Stripe
    key, and `OperatorNeeded` if an existing meter takes no events. Repeating does no harm.
    """
    meters = open_stripe(settings)
    if meters is None:
        raise InvalidInput("TIDEMARK_STRIPE_API_KEY", "is not set; the meters are created at Stripe with it")
    lines = []
    try:
        for meter in meter_set.meters:
            if meter.stripe_event_name:
                is_new = await meters.create_meter(meter.stripe_event_name, meter.slug)
                lines.append(f"{meter.stripe_event_name}: {'created at Stripe' if is_new else 'Stripe has the meter'}")
    finally:
        await meters.close()
    return lines


class QuarantineEntry(NamedTuple):
    """An event in the quarantine. (topic, partition, offset, place) is the original position and the identity."""

    topic: str
    partition: int
    offset: int
    place: int
    reason: str
    detail: str
    stream_time_ms: int
    value: bytes
    cut: bool

    @property
    def position(self) -> str:
        """The identity as a text that a person can copy."""
        return f"{self.topic}-{self.partition}@{self.offset}.{self.place}"

    def text(self) -> str:
        """The original bytes as text; invalid UTF-8 is replaced."""
        return self.value.decode("utf-8", "replace")

    def as_json(self) -> dict[str, object]:
        """The entry as a JSON object."""
        return {**self._asdict(), "value": self.text()}


def quarantine_entry(record: Record) -> QuarantineEntry:
    """Read a record of `usage.rejected`.

    Events that the gateway refused were in no other topic; their position is the position in `usage.rejected`.
    """
    headers = {name: value.decode("utf-8", "replace") for name, value in record.headers}
    placed = Header.OFFSET in headers
    return QuarantineEntry(
        headers.get(Header.TOPIC, "") if placed else headers.get(Header.SOURCE, REJECTED_TOPIC),
        int(headers[Header.PARTITION]) if placed else record.partition,
        int(headers[Header.OFFSET]) if placed else record.offset,
        int(headers.get(Header.INDEX, 0)),
        headers.get(Header.REASON, ""),
        headers.get(Header.DETAIL, ""),
        int(headers.get(Header.STREAM_TIME_MS, record.timestamp_ms)),
        record.value or b"",
        Header.CUT_AT_BYTES in headers,
    )


async def quarantined(settings: Settings, reason: str | None, limit: int) -> list[QuarantineEntry]:
    """The newest `limit` entries, oldest first, without repetitions of a position. Keeps `limit` entries per partition
    in memory."""
    newest: list[QuarantineEntry] = []
    async with _opened(settings) as base:
        for partition in range(await base.log.partition_count(REJECTED_TOPIC)):
            newest += await _newest(base.log, partition, reason, limit)
    return sorted(newest, key=lambda entry: (entry.stream_time_ms, entry[:4]))[-limit:]


async def _newest(log: Log, partition: int, reason: str | None, limit: int) -> Iterable[QuarantineEntry]:
    bounds = await log.bounds(REJECTED_TOPIC, partition)
    entries: dict[tuple[str, int, int, int], QuarantineEntry] = {}
    offset = bounds.first
    while offset < bounds.next and (records := await log.read(REJECTED_TOPIC, partition, offset, READ_RECORDS_MAX)):
        offset = records[-1].next_offset
        for entry in map(quarantine_entry, records):
            if reason in (None, entry.reason):
                entries[entry[:4]] = entry
        while len(entries) > limit:
            del entries[next(iter(entries))]
    return entries.values()


async def redrive(settings: Settings, entries: Sequence[QuarantineEntry]) -> int:
    """Append entries to `usage.inbox`; returns their number. Repetition is safe: an event is counted once."""
    async with _opened(settings) as base:
        count = await base.log.partition_count(INBOX_TOPIC)
        for entry in entries:
            await base.log.append(INBOX_TOPIC, entry.partition % count, redriven(entry))
    return len(entries)


def redriven(entry: QuarantineEntry) -> bytes:
    """The bytes to append: those of the entry. An event without a time gets the time of its first arrival."""
    decoded = decode(entry.value, len(entry.value) + 1)
    if is_batch(entry.value) or not decoded.events:
        return entry.value
    return timed(entry.value, decoded.events[0][1], entry.stream_time_ms)
