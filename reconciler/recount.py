"""What the reader is asked to count again, and the second look at accounts whose periods were cut anew.

A request names one way of cutting each account. Where a binding moved a boundary, events before and after its record
have periods of different ends; such accounts are counted once with their latest cutting, and only where that does
not agree, once more span by span.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

from reconciler.boundaries import period_containing, periods_over
from reconciler.history import POSITION_MAX, AccountHistory, Epoch, History
from schemas.analytics import RecountKey, RecountRequest, UsageReader
from schemas.log import position
from schemas.periods import Period
from schemas.rollup import Fence

TotalName = tuple[str, str, Period]
K = TypeVar("K", TotalName, RecountKey)


class Snapshot(NamedTuple):
    """One position of one partition: everything below `fence.next_offset` is archived, and this is its history."""

    partition: int
    fence: Fence
    history: History

    @property
    def before_position(self) -> int:
        """Events at this position and after it are not counted."""
        return position(self.fence.next_offset)


def request_at(snapshot: Snapshot, accounts: frozenset[str] | None = None) -> RecountRequest:
    """The recount of a snapshot, with every account cut as it is cut now; `accounts` None means all."""
    history = snapshot.history
    wanted = {name: account for name, account in history.accounts.items() if accounts is None or name in accounts}
    return RecountRequest(
        partition=snapshot.partition,
        before_position=snapshot.before_position,
        meters=history.meters,
        graces=history.graces,
        boundaries={
            name: _boundaries(history, account, account.epochs[-1])
            for name, account in wanted.items()
            if account.bindings
        },
        closings={name: tuple(account.closings) for name, account in wanted.items() if account.closings},
        accounts=None if accounts is None else sorted(accounts),
    )


def _boundaries(history: History, account: AccountHistory, epoch: Epoch) -> tuple[Period, ...]:
    """Periods over all event and log times, closings, and as many after them as late usage may be carried over."""
    from_ms = min([history.from_ms, *(period.start_ms for period, _ in account.closings)])
    return periods_over(epoch.cut, from_ms, history.to_ms, len(account.closings) + 1)


class Recounter:
    """Counts again through a `UsageReader`. Errors are the reader's; holds nothing between calls."""

    def __init__(self, reader: UsageReader) -> None:
        self._reader = reader

    async def totals(
        self, snapshot: Snapshot, accounts: frozenset[str] | None = None, before_ms: int | None = None
    ) -> dict[TotalName, int]:
        """Totals at the snapshot, of what arrived before log time `before_ms` if given, by the latest cutting."""
        return dict(await self._reader.recount_totals(request_at(snapshot, accounts), before_ms))

    async def totals_again(
        self,
        snapshot: Snapshot,
        counted: Mapping[TotalName, int],
        found: Mapping[TotalName, int],
        before_ms: int | None = None,
    ) -> dict[TotalName, int]:
        """`counted`, with accounts that were cut anew and differ from `found` counted span by span."""
        counted = dict(counted)
        for account in _to_be_looked_at_again(snapshot, counted, found):
            exact: dict[TotalName, int] = {}
            for part, lasting in _parts(snapshot, account):
                values = await self._reader.recount_totals(part, before_ms)
                exact.update((key, value) for key, value in values.items() if key[2] in lasting)
            counted = {key: value for key, value in counted.items() if key[0] != account} | exact
        return counted

    async def cells(self, snapshot: Snapshot, found: Mapping[RecountKey, int]) -> dict[RecountKey, int]:
        """Cells at the snapshot; accounts that were cut anew and differ from `found` are counted span by span."""
        counted = dict(await self._reader.recount_cells(request_at(snapshot)))
        for account in _to_be_looked_at_again(snapshot, counted, found):
            exact: dict[RecountKey, int] = {}
            for part, lasting in _parts(snapshot, account):
                values = await self._reader.recount_cells(part)
                exact.update((key, value) for key, value in values.items() if Period(*key[2:4]) in lasting)
            counted = {key: value for key, value in counted.items() if key[0] != account} | exact
        return counted

    async def reported(
        self, snapshot: Snapshot, before_ms: int, found: Mapping[TotalName, int]
    ) -> dict[TotalName, int]:
        """What intents must add up to: the totals at `before_ms`, of meters with a Stripe event name.

        A meter that was given its event name later is told to Stripe from there on: what stood before is taken off.
        """
        now = await self.totals(snapshot, before_ms=before_ms)
        now = await self.totals_again(snapshot, now, found, before_ms)
        reported = snapshot.history.reported
        wanted = {key: value for key, value in now.items() if key[1] in reported}
        for slug, spans in reported.items():
            edges = [(span.from_position, -1) for span in spans]
            edges += [(span.before_position, 1) for span in spans if span.before_position != POSITION_MAX]
            if edges[0][0] == _first_position(snapshot, slug):
                edges = edges[1:]
            if not edges:
                continue
            ends_now = spans[-1].before_position == POSITION_MAX
            values = {key: value if ends_now else 0 for key, value in wanted.items() if key[1] == slug}
            for at, sign in edges:
                for key, value in (await self._totals_below(snapshot, slug, at, before_ms)).items():
                    values[key] = values.get(key, 0) + sign * value
            wanted.update(values)
        return wanted

    async def _totals_below(self, snapshot: Snapshot, slug: str, below: int, before_ms: int) -> Mapping[TotalName, int]:
        meters = [span for span in snapshot.history.meters if span.meter.slug == slug]
        request = request_at(snapshot)._replace(meters=meters, before_position=min(below, snapshot.before_position))
        return await self._reader.recount_totals(request, before_ms)


def _first_position(snapshot: Snapshot, slug: str) -> int:
    return min(span.from_position for span in snapshot.history.meters if span.meter.slug == slug)


def _to_be_looked_at_again(snapshot: Snapshot, counted: Mapping[K, int], found: Mapping[K, int]) -> list[str]:
    cut_again = snapshot.history.cut_again
    keys = counted.keys() | found.keys() if cut_again else ()
    return sorted({key[0] for key in keys if key[0] in cut_again and counted.get(key) != found.get(key)})


def _parts(snapshot: Snapshot, account: str) -> list[tuple[RecountRequest, frozenset[Period]]]:
    """Requests that together count an account under every cutting it had, each with the periods it answers for.

    The events of all epochs that know a period are counted together, because distinct values and the latest one
    cannot be added up afterwards.
    """
    history = snapshot.history
    known = history.accounts[account]
    periods = [_boundaries(history, known, epoch) for epoch in known.epochs]
    lasting: dict[tuple[int, ...], set[Period]] = {}
    for period in {period for each in periods for period in each}:
        numbers = tuple(number for number, epoch in enumerate(known.epochs) if _knows(epoch, period))
        lasting.setdefault(numbers, set()).add(period)
    starts = [epoch.from_position for epoch in known.epochs] + [POSITION_MAX]
    whole = request_at(snapshot, frozenset({account}))
    parts = []
    for numbers, owned in sorted(lasting.items()):
        spans = [
            span._replace(
                from_position=max(span.from_position, starts[number]),
                before_position=min(span.before_position, starts[number + 1]),
            )
            for span in whole.meters
            for number in numbers
        ]
        meters = [span for span in spans if span.from_position < span.before_position]
        if meters:
            boundaries = {account: periods[numbers[-1]]}
            parts.append((whole._replace(meters=meters, boundaries=boundaries), frozenset(owned)))
    return parts


def _knows(epoch: Epoch, period: Period) -> bool:
    return period_containing(epoch.cut, period.start_ms) == period
