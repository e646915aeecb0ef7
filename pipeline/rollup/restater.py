"""Late bindings: an account's usage counted again out of the archive, in the periods of a later binding (S11).

1. once the archive is near: a record that begins the restatement; from there on everything of the account waits.
2. once the archive has passed that record: the usage before it is counted by the recount's SQL, in the old periods and
   in the new ones, and a record with the difference is appended; there the fold puts it in place and goes on.

A crash after an append repeats the record, which then changes nothing. A restatement that is not ended in time is begun
anew: an archive that goes away in between holds nobody up for long.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from aggregators.bindings import is_waiting
from aggregators.codec import parse_value
from aggregators.periods import open_period, period_at
from aggregators.signing import distinct_member, hash_key
from pipeline.logs.control_records import append_control
from reconciler.history import AccountHistory, History, history_of
from reconciler.recount import PartitionState, Recounter, request_at
from schemas.aggregations import Value
from schemas.analytics import ArchiveStore, ControlRow, HourlyRow
from schemas.clock import MINUTE_MS
from schemas.control import RestatementRecord
from schemas.errors import HeldUp, InvalidInput, OperatorNeeded, Transient
from schemas.live_view import AccountDirectory, DeferredEvents, LiveTotals
from schemas.log import Log, offset_of, position
from schemas.meters import MeterSet
from schemas.periods import AccountState, Binding, PendingCut, Period
from schemas.rebuild import RowRecounts
from schemas.restatement import RestatementCell, RestatementContent, RestatementDistinct, RestatementTotal, packed
from schemas.rollup import Checkpoint, TotalKey

# A record of the log takes at least half a megabyte.
CONTENT_CHARACTERS_MAX: Final = 400_000
# How far the archive may be behind in stream time where a restatement is begun: events wait until it has caught up.
NEAR_MS_MAX: Final = MINUTE_MS
# How many accounts of a partition a call looks at, and for how many of them events wait at one time.
LOOKED_AT_MAX: Final = 200
BEGUN_MAX: Final = 20
# After so many accounts whose usage could not be counted a call ends: it is most likely the store and not the accounts.
FAILED_MAX: Final = 3
# A restatement that was begun so often, some eight hours of waiting, is given up at the next failure.
BEGINNINGS_MAX: Final = 8
# So long after a restatement that took too long, in stream time, what waited for it may be judged and counted before
# the next.
JUDGED_MS_MAX: Final = 10 * MINUTE_MS
TOO_LARGE: Final = (
    "the usage to be counted again fills more than one record of the log: close the account's past periods, or choose "
    "a later instant"
)
OTHER_USAGE: Final = (
    "the archive holds other usage of the account than was counted: put right what `tidemark reconcile` names and bind "
    "the account once more"
)
TOO_OFTEN: Final = "the usage could not be counted again, {} times over ({}): bind the account once more when it can"
UNNAMED: Final = "meter {} lost its Stripe event name after usage that is to be counted again was counted"

_CellName = tuple[str, int, int, str, int]


class Restater:
    """Appends restatement records for the accounts of partitions that wait for one; knows no Faust. Two of one
    partition do no harm."""

    def __init__(
        self,
        log: Log,
        accounts: AccountDirectory,
        deferred: DeferredEvents,
        totals: LiveTotals,
        archive: ArchiveStore,
        reader: RowRecounts,
        secret: bytes,
    ) -> None:
        self._log = log
        self._accounts = accounts
        self._deferred = deferred
        self._totals = totals
        self._archive = archive
        self._reader = reader
        self._secret = secret
        self._told: dict[tuple[int, str], tuple[int, int]] = {}
        self._failed: set[tuple[int, str]] = set()

    async def restatement(self, partition: int) -> int:
        """Begin and end the restatements of one partition that the archive has passed; how many records that took.

        Raises `Transient` where a store or the log does not answer, or did not for some account, after the others were
        served; the same records are made by the next call.
        """
        checkpoint, waiting = await self._accounts.restating(partition, LOOKED_AT_MAX)
        self._forget(partition, checkpoint, waiting.keys())
        if checkpoint is None or not waiting:
            return 0
        rebuilt = await self._archive.events_rebuilt()
        reached = await self._archive.load_position(partition)
        if rebuilt is None or reached is None or reached.log_id != checkpoint.log_id:
            return 0
        near = checkpoint.stream_time_ms - reached.stream_time_ms <= NEAR_MS_MAX
        begun = sum(is_waiting(state, checkpoint.stream_time_ms) for state in waiting.values())
        answered = 0
        rows: Sequence[ControlRow] | None = None
        failures: list[Transient] = []
        for account, state in sorted(waiting.items(), key=lambda item: (partition, item[0]) in self._failed):
            pending = state.pending
            if pending is None or pending.position >= position(reached.next_offset):
                continue
            if self._told.get((partition, account), (-1, 0))[0] == pending.position:
                continue
            if is_waiting(state, checkpoint.stream_time_ms):
                if rows is None:
                    rows = await self._archive.load_controls(partition, position(reached.next_offset), waiting)
                ours = [row for row in rows if row.account in ("", account) and row.position < pending.position]
                now = PartitionState(partition, checkpoint, history_of(ours, checkpoint.stream_time_ms))
                try:
                    record = await self._ended(now, account, state)
                except Transient as error:
                    self._failed.add((partition, account))
                    failures.append(error)
                    if len(failures) == FAILED_MAX:
                        break
                    continue
                self._failed.discard((partition, account))
                # A table that was just exchanged may lack, for a moment, events that the archive has passed.
                if await self._archive.events_rebuilt() != rebuilt:
                    return answered
            elif near and begun < BEGUN_MAX and await self._is_judged(partition, account, pending, checkpoint):
                begun += 1
                record = RestatementRecord(account=account, position=pending.position, begins=True)
            else:
                continue
            offset = await append_control(self._log, self._secret, partition, record)
            self._told[partition, account] = (pending.position, offset)
            answered += 1
        if failures:
            raise failures[0]
        return answered

    async def _is_judged(self, partition: int, account: str, pending: PendingCut, checkpoint: Checkpoint) -> bool:
        """Whether what waited for a restatement that took too long is counted by now, or had the time to be: begun
        again at once and again and again, its usage would wait without end."""
        if pending.until_ms is None or checkpoint.stream_time_ms >= pending.until_ms + JUDGED_MS_MAX:
            return True
        _, left = await self._deferred.waiting(partition, account)
        return not left.events

    async def _ended(self, now: PartitionState, account: str, state: AccountState) -> RestatementRecord:
        """The record that ends a restatement: its content, or why there is none."""
        assert state.pending is not None, "the caller looked"  # noqa: S101 - an invariant, not input
        try:
            return await self._record(now, account, state, state.pending)
        except (Transient, HeldUp) as error:
            # Also where the store says no for good: that is nothing the binding could be declined for.
            if state.pending.begun < BEGINNINGS_MAX:
                raise Transient(str(error)) from error
            declined = TOO_OFTEN.format(state.pending.begun, str(error)[:300])
            return RestatementRecord(account=account, position=state.pending.position, declined=declined)
        except (OperatorNeeded, InvalidInput) as error:
            # One account's fault must not stop the others, nor the worker.
            return RestatementRecord(account=account, position=state.pending.position, declined=str(error)[:500])

    def _forget(self, partition: int, checkpoint: Checkpoint | None, waiting: Iterable[str]) -> None:
        """What was told and folded is told again where the account waits still."""
        held = set(waiting)
        for key, (_, offset) in list(self._told.items()):
            if key[0] == partition and (checkpoint is None or key[1] not in held or offset < checkpoint.next_offset):
                del self._told[key]
        self._failed = {key for key in self._failed if key[0] != partition or key[1] in held}

    async def _record(
        self, now: PartitionState, account: str, state: AccountState, pending: PendingCut
    ) -> RestatementRecord:
        before = msgspec.structs.replace(now.checkpoint, next_offset=offset_of(pending.position))
        old = await self._cells(now._replace(checkpoint=before), account, pending)
        if not await self._is_counted(now, account, state, old.values()):
            return RestatementRecord(account=account, position=pending.position, declined=OTHER_USAGE)
        history = _bound(now.history, account, pending, state.bindings)
        partition_state = PartitionState(now.partition, before, history)
        new = await self._cells(partition_state, account, pending)
        reported = await Recounter(self._reader).reported(partition_state, accounts=frozenset([account]))
        totals = _totals(new.values(), reported, before.meter_set)
        if unnamed := [each.meter for each in totals if each.reported_minor and not each.event_name]:
            return RestatementRecord(account=account, position=pending.position, declined=UNNAMED.format(unnamed[0]))
        distinct = await self._distinct(partition_state, account, pending)
        content = packed(RestatementContent(_replaced(old.values()), _changed(old, new), totals, distinct))
        if len(content) > CONTENT_CHARACTERS_MAX:
            return RestatementRecord(account=account, position=pending.position, declined=TOO_LARGE)
        return RestatementRecord(account=account, position=pending.position, content=content)

    async def _cells(
        self, partition_state: PartitionState, account: str, pending: PendingCut
    ) -> dict[_CellName, HourlyRow]:
        """The cells of the periods concerned."""
        request = request_at(partition_state, frozenset([account]))
        rows = await self._reader.recount_rows(request, 0) if request.meters else ()
        return {_name(row): row for row in rows if row.period_start_ms >= pending.from_ms}

    async def _is_counted(
        self, now: PartitionState, account: str, state: AccountState, old: Iterable[HourlyRow]
    ) -> bool:
        """Whether the archive's usage in the old periods is what the live view has counted. Exact: nothing of the
        account is counted while it waits."""
        assert state.pending is not None, "the caller looked"  # noqa: S101 - an invariant, not input
        counted = {(each.period_start_ms, each.meter): each.value_minor for each in _totals(old, {}, None)}
        # Also those of which the archive knows nothing: it may have lost all that was counted there.
        starts = {start_ms for start_ms, _ in counted} | set(_starts(state, now.checkpoint))
        keys = [TotalKey(account, start_ms) for start_ms in sorted(starts)]
        checkpoint, held = await self._totals.account_totals(now.partition, keys)
        if checkpoint is None or not is_waiting(state, checkpoint.stream_time_ms):
            raise Transient(f"{account}: its restatement has taken too long, and is begun anew")
        if checkpoint.next_offset <= offset_of(state.pending.position):
            raise Transient(f"{account}: the live view went back behind the record that began its restatement")
        live = {
            (key.period_start_ms, meter): parse_value(text).minor
            for key, fields in held.items()
            for meter, text in fields.items()
        }
        return live == counted

    async def _distinct(
        self, partition_state: PartitionState, account: str, pending: PendingCut
    ) -> list[RestatementDistinct]:
        request = request_at(partition_state, frozenset([account]))
        found = await self._reader.recount_distinct(request) if request.meters else {}
        key = hash_key(self._secret)
        return [
            RestatementDistinct(start_ms, meter, sorted(distinct_member(key, text) for text in texts))
            for (_, meter, start_ms), texts in sorted(found.items())
            if start_ms >= pending.from_ms
        ]


def _starts(state: AccountState, checkpoint: Checkpoint) -> Iterator[int]:
    """Where those periods begin, as the account is cut now, that a restatement replaces and that may hold usage."""
    assert state.pending is not None, "the caller looked"  # noqa: S101 - an invariant, not input
    future_ms = checkpoint.meter_set.policy.future_ms if checkpoint.meter_set else 0
    end_ms = max(checkpoint.stream_time_ms + future_ms + 1, open_period(state, checkpoint.stream_time_ms).end_ms)
    start_ms = state.pending.from_ms
    while start_ms < end_ms:
        yield start_ms
        start_ms = period_at(state, start_ms).end_ms


def _bound(history: History, account: str, pending: PendingCut, bindings: Sequence[Binding]) -> History:
    """The history as it is once the account is cut by its late binding."""
    known = history.accounts.get(account, AccountHistory())
    kept = [each for each in bindings if each.effective_from_ms < pending.binding.effective_from_ms]
    cut = dataclasses.replace(known, bindings=(*kept, pending.binding))
    return dataclasses.replace(history, accounts={**history.accounts, account: cut})


def _name(row: HourlyRow) -> _CellName:
    return row.meter, row.period_start_ms, row.hour_ms, row.dimensions, row.arrival_bucket_ms


def _value(row: HourlyRow) -> tuple[int, int, int]:
    return row.value_minor, row.latest_time_us, row.latest_position


def _changed(old: Mapping[_CellName, HourlyRow], new: Mapping[_CellName, HourlyRow]) -> list[RestatementCell]:
    """Cells that have another value than before, and those that have none any more."""
    gone = [row for key, row in old.items() if key not in new]
    emptied = [row._replace(period_end_ms=row.period_start_ms, value_minor=0) for row in gone]
    other = [row for key, row in new.items() if key not in old or _value(old[key]) != _value(row)]
    return [
        RestatementCell(
            row.arrival_bucket_ms, row.hour_ms, row.period_start_ms, row.period_end_ms, row.meter, row.dimensions,
            row.aggregation, row.scale, row.value_minor, row.latest_time_us, row.latest_position,
        )
        for row in sorted((*emptied, *other), key=_name)
    ]  # fmt: skip


def _replaced(rows: Iterable[HourlyRow]) -> list[tuple[int, list[str]]]:
    meters: dict[int, set[str]] = {}
    for row in rows:
        meters.setdefault(row.period_start_ms, set()).add(row.meter)
    return [(start_ms, sorted(named)) for start_ms, named in sorted(meters.items())]


def _totals(
    rows: Iterable[HourlyRow], reported: Mapping[tuple[str, str, Period], int], meter_set: MeterSet | None
) -> list[RestatementTotal]:
    """The totals that the cells add up to."""
    told = {(meter, period.start_ms): value for (_, meter, period), value in reported.items()}
    grouped: dict[tuple[str, int], list[HourlyRow]] = {}
    for row in rows:
        grouped.setdefault((row.meter, row.period_start_ms), []).append(row)
    return [
        RestatementTotal(
            start_ms, max(row.period_end_ms for row in cells), slug, cells[0].scale, *_merged(cells),
            _event_name(meter_set, slug), told.get((slug, start_ms), 0),
        )
        for (slug, start_ms), cells in sorted(grouped.items())
    ]  # fmt: skip


def _merged(cells: Sequence[HourlyRow]) -> tuple[int, int, int]:
    """The value of some cells of one meter together, with the event time and position that `latest` keeps."""
    value = cells[0].aggregation.rule.merged(Value(*_value(row)) for row in cells)
    return value.minor, value.time_us, value.position


def _event_name(meter_set: MeterSet | None, slug: str) -> str:
    meter = meter_set.meter(slug) if meter_set else None
    return (meter.stripe_event_name if meter else None) or ""
