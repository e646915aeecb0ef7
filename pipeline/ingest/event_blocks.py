"""The archive's rows of events: by Python, and by the C core, which takes plain events and leaves all others to it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from aggregators.bindings import is_waiting
from aggregators.decode import is_batch, normalised
from aggregators.deferred import far_late_us
from aggregators.judge import WITHOUT_METERS, rules_at
from aggregators.meters import compiled
from aggregators.native.interface import LeftOut, Moment, Told, ToTake
from aggregators.native.rows import RowCore
from aggregators.partitioning import partition_of
from aggregators.periods import period_at
from aggregators.placement import Placement, place
from aggregators.scan import LogState, scan
from aggregators.signing import hash_key
from aggregators.steps import Arrival
from schemas.analytics import EVENT_TIME_MAX_US, EventBlock, EventRow, check_times
from schemas.clock import MILLISECOND_US
from schemas.control import CONTROL_HEADER
from schemas.log import Record, index_of, position
from schemas.meters import MeterSet
from schemas.periods import AccountState

_UNBOUND: Final = AccountState()

Accounts = Mapping[str, AccountState]


def event_rows(placement: Placement, partition: int) -> list[EventRow]:
    """The rows of the accepted events of a placement."""
    return [_row(arrival, partition) for arrival in placement.arrivals]


def _row(arrival: Arrival, partition: int) -> EventRow:
    return EventRow(
        arrival.account, arrival.id, arrival.type, arrival.source, arrival.time_us,
        normalised(arrival.data), partition, arrival.position, arrival.stream_time_ms, arrival.deferred is not None,
    )  # fmt: skip


def is_control(record: Record) -> bool:
    """Whether a record is a control record, genuine or not."""
    return any(name == CONTROL_HEADER for name, _ in record.headers)


class EventBlocks:
    """Makes the blocks of one partition.

    Keeps a core with the accounts that were seen; the core bounds their number and forgets all when there are too many.
    """

    def __init__(self, library: ctypes.CDLL, secret: bytes, partition: int) -> None:
        self._library = library
        self._secret = secret
        self._partition = partition
        self._core: RowCore | None = None
        self._meter_set: MeterSet | None = None
        self._cut: list[EventBlock] = []

    @property
    def rows(self) -> int:
        """How many rows there are since the last call of `blocks`."""
        return sum(block.rows for block in self._cut) + (self._core.rows if self._core else 0)

    def take(self, state: LogState, accounts: Accounts, record: Record) -> LogState:
        """Make the rows of a record of events, and return the log state after it.

        Raises `InvalidInput` as `check_times`. After an error, drop this object.
        """
        state = state._replace(stream_time_ms=max(state.stream_time_ms, record.timestamp_ms))
        core, value = self._core_for(state), record.value or b""
        moment = self._moment(state)
        (read,) = core.read([value], moment.stream_time_us)
        if read.accounts:
            self._tell(core, state, accounts, read.accounts)
        to_take = ToTake(value, read.at, position(record.offset), moment)
        left_out = core.take([to_take]).get(0, []) if read.events > 0 else []
        core.clear_tape()
        if read.events < 0 or (left_out and not is_batch(value)):
            rows = self._rows_of(state, accounts, record)
        else:
            rows = self._judged(state, accounts, record, left_out) if left_out else []
        check_times(rows)
        for row in rows:
            core.put(row)
        return state

    def changed(self, accounts: Iterable[str]) -> None:
        """The states of these accounts have changed."""
        if self._core is not None:
            # Until the core asks again, Python takes all events of these accounts.
            self._core.tell(dict.fromkeys(accounts, Told(0, 0, ask_us=0)))

    def blocks(self) -> list[EventBlock]:
        """The rows since the last call of this method."""
        self._end_block()
        cut, self._cut = self._cut, []
        return cut

    def _end_block(self) -> None:
        if self._core is not None and self._core.rows:
            self._cut.append(self._core.block())

    def _core_for(self, state: LogState) -> RowCore:
        if self._core is None or self._meter_set is not state.meter_set:
            self._end_block()
            meter_set = state.meter_set or WITHOUT_METERS.meter_set
            self._core = RowCore(self._library, hash_key(self._secret), meter_set, self._partition, for_rows=True)
            self._meter_set = state.meter_set
        return self._core

    def _moment(self, state: LogState) -> Moment:
        meters = compiled(state.meter_set) if state.meter_set else WITHOUT_METERS
        policy, now_ms = meters.meter_set.policy, state.stream_time_ms
        rules = rules_at(now_ms, meters)
        return Moment(
            now_ms * MILLISECOND_US,
            max(rules.earliest_us, far_late_us(policy, now_ms)),
            min(rules.latest_us, EVENT_TIME_MAX_US),
            (now_ms - policy.grace_ms) * MILLISECOND_US,
        )

    def _tell(self, core: RowCore, state: LogState, accounts: Accounts, names: Iterable[str]) -> None:
        told = {name: self._told(state, accounts, name) for name in names}
        if not core.tell(told):
            # Too many accounts: all are forgotten, and those that send events are told again.
            core.forget_accounts()
            core.tell(told)

    def _told(self, state: LogState, accounts: Accounts, name: str) -> Told:
        if partition_of(name, state.partitions) != self._partition:
            return Told(0, 0)
        account, now_ms = accounts.get(name, _UNBOUND), state.stream_time_ms
        period = period_at(account, now_ms)
        until_us = period.end_ms * MILLISECOND_US
        if period.start_ms in account.closed_start_ms or is_waiting(account, now_ms):
            return Told(0, 0, until_us)
        return Told(period.start_ms * MILLISECOND_US, until_us, until_us)

    def _rows_of(self, state: LogState, accounts: Accounts, record: Record) -> list[EventRow]:
        """The rows of a record as Python makes them."""
        return event_rows(
            place(scan(self._partition, state, self._secret, [record], events_max=1), accounts), self._partition
        )

    def _judged(
        self, state: LogState, accounts: Accounts, record: Record, left_out: Sequence[LeftOut]
    ) -> list[EventRow]:
        """The rows of the events that the core left out, as if they alone were in the record."""
        alone = record._replace(value=b"[" + b",".join(each.raw for each in left_out) + b"]")
        return [
            row._replace(position=position(record.offset, left_out[index_of(row.position)].place))
            for row in self._rows_of(state, accounts, alone)
        ]
