"""What the reader is asked to count again.

A request names one way of cutting each account, the one in force now: a binding never moves a boundary at or before
the start of a period that holds usage already.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from reconciler.boundaries import periods_over
from reconciler.history import POSITION_MAX, AccountHistory, History
from schemas.analytics import RecountKey, RecountRequest, UsageReader
from schemas.log import position
from schemas.periods import Period
from schemas.rollup import Fence

TotalName = tuple[str, str, Period]


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
        boundaries={name: _boundaries(history, account) for name, account in wanted.items() if account.bindings},
        closings={name: tuple(account.closings) for name, account in wanted.items() if account.closings},
        accounts=None if accounts is None else sorted(accounts),
    )


def _boundaries(history: History, account: AccountHistory) -> tuple[Period, ...]:
    """Periods over all event and log times, closings, and as many after them as late usage may be carried over."""
    from_ms = min([history.from_ms, *(start_ms for start_ms, _ in account.closings)])
    return periods_over(account.cut, from_ms, history.to_ms, len(account.closings) + 1)


class Recounter:
    """Counts again through a `UsageReader`. Errors are the reader's; holds nothing between calls."""

    def __init__(self, reader: UsageReader) -> None:
        self._reader = reader

    async def totals(
        self, snapshot: Snapshot, accounts: frozenset[str] | None = None, before_ms: int | None = None
    ) -> dict[TotalName, int]:
        """Totals at the snapshot, of what arrived before log time `before_ms` if given."""
        return dict(await self._reader.recount_totals(request_at(snapshot, accounts), before_ms))

    async def cells(self, snapshot: Snapshot) -> dict[RecountKey, int]:
        """Cells at the snapshot."""
        return dict(await self._reader.recount_cells(request_at(snapshot)))

    async def reported(self, snapshot: Snapshot, before_ms: int) -> dict[TotalName, int]:
        """What intents must add up to: the totals at `before_ms`, of meters with a Stripe event name.

        A meter that was given its event name later is told to Stripe from there on: what stood before is taken off.
        """
        now = await self.totals(snapshot, before_ms=before_ms)
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
