"""Requests the recount from the reader.

A request cuts each account in one way, the one in force now: a binding never moves a boundary at or before the start of
a period that already holds usage.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from reconciler.boundaries import periods_over
from reconciler.history import AccountHistory, History
from schemas.analytics import RecountKey, RecountRequest, UsageReader
from schemas.log import POSITION_MAX, position
from schemas.periods import Period
from schemas.rollup import Checkpoint

TotalName = tuple[str, str, Period]


class PartitionState(NamedTuple):
    """One position of one partition: everything below `checkpoint.next_offset` is archived, and this is its history."""

    partition: int
    checkpoint: Checkpoint
    history: History

    @property
    def before_position(self) -> int:
        """Events at this position and after it are not counted."""
        return position(self.checkpoint.next_offset)


def request_at(state: PartitionState, accounts: frozenset[str] | None = None) -> RecountRequest:
    """The recount of a state, with every account cut as it is cut now; `accounts` None means all."""
    history = state.history
    wanted = {name: account for name, account in history.accounts.items() if accounts is None or name in accounts}
    return RecountRequest(
        partition=state.partition,
        before_position=state.before_position,
        meters=history.meters,
        graces=history.graces,
        boundaries={name: _boundaries(history, account) for name, account in wanted.items() if account.bindings},
        closings={name: tuple(account.closings) for name, account in wanted.items() if account.closings},
        accounts=None if accounts is None else sorted(accounts),
    )


def _boundaries(history: History, account: AccountHistory) -> tuple[Period, ...]:
    """Periods from before the first cut (earlier ones are calendar months) over all stream times and closings, and as
    many after them as late usage may be carried over."""
    cut_ms = [each.from_ms - 1 for each in account.cut[1:2]]
    from_ms = min([history.from_ms, *cut_ms, *(start_ms for start_ms, _ in account.closings)])
    return periods_over(account.cut, from_ms, history.to_ms, len(account.closings) + 1)


class Recounter:
    """Recounts through a `UsageReader`; errors are the reader's. Keeps the last totals of each partition, and uses them
    again if neither the archived events nor the control records changed."""

    def __init__(self, reader: UsageReader) -> None:
        self._reader = reader
        self._last: dict[int, tuple[PartitionState, dict[TotalName, int]]] = {}

    async def totals(self, state: PartitionState) -> dict[TotalName, int]:
        """Totals at the state."""
        totals = await self._unchanged(state)
        if totals is None:
            totals = dict(await self._reader.recount_totals(request_at(state)))
            self._last[state.partition] = (state, totals)
        return dict(totals)

    async def totals_of(self, state: PartitionState, accounts: frozenset[str]) -> dict[TotalName, int]:
        """Totals of some accounts at the state."""
        totals = await self._unchanged(state)
        if totals is None:
            return dict(await self._reader.recount_totals(request_at(state, accounts)))
        return {key: value for key, value in totals.items() if key[0] in accounts}

    async def _unchanged(self, state: PartitionState) -> dict[TotalName, int] | None:
        """The last totals of the partition, or None if they may differ at the state."""
        last, totals = self._last.get(state.partition, (None, {}))
        if last is None or not _same_rules(last.history, state.history):
            return None
        if last.before_position != state.before_position:
            # Not by the rollup's counters, because they are being checked.
            counts = [await self._reader.archived_events(at.partition, at.before_position) for at in (last, state)]
            if counts[0] != counts[1]:
                return None
        return totals

    async def cells(self, state: PartitionState) -> dict[RecountKey, int]:
        """Cells at the state."""
        return dict(await self._reader.recount_cells(request_at(state)))

    async def reported(
        self, state: PartitionState, before_ms: int | None = None, accounts: frozenset[str] | None = None
    ) -> dict[TotalName, int]:
        """The expected sums of intents: the totals of meters with a Stripe event name, of events that arrived before
        stream time `before_ms` if given, and of `accounts` if given.

        A meter that got its event name later is reported to Stripe from then on: its totals before are subtracted.
        """
        if before_ms is None and accounts is None:
            now: Mapping[TotalName, int] = await self.totals(state)
        else:
            now = await self._reader.recount_totals(request_at(state, accounts), before_ms)
        reported = state.history.reported
        wanted = {key: value for key, value in now.items() if key[1] in reported}
        for slug, spans in reported.items():
            edges = [(span.from_position, -1) for span in spans]
            edges += [(span.before_position, 1) for span in spans if span.before_position != POSITION_MAX]
            if edges[0][0] == _first_position(state, slug):
                edges = edges[1:]
            if not edges:
                continue
            ends_now = spans[-1].before_position == POSITION_MAX
            values = {key: value if ends_now else 0 for key, value in wanted.items() if key[1] == slug}
            for at, sign in edges:
                for key, value in (await self._totals_below(state, slug, at, before_ms, accounts)).items():
                    values[key] = values.get(key, 0) + sign * value
            wanted.update(values)
        return wanted

    async def _totals_below(
        self, state: PartitionState, slug: str, below: int, before_ms: int | None, accounts: frozenset[str] | None
    ) -> Mapping[TotalName, int]:
        meters = [span for span in state.history.meters if span.meter.slug == slug]
        before_position = min(below, state.before_position)
        request = request_at(state, accounts)._replace(meters=meters, before_position=before_position)
        return await self._reader.recount_totals(request, before_ms)


def _same_rules(one: History, other: History) -> bool:
    """Whether both count events alike."""
    return (one.meters, one.graces, one.accounts) == (other.meters, other.graces, other.accounts)


def _first_position(state: PartitionState, slug: str) -> int:
    return min(span.from_position for span in state.history.meters if span.meter.slug == slug)
