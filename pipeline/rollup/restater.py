"""Restates the usage of accounts with a late binding, from the archive, in the binding's periods (S11).

1. When the archive is near the log's end, append a record that begins the restatement. From there on, events of the
   account wait.
2. When the archive has passed that record, recount the earlier usage by SQL, in the old periods and in the new ones,
   and append a record with the difference. The fold applies the difference and counts on.

A crash after an append repeats the record, which then changes nothing. A restatement that does not end in time is begun
again, so an archive that fails in between does not delay an account for long.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from aggregators.bindings import cut_in_the_past, is_waiting
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
from schemas.errors import HeldUp, InvalidInput, OperatorNeeded, TidemarkError, Transient
from schemas.live_view import AccountDirectory, DeferredEvents, LiveTotals
from schemas.log import Log, offset_of, position
from schemas.meters import MeterSet
from schemas.periods import AccountState, PendingCut, Period
from schemas.rebuild import RowRecounts
from schemas.restatement import RestatementCell, RestatementContent, RestatementDistinct, RestatementTotal, packed
from schemas.rollup import Checkpoint, TotalKey

# A record of the log takes at least half a megabyte.
CONTENT_CHARACTERS_MAX: Final = 400_000
# How far the archive may be behind, in stream time, when a restatement begins: events wait until it has caught up.
NEAR_MS_MAX: Final = MINUTE_MS
# How many accounts of a partition one call looks at, and how many restatements of a partition may run at a time.
LOOKED_AT_MAX: Final = 200
BEGUN_MAX: Final = 20
# A call ends after so many failed recounts: the cause is probably the store and not the accounts.
FAILED_MAX: Final = 3
# A restatement that began so often (about eight hours of waiting) is declined at the next failure.
BEGINNINGS_MAX: Final = 8
# How long after an overdue restatement, in stream time, its deferred events may be decided before the next one begins.
JUDGED_MS_MAX: Final = 10 * MINUTE_MS
TOO_OFTEN: Final = "the usage could not be counted again, {} times over ({}): bind the account once more when it can"

_CellName = tuple[str, int, int, str, int]


class _Declined(TidemarkError):
    """The usage cannot be restated; the message says why."""


class Restater:
    """Appends the records of restatements; knows no Faust. Two restaters of one partition do no harm."""

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
        # By partition and account: the position that the last appended record answers, and the record's offset.
        self._appended: dict[tuple[int, str], tuple[int, int]] = {}
        self._failed: set[tuple[int, str]] = set()

    async def restatement(self, partition: int) -> int:
        """Begin and end the restatements of one partition that the archive has passed. Returns the number of records.

        Raises `Transient` if a store or the log does not answer; fewer than `FAILED_MAX` failing accounts do not stop
        the others. The next call makes the same records.
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
        appended = 0
        rows: Sequence[ControlRow] | None = None
        failures: list[Transient] = []
        for account, state in sorted(waiting.items(), key=lambda item: (partition, item[0]) in self._failed):
            pending = state.pending
            if pending is None or pending.position >= position(reached.next_offset):
                continue
            if self._appended.get((partition, account), (-1, 0))[0] == pending.position:
                continue
            if is_waiting(state, checkpoint.stream_time_ms):
                if rows is None:
                    rows = await self._archive.load_controls(partition, position(reached.next_offset), waiting)
                ours = [row for row in rows if row.account in ("", account) and row.position < pending.position]
                now = PartitionState(partition, checkpoint, history_of(ours, checkpoint.stream_time_ms))
                try:
                    record = await self._ended(now, account, state, pending)
                except Transient as error:
                    self._failed.add((partition, account))
                    failures.append(error)
                    if len(failures) == FAILED_MAX:
                        break
                    continue
                self._failed.discard((partition, account))
                # A table that was just exchanged may lack events below the archive's position for a moment.
                if await self._archive.events_rebuilt() != rebuilt:
                    return appended
            elif near and begun < BEGUN_MAX and await self._is_judged(partition, account, pending, checkpoint):
                begun += 1
                record = RestatementRecord(account=account, position=pending.position, begins=True)
            else:
                continue
            offset = await append_control(self._log, self._secret, partition, record)
            self._appended[partition, account] = (pending.position, offset)
            appended += 1
        if failures:
            raise failures[0]
        return appended

    async def _is_judged(self, partition: int, account: str, pending: PendingCut, checkpoint: Checkpoint) -> bool:
        """Whether the account's deferred events are decided, or had `JUDGED_MS_MAX` of stream time for that.

        An overdue restatement that began again at once would defer them without end.
        """
        if pending.until_ms is None or checkpoint.stream_time_ms >= pending.until_ms + JUDGED_MS_MAX:
            return True
        _, left = await self._deferred.waiting(partition, account)
        return not left.events

    async def _ended(
        self, now: PartitionState, account: str, state: AccountState, pending: PendingCut
    ) -> RestatementRecord:
        """The record that ends a restatement: its content, or why it is declined."""
        content = declined = ""
        try:
            content = await self._content(now, account, state, pending)
        except (Transient, HeldUp) as error:
            # A permanent rejection by the store is no fault of the binding either.
            if pending.begun < BEGINNINGS_MAX:
                raise Transient(str(error)) from error
            declined = TOO_OFTEN.format(pending.begun, str(error)[:300])
        except (_Declined, OperatorNeeded, InvalidInput) as error:
            # One account's fault must not stop the others, nor the worker.
            declined = str(error)[:500]
        return RestatementRecord(account=account, position=pending.position, content=content, declined=declined)

    def _forget(self, partition: int, checkpoint: Checkpoint | None, waiting: Iterable[str]) -> None:
        """Forget appended records that are folded: an account that still waits needs another record."""
        accounts = set(waiting)
        for key, (_, offset) in list(self._appended.items()):
            if key[0] == partition and (
                checkpoint is None or key[1] not in accounts or offset < checkpoint.next_offset
            ):
                del self._appended[key]
        self._failed = {key for key in self._failed if key[0] != partition or key[1] in accounts}

    async def _content(self, now: PartitionState, account: str, state: AccountState, pending: PendingCut) -> str:
        """The packed content of the restatement. Raises `_Declined` with the reason if there is none."""
        before = msgspec.structs.replace(now.checkpoint, next_offset=offset_of(pending.position))
        periods = list(_periods(state, pending, now.checkpoint))
        old, old_levels = await self._cells(now._replace(checkpoint=before), account, pending, periods)
        if not await self._is_counted(now, account, state, pending, old.values(), old_levels):
            raise _Declined(
                "the archive holds other usage of the account than was counted: put right what `tidemark reconcile` "
                "names and bind the account once more"
            )
        history = _bound(now.history, account, state)
        partition_state = PartitionState(now.partition, before, history)
        periods = list(_periods(cut_in_the_past(state), pending, now.checkpoint))
        new, levels = await self._cells(partition_state, account, pending, periods)
        reported = await Recounter(self._reader).reported(partition_state, accounts=frozenset([account]))
        totals = _totals([*new.values(), *levels], reported, before.meter_set)
        if unnamed := [total.meter for total in totals if total.reported_minor and not total.event_name]:
            raise _Declined(
                f"meter {unnamed[0]} lost its Stripe event name after usage that is to be counted again was counted"
            )
        distinct = await self._distinct(partition_state, account, pending)
        content = packed(
            RestatementContent(_replaced([*old.values(), *old_levels]), _changed(old, new), totals, distinct)
        )
        if len(content) > CONTENT_CHARACTERS_MAX:
            raise _Declined(
                "the usage to be counted again fills more than one record of the log: close the account's past "
                "periods, or choose a later instant"
            )
        return content

    async def _cells(
        self, partition_state: PartitionState, account: str, pending: PendingCut, periods: Sequence[Period]
    ) -> tuple[dict[_CellName, HourlyRow], list[HourlyRow]]:
        """The account's recounted cells in the periods that the late binding affects, and the levels there that cells
        of earlier periods have set."""
        request = request_at(partition_state, frozenset([account]))
        rows = await self._reader.recount_rows(request, 0) if request.meters else ()
        cells = {_name(row): row for row in rows if row.period_start_ms >= pending.from_ms}
        return cells, list(_levels(rows, periods, request.levels_ms))

    async def _is_counted(
        self,
        now: PartitionState,
        account: str,
        state: AccountState,
        pending: PendingCut,
        old: Iterable[HourlyRow],
        levels: Iterable[HourlyRow],
    ) -> bool:
        """Whether the recount in the old periods equals the live totals. Exact, because the account's events wait. Its
        levels wait too, so that a level of before may stand in the last periods or not."""
        counted = {(total.period_start_ms, total.meter): total.value_minor for total in _totals(old, {}, None)}
        standing = {
            (total.period_start_ms, total.meter): total.value_minor for total in _totals([*old, *levels], {}, None)
        }
        # Also periods without archived usage: the archive may have lost all events of a period.
        starts = {start_ms for start_ms, _ in standing}
        starts |= {period.start_ms for period in _periods(state, pending, now.checkpoint)}
        keys = [TotalKey(account, start_ms) for start_ms in sorted(starts)]
        checkpoint, totals = await self._totals.account_totals(now.partition, keys)
        if checkpoint is None or not is_waiting(state, checkpoint.stream_time_ms):
            raise Transient(f"{account}: its restatement took too long and begins again")
        if checkpoint.next_offset <= offset_of(pending.position):
            raise Transient(f"{account}: the live view went back behind the record that began its restatement")
        live = {
            (key.period_start_ms, meter): parse_value(text).minor
            for key, fields in totals.items()
            for meter, text in fields.items()
        }
        return (
            all(live.get(key) in (counted.get(key), standing.get(key)) for key in live.keys() | counted.keys())
            and live.keys() <= standing.keys()
        )

    async def _distinct(
        self, partition_state: PartitionState, account: str, pending: PendingCut
    ) -> list[RestatementDistinct]:
        request = request_at(partition_state, frozenset([account]))
        values = await self._reader.recount_distinct(request) if request.meters else {}
        key = hash_key(self._secret)
        return [
            RestatementDistinct(start_ms, meter, sorted(distinct_member(key, text) for text in texts))
            for (_, meter, start_ms), texts in sorted(values.items())
            if start_ms >= pending.from_ms
        ]


def _periods(state: AccountState, pending: PendingCut, checkpoint: Checkpoint) -> Iterator[Period]:
    """The periods of a state that the restatement replaces or makes, and that may contain usage."""
    future_ms = checkpoint.meter_set.policy.future_ms if checkpoint.meter_set else 0
    end_ms = max(checkpoint.stream_time_ms + future_ms + 1, open_period(state, checkpoint.stream_time_ms).end_ms)
    start_ms = pending.from_ms
    while start_ms < end_ms:
        yield (period := period_at(state, start_ms))
        start_ms = period.end_ms


def _set_at(row: HourlyRow) -> tuple[int, int]:
    return row.latest_time_us, row.latest_position


def _levels(rows: Sequence[HourlyRow], periods: Sequence[Period], levels_ms: Mapping[str, int]) -> Iterator[HourlyRow]:
    """The levels that stand in these periods since earlier ones, each as the cell that has set the level."""
    for slug, until_ms in levels_ms.items():
        own = sorted((row for row in rows if row.meter == slug), key=_set_at)
        for start_ms, end_ms in periods:
            earlier = [row for row in own if row.period_start_ms < start_ms <= until_ms]
            if earlier:
                yield earlier[-1]._replace(period_start_ms=start_ms, period_end_ms=end_ms)


def _bound(history: History, account: str, state: AccountState) -> History:
    """The history with the account's late binding in effect."""
    after = cut_in_the_past(state)
    known = history.accounts.get(account, AccountHistory())
    bound = dataclasses.replace(known, bindings=after.bindings, payer_cuts_ms=after.payer_cuts_ms)
    return dataclasses.replace(history, accounts={**history.accounts, account: bound})


def _name(row: HourlyRow) -> _CellName:
    return row.meter, row.period_start_ms, row.hour_ms, row.dimensions, row.arrival_bucket_ms


def _value(row: HourlyRow) -> tuple[int, int, int]:
    return row.value_minor, row.latest_time_us, row.latest_position


def _changed(old: Mapping[_CellName, HourlyRow], new: Mapping[_CellName, HourlyRow]) -> list[RestatementCell]:
    """New cells, cells with another value, and cells without usage, which become 0."""
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
    return [(start_ms, sorted(slugs)) for start_ms, slugs in sorted(meters.items())]


def _totals(
    rows: Iterable[HourlyRow], reported: Mapping[tuple[str, str, Period], int], meter_set: MeterSet | None
) -> list[RestatementTotal]:
    """The totals of the cells, with the part that is reported already."""
    reported_minor = {(meter, period.start_ms): value for (_, meter, period), value in reported.items()}
    grouped: dict[tuple[str, int], list[HourlyRow]] = {}
    for row in rows:
        grouped.setdefault((row.meter, row.period_start_ms), []).append(row)
    return [
        RestatementTotal(
            start_ms, max(row.period_end_ms for row in cells), slug, cells[0].scale, *_merged(cells),
            _event_name(meter_set, slug), reported_minor.get((slug, start_ms), 0),
        )
        for (slug, start_ms), cells in sorted(grouped.items())
    ]  # fmt: skip


def _merged(cells: Sequence[HourlyRow]) -> tuple[int, int, int]:
    """The merged value of one meter's cells, with the event time (µs) and position that `latest` keeps."""
    value = cells[0].aggregation.rule.merged(Value(*_value(row)) for row in cells)
    return value.minor, value.time_us, value.position


def _event_name(meter_set: MeterSet | None, slug: str) -> str:
    meter = meter_set.meter(slug) if meter_set else None
    return (meter.stripe_event_name if meter else None) or ""
