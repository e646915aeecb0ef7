"""Corrections of events, from the wish to the signed record: the API and the command line do the same (S16).

A wish is judged by what the archive has, so an event can be corrected some seconds after it arrived. The record is
appended to the partition of the account, and the corrector makes the adjustments that follow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Final, Literal, NamedTuple

from aggregators.corrections import (
    NOTHING,
    Change,
    Contributed,
    Corrected,
    changes,
    contributed,
    id_prefix,
    must_count,
    refusal,
    told_by_meter,
)
from aggregators.meters import NO_DIMENSIONS, Contribution, Failure
from aggregators.partitioning import partition_of
from aggregators.periods import is_closed, period_at
from aggregators.placement import placed_at_arrival
from pipeline.logs.bindings import AccountLog, HasAccounts
from pipeline.logs.control_records import append_control
from schemas.adjustments import is_reserved
from schemas.analytics import DedupOutcome
from schemas.clock import MILLISECOND_US
from schemas.control import CorrectionRecord
from schemas.corrections import CORRECTIONS_OF_EVENT_MAX, ArchivedCorrection, CorrectionArchive
from schemas.errors import InvalidInput, Transient
from schemas.events import object_of
from schemas.measures import ArchivedAdjustment
from schemas.meters import MeterSet
from schemas.periods import AccountState, Period
from schemas.rollup import Checkpoint
from schemas.usage_evidence import ArchivedEvent

NOT_ARCHIVED: Final = (
    "the archive has no such event of the account. An event that never came, one that was rejected and one that came a "
    "moment ago look alike here: ask again in some seconds, then look with `tidemark explain`"
)
UNDECIDED: Final = "it came later than the dedup window, and waits for its decision: try again in a minute"

# Events whose adjustments a list reads at once.
TOLD_AT_ONCE: Final = 20
_ALL: Final = (1 << 63) - 1
_NO_METERS: Final = MeterSet(version=1, meters=())
Problem = Literal["not_archived_yet", "not_decided_yet", "correction_exists", "not_correctable"]


class Uncorrectable(InvalidInput):
    """A correction that cannot be made; `problem` says of which kind. The two `…_yet` pass with time."""

    def __init__(self, problem: Problem, field: str, message: str) -> None:
        super().__init__(field, message)
        self.problem = problem


class Judged(NamedTuple):
    """An event that can be corrected: what it counted, and the meter sets at its arrival and now."""

    event: ArchivedEvent
    then: MeterSet
    now: MeterSet
    counted: Contributed


class Planned(NamedTuple):
    """A correction as it can be made. `changes` are the adjustments that the archive does not have yet, of a meter that
    counts the event; `samples` are the measured meters whose hours are measured again. `is_known`: its record is in the
    log already."""

    record: CorrectionRecord
    period: Period
    is_closed: bool
    changes: Sequence[Change]
    samples: Sequence[str]
    is_known: bool


class Told(NamedTuple):
    """What an adjustment of a correction told."""

    meter: str
    dimensions: Mapping[str, str]
    quantity: str


class Listed(NamedTuple):
    """A correction and what its adjustments have told so far."""

    correction: ArchivedCorrection
    told: Sequence[Told]


async def judge_event(archive: CorrectionArchive, account: str, event: str, before: int) -> Judged | str:
    """What an archived event counted; or why there is nothing to correct, as a sentence."""
    found = await archive.event(account, event)
    if found is None:
        return NOT_ARCHIVED
    if is_reserved(found.type):
        return "it is an adjustment: correct the event that it adjusts"
    if found.is_deferred and found.counted_ms is None:
        return UNDECIDED
    if found.is_deferred and found.outcome != DedupOutcome.COUNTED:
        return "it was not counted"
    then = await archive.meter_set_at(found.partition, found.position) or _NO_METERS
    now = await archive.meter_set_at(found.partition, before) or _NO_METERS
    counted = contributed(then, now, found.type, object_of(found.data.encode()), found.time_us)
    if isinstance(counted, Failure):
        return f"its meters cannot use it: {counted.detail}"
    return Judged(found, then, now, counted)


def corrected_by(judged: Judged, record: CorrectionRecord) -> Corrected:
    """What a correction makes of the event. Raises `Uncorrectable` if the meters cannot use its data."""
    wanted: Contributed | Failure = NOTHING
    if record.kind == "amend":
        event = judged.event
        wanted = contributed(judged.then, judged.now, event.type, object_of(record.data.encode()), event.time_us)
    if isinstance(wanted, Failure):
        raise Uncorrectable("not_correctable", "data", f"the meters cannot use it: {wanted.detail}")
    return Corrected(record.counts, wanted)


async def changes_of(
    archive: CorrectionArchive, judged: Judged, records: Iterable[CorrectionRecord], before: int
) -> list[Change]:
    """The adjustments that the corrections of an event, in order, still need after those at positions below `before`.

    Raises `Uncorrectable` if a meter that came back to the meter set cannot use the data of one.
    """
    event = judged.event
    must = must_count(judged.counted, [corrected_by(judged, record) for record in _paid(records)])
    rows = await archive.told(event.partition, [event.account], id_prefix(event.id), before)
    told = told_by_meter(judged.now, event.id, rows, {row.data: object_of(row.data.encode()) for row in rows})
    return changes(judged.now, judged.counted.usage, must, told)


def settled_by(judged: Judged, earlier: Sequence[CorrectionRecord], record: CorrectionRecord) -> list[Change]:
    """What a correction that does not count leaves to be settled outside, after those before it."""
    paid = _paid(earlier)
    before = corrected_by(judged, paid[-1]).wanted if paid else judged.counted
    return changes(judged.now, before.usage, corrected_by(judged, record).wanted.usage, {})


def _paid(records: Iterable[CorrectionRecord]) -> list[CorrectionRecord]:
    """The corrections by which somebody pays something else. A write-off changes what nobody pays."""
    return [record for record in records if record.counts or record.treatment != "write_off"]


async def plan_correction(
    log: AccountLog, view: HasAccounts, archive: CorrectionArchive, wish: CorrectionRecord
) -> Planned:
    """Judge a correction. Its record has `counts` as the state of the event's period wants it.

    Raises `Uncorrectable`, and `Transient` if a store does not answer.
    """
    known = _known(wish, await archive.named(wish.account, wish.correction))
    judged = await judge_event(archive, wish.account, wish.event, _ALL)
    if isinstance(judged, str):
        problem: Problem = "not_correctable"
        if judged in (NOT_ARCHIVED, UNDECIDED):
            problem = "not_archived_yet" if judged == NOT_ARCHIVED else "not_decided_yet"
        raise Uncorrectable(problem, wish.kind, judged)
    # What was accepted is told, also if a meter that cannot follow comes back to the meter set.
    if known is None and (refused := refusal(wish.kind, judged.counted, corrected_by(judged, wish).wanted)):
        raise Uncorrectable("not_correctable", wish.kind, refused)
    earlier = [row.record for row in await archive.deciding(wish.account, wish.event, _ALL)]
    if known is None and len(earlier) >= CORRECTIONS_OF_EVENT_MAX:
        message = f"the event has {len(earlier)} corrections, and takes no more: settle the rest outside"
        raise Uncorrectable("not_correctable", wish.kind, message)
    partition = partition_of(wish.account, log.partitions)
    checkpoint, states = await view.accounts.accounts(partition, [wish.account])
    if checkpoint is None or checkpoint.meter_set is None:
        raise Transient("Redis has counted nothing on this account's partition yet: is a worker running?", 5)
    state = states[wish.account]
    period = period_at(state, judged.event.time_us // MILLISECOND_US)
    closed = is_closed(state, period, checkpoint.meter_set.policy.grace_ms, checkpoint.stream_time_ms)
    counts = not closed or wish.treatment == "next_period"
    record = known or wish.model_copy(update={"counts": counts})
    if record.counts:
        made = await changes_of(archive, judged, earlier if known else [*earlier, record], _ALL)
    else:
        made = settled_by(judged, earlier[: earlier.index(record)] if record in earlier else earlier, record)
    if known is None and counts and _is_kept_out(checkpoint, state, judged, made):
        message = (
            "the period of the event is closed, and no later one takes its usage: the late policy of a meter is "
            "quarantine, or another payer pays now. Ask for credit_note or write_off"
        )
        raise Uncorrectable("not_correctable", "closed_period", message)
    return Planned(record, period, closed, made, sorted(judged.counted.samples), known is not None)


def _is_kept_out(checkpoint: Checkpoint, state: AccountState, judged: Judged, made: Sequence[Change]) -> bool:
    """Whether the fold would quarantine an adjustment, because the period of the event is closed (I9)."""
    meters = [each.meter for each in made]
    meters += [meter for slug in judged.counted.samples if (meter := judged.now.meter(slug)) is not None]
    told = tuple(Contribution(meter, 0, "", NO_DIMENSIONS) for meter in meters)
    policy = judged.now.policy
    return placed_at_arrival(state, judged.event.time_us, told, policy, checkpoint.stream_time_ms).kept_out


async def write_correction(log: AccountLog, planned: Planned) -> None:
    """Append the signed record, unless the log has it. Of two records with one name, which two callers may append at
    once, the first counts. Raises the log's errors; the caller may repeat the call."""
    if not planned.is_known:
        partition = partition_of(planned.record.account, log.partitions)
        await append_control(log.log, log.secret, partition, planned.record)


async def listed_corrections(
    archive: CorrectionArchive, partitions: int, account: str, rows_max: int
) -> Sequence[Listed]:
    """The corrections of an account that the archive has, newest first. Raises `Transient`."""
    rows = await archive.corrections_of(account, None, rows_max)
    partition, events = partition_of(account, partitions), list(dict.fromkeys(row.record.event for row in rows))
    told: list[ArchivedAdjustment] = []
    # Not all that was ever told: an account may have far more corrections than are listed.
    for first in range(0, len(events), TOLD_AT_ONCE):
        chunk = events[first : first + TOLD_AT_ONCE]
        pages = (archive.told(partition, [account], id_prefix(event), _ALL) for event in chunk)
        told += chain.from_iterable(await asyncio.gather(*pages))
    by_name: dict[str, list[Told]] = {}
    for row in told:
        data = object_of(row.data.encode())
        dimensions = {str(name): str(value) for name, value in dict(data["dimensions"]).items()}
        each = Told(row.id.split(":")[2], dimensions, str(data["quantity"]))
        by_name.setdefault(str(data.get("correction")), []).append(each)
    return [Listed(row, by_name.get(row.record.correction, ())) for row in reversed(rows)]


def _known(wish: CorrectionRecord, found: ArchivedCorrection | None) -> CorrectionRecord | None:
    """The record that the log has under the correction's name. Raises `Uncorrectable` if it says something else."""
    if found is not None and _content(found.record) != _content(wish):
        message = (
            f"correction {wish.correction!r} is there already and says something else, of event "
            f"{found.record.event!r}: send the new one under another name"
        )
        raise Uncorrectable("correction_exists", "correction", message)
    return found.record if found is not None else None


def _content(record: CorrectionRecord) -> tuple[object, ...]:
    data = object_of(record.data.encode()) if record.data else None
    return record.event, record.kind, data, record.treatment, record.reason
