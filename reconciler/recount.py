"""Requests the recount from the reader.

A request has one set of periods for an account, the present one: a binding never moves a boundary at or before the
start of a period with counted usage, except with a restatement.
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
    """A partition at a checkpoint: all records below `checkpoint.next_offset` are archived; `history` is from them."""

    partition: int
    checkpoint: Checkpoint
    history: History

    @property
    def before_position(self) -> int:
        """The first position whose event is not counted."""
        return position(self.checkpoint.next_offset)


def request_at(state: PartitionState, accounts: frozenset[str] | None = None) -> RecountRequest:
    """The request for the recount of a state, with the present periods of accounts; `accounts` None means all."""
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
        levels_ms=_levels_ms(history, state.checkpoint.stream_time_ms),
    )


def _levels_ms(history: History, stream_time_ms: int) -> dict[str, int]:
    """Until when levels stand: to the present, or until the meter was removed from the meter set."""
    levels_ms = {}
    for span in history.meters:
        if span.meter.carry_over:
            removed_ms = history.changed_ms.get(span.before_position)
            until_ms = stream_time_ms if removed_ms is None else removed_ms - 1
            # The last span of a meter counts.
            levels_ms[span.meter.slug] = min(stream_time_ms, until_ms)
    return levels_ms


def _boundaries(history: History, account: AccountHistory) -> tuple[Period, ...]:
    """The periods from before the first cut (earlier ones are calendar months) over all stream times and closings, and
    after them as many as late usage may be carried to."""
    cut_ms = [cutting.from_ms - 1 for cutting in account.cut[1:2]]
    from_ms = min([history.from_ms, *cut_ms, *(start_ms for start_ms, _ in account.closings)])
    return periods_over(account.cut, from_ms, history.to_ms, len(account.closings) + 1)


class Recounter:
    """Recounts through a `UsageReader`, with the reader's errors. Caches the last totals of every partition, and uses
    them until the archived events or the control records change."""

    def __init__(self, reader: UsageReader) -> None:
        self._reader = reader
        self._last: dict[int, tuple[PartitionState, dict[TotalName, int]]] = {}

    async def totals(self, state: PartitionState) -> dict[TotalName, int]:
        """The totals at the state."""
        totals = await self._unchanged(state)
        if totals is None:
            totals = dict(await self._reader.recount_totals(request_at(state)))
            self._last[state.partition] = (state, totals)
        return dict(totals)

    async def totals_of(self, state: PartitionState, accounts: frozenset[str]) -> dict[TotalName, int]:
        """The totals of these accounts at the state."""
        totals = await self._unchanged(state)
        if totals is None:
            return dict(await self._reader.recount_totals(request_at(state, accounts)))
        return {key: value for key, value in totals.items() if key[0] in accounts}

    async def _unchanged(self, state: PartitionState) -> dict[TotalName, int] | None:
        """The last totals of the partition, or None if they may differ at the state."""
        last, totals = self._last.get(state.partition, (None, {}))
        if last is None or not _same_rules(last.history, state.history):
            return None
        if _levels_ms(last.history, last.checkpoint.stream_time_ms) != _levels_ms(
            state.history, state.checkpoint.stream_time_ms
        ):
            return None
        if last.before_position != state.before_position:
            # The rollup's counters cannot be used: they are being checked.
            before = await self._reader.archived_events(last.partition, last.before_position)
            if before != await self._reader.archived_events(state.partition, state.before_position):
                return None
        return totals

    async def cells(self, state: PartitionState) -> dict[RecountKey, int]:
        """The cells at the state."""
        return dict(await self._reader.recount_cells(request_at(state)))

    async def reported(
        self, state: PartitionState, before_ms: int | None = None, accounts: frozenset[str] | None = None
    ) -> dict[TotalName, int]:
        """The expected sums of intents: the totals of meters with a Stripe event name. Only `accounts`, and only events
        that arrived before stream time `before_ms`, if given.

        If a meter got its event name later, its totals at that position are subtracted.
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
            if edges[0][0] == min(span.from_position for span in state.history.meters if span.meter.slug == slug):
                edges = edges[1:]
            if not edges:
                continue
            ends_now = spans[-1].before_position == POSITION_MAX
            values = {key: value if ends_now else 0 for key, value in wanted.items() if key[1] == slug}
            for edge, sign in edges:
                for key, value in (await self._totals_below(state, slug, edge, before_ms, accounts)).items():
                    values[key] = values.get(key, 0) + sign * value
            wanted.update(values)
        return wanted

    async def _totals_below(
        self, state: PartitionState, slug: str, below: int, before_ms: int | None, accounts: frozenset[str] | None
    ) -> Mapping[TotalName, int]:
        meters = [span for span in state.history.meters if span.meter.slug == slug]
        before_position = min(below, state.before_position)
        request = request_at(state, accounts)._replace(meters=meters, before_position=before_position)
        then_ms = state.history.changed_ms.get(below, state.checkpoint.stream_time_ms)
        levels_ms = {of: min(until_ms, then_ms) for of, until_ms in request.levels_ms.items()}
        request = request._replace(levels_ms=levels_ms)
        return await self._reader.recount_totals(request, before_ms)


def _same_rules(one: History, other: History) -> bool:
    """Whether both histories count events by the same rules."""
    return (one.meters, one.graces, one.accounts) == (other.meters, other.graces, other.accounts)
