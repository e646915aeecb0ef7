"""The resolver: dedup decisions on deferred events, from what the archive holds (S10).

A deferred event is new if its own arrival is the first of its identity in `usage_events`, and a duplicate if any other
is. Once the archive has passed the event's position that can never change, so that every resolver, at any time, says
the same; the fold takes the first decision and ignores the others. A crash after the append repeats a decision.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

from aggregators.bindings import is_waiting
from pipeline.logs.control_records import append_control
from schemas.analytics import ArchiveStore
from schemas.control import DECISIONS_MAX, DedupDecision, DedupDecisionRecord
from schemas.live_view import AccountDirectory, DeferredEvents
from schemas.log import Log, position
from schemas.rollup import Checkpoint, Deferred

# Dedup decisions that are given and not folded yet; beyond it the resolver waits for the fold.
TOLD_MAX: Final = 10 * DECISIONS_MAX
# Events that the archive has passed and does not hold. Beyond it the resolver waits for the archive to be built again.
LOST_MAX: Final = 100_000
# How often events of accounts that wait for a restatement are passed over in one call.
HELD_READS_MAX: Final = 20


# The positions on which a record at that offset has decisions.
_Told = dict[int, frozenset[int]]


class _Lost(NamedTuple):
    """What the archive was found not to hold, as it was built then: built again, it may."""

    rebuilt: int | None = None
    positions: frozenset[int] = frozenset()


class Resolved(NamedTuple):
    """The decisions of one call."""

    new: int = 0
    duplicates: int = 0


class Resolver:
    """Appends decisions for the deferred events of partitions; knows no Faust. Two of one partition do no harm."""

    def __init__(
        self, log: Log, deferred: DeferredEvents, accounts: AccountDirectory, archive: ArchiveStore, secret: bytes
    ) -> None:
        self._log = log
        self._deferred = deferred
        self._accounts = accounts
        self._archive = archive
        self._secret = secret
        self._told: dict[int, _Told] = {}
        self._lost: dict[int, _Lost] = {}

    async def resolve(self, partition: int) -> Resolved:
        """Judge the deferred events of one partition that the archive has passed, oldest first, as far as `TOLD_MAX`.

        Raises `Transient` where a store or the log does not answer; the same decisions are given by the next call.
        """
        told = self._told.setdefault(partition, {})
        new = given = 0
        while True:
            decisions = await self._judge(partition, told)
            new += sum(each.new for each in decisions)
            given += len(decisions)
            if len(decisions) < DECISIONS_MAX:
                return Resolved(new, given - new)

    async def _judge(self, partition: int, told: _Told) -> tuple[DedupDecision, ...]:
        """Append one record of decisions; none where nothing can be judged now."""
        known = frozenset().union(*told.values())
        if len(known) > TOLD_MAX - DECISIONS_MAX:
            checkpoint, _ = await self._deferred.waiting(partition)
            if checkpoint is not None:
                _forget_folded(told, checkpoint)
            return ()
        lost = self._lost.get(partition, _Lost())
        if lost.positions and await self._archive.events_rebuilt() != lost.rebuilt:
            del self._lost[partition]
            lost = _Lost()
        checkpoint, waiting = await self._unheld(partition, known | lost.positions)
        if checkpoint is None:
            return ()
        _forget_folded(told, checkpoint)
        rebuilt = await self._archive.events_rebuilt() if waiting else None
        reached = await self._archive.load_position(partition) if waiting else None
        # An archive of another log knows nothing of these events: they wait, and `tidemark reconcile` says why.
        if reached is None or reached.log_id != checkpoint.log_id:
            return ()
        passed = [each for each in waiting if each.position < position(reached.next_offset)]
        if not passed:
            return ()
        first = await self._archive.first_positions([(each.account, each.id) for each in passed])
        # A table that was just exchanged may lack, for a moment, events that the archive has passed.
        if rebuilt is None or await self._archive.events_rebuilt() != rebuilt:
            return ()
        held = [each for each in passed if (each.account, each.id) in first]
        # What the archive has passed and does not hold was lost there: it gets no decision, and stands in nobody's way.
        missing = [each.position for each in passed if (each.account, each.id) not in first]
        if missing and len(lost.positions) < LOST_MAX:
            self._lost[partition] = _Lost(rebuilt, lost.positions.union(missing))
        if not held:
            return ()
        decisions = tuple(_decision(each, first[each.account, each.id]) for each in held)
        offset = await append_control(self._log, self._secret, partition, DedupDecisionRecord(decisions=decisions))
        told[offset] = frozenset(each.position for each in held)
        return decisions

    async def _unheld(self, partition: int, but: Collection[int]) -> tuple[Checkpoint | None, list[Deferred]]:
        """The oldest deferred events, without those of accounts that wait for a restatement: a decision would change
        nothing. Those stand in nobody's way, as far as `HELD_READS_MAX` reads go."""
        seen, found = set(but), list[Deferred]()
        checkpoint: Checkpoint | None = None
        for _ in range(HELD_READS_MAX):
            checkpoint, waiting = await self._deferred.deferred(partition, DECISIONS_MAX, seen)
            if checkpoint is None or not waiting:
                break
            restating = await self._accounts.restating_among(partition, sorted({each.account for each in waiting}))
            held = {account for account, state in restating.items() if is_waiting(state, checkpoint.stream_time_ms)}
            found += [each for each in waiting if each.account not in held]
            seen.update(each.position for each in waiting)
            if not held or len(waiting) < DECISIONS_MAX:
                break
        return checkpoint, found[:DECISIONS_MAX]


def _forget_folded(told: _Told, checkpoint: Checkpoint) -> None:
    for offset in [offset for offset in told if offset < checkpoint.next_offset]:
        del told[offset]


def _decision(deferred: Deferred, first_position: int) -> DedupDecision:
    return DedupDecision(
        position=deferred.position,
        account=deferred.account,
        time_us=deferred.time_us,
        new=first_position == deferred.position,
        quarantine=deferred.quarantine,
    )
