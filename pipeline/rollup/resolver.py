"""The resolver: makes dedup decisions on deferred events from the archive (S10).

A deferred event is new if its own arrival is the first of its identity in `usage_events`, otherwise a duplicate. After
the archive has passed the event's position, the first arrival cannot change, so every resolver decides the same. The
fold takes the first decision and ignores repetitions, which a crash after an append causes.
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

# Beyond so many decisions that are not folded yet, the resolver waits for the fold.
TOLD_MAX: Final = 10 * DECISIONS_MAX
# Beyond so many events that the archive has lost, the resolver waits for a rebuild of the archive.
LOST_MAX: Final = 100_000
# How often one call reads on to find events of accounts that are not in a restatement.
HELD_READS_MAX: Final = 20

# The decided positions, by the offset of the decisions' record.
_Decided = dict[int, frozenset[int]]


class _Lost(NamedTuple):
    """Positions that the archive lacks, and the number of the rebuild that made this archive."""

    rebuilt: int | None = None
    positions: frozenset[int] = frozenset()


class Resolved(NamedTuple):
    """The number of decisions of one call: events that are new, and duplicates."""

    new: int = 0
    duplicates: int = 0


class Resolver:
    """Appends dedup decisions on deferred events; knows no Faust. Two resolvers of one partition do no harm."""

    def __init__(
        self, log: Log, deferred: DeferredEvents, accounts: AccountDirectory, archive: ArchiveStore, secret: bytes
    ) -> None:
        self._log = log
        self._deferred = deferred
        self._accounts = accounts
        self._archive = archive
        self._secret = secret
        self._decided: dict[int, _Decided] = {}
        self._lost: dict[int, _Lost] = {}

    async def resolve(self, partition: int) -> Resolved:
        """Decide one partition's deferred events that the archive has passed, oldest first, up to `TOLD_MAX`.

        Raises `Transient` if a store or the log does not answer; the next call makes the same decisions.
        """
        decided = self._decided.setdefault(partition, {})
        new = duplicates = 0
        while True:
            decisions = await self._decide(partition, decided)
            new += sum(decision.new for decision in decisions)
            duplicates += sum(not decision.new for decision in decisions)
            if len(decisions) < DECISIONS_MAX:
                return Resolved(new, duplicates)

    async def _decide(self, partition: int, decided: _Decided) -> tuple[DedupDecision, ...]:
        """Append one record of decisions and return them; empty if no event can be decided now."""
        known = frozenset().union(*decided.values())
        if len(known) > TOLD_MAX - DECISIONS_MAX:
            checkpoint, _ = await self._deferred.waiting(partition)
            if checkpoint is not None:
                _forget_folded(decided, checkpoint)
            return ()
        lost = self._lost.get(partition, _Lost())
        if lost.positions and await self._archive.events_rebuilt() != lost.rebuilt:
            del self._lost[partition]
            lost = _Lost()
        checkpoint, waiting = await self._unheld(partition, known | lost.positions)
        if checkpoint is None:
            return ()
        _forget_folded(decided, checkpoint)
        rebuilt = await self._archive.events_rebuilt() if waiting else None
        reached = await self._archive.load_position(partition) if waiting else None
        # An archive of another log lacks these events. They wait, and `tidemark reconcile` reports why.
        if reached is None or reached.log_id != checkpoint.log_id:
            return ()
        passed = [event for event in waiting if event.position < position(reached.next_offset)]
        if not passed:
            return ()
        first = await self._archive.first_positions([(event.account, event.id) for event in passed])
        # A table that was just exchanged may lack events below the archive's position for a moment.
        if rebuilt is None or await self._archive.events_rebuilt() != rebuilt:
            return ()
        archived = [event for event in passed if (event.account, event.id) in first]
        # The archive lost these events. They get no decision, and later calls skip them.
        missing = [event.position for event in passed if (event.account, event.id) not in first]
        if missing and len(lost.positions) < LOST_MAX:
            self._lost[partition] = _Lost(rebuilt, lost.positions.union(missing))
        if not archived:
            return ()
        decisions = tuple(_decision(event, first[event.account, event.id]) for event in archived)
        offset = await append_control(self._log, self._secret, partition, DedupDecisionRecord(decisions=decisions))
        decided[offset] = frozenset(event.position for event in archived)
        return decisions

    async def _unheld(self, partition: int, skipped: Collection[int]) -> tuple[Checkpoint | None, list[Deferred]]:
        """The checkpoint and the oldest deferred events, without `skipped` positions and accounts in a restatement.

        A decision on events of such accounts would change nothing. Reads `HELD_READS_MAX` times at most.
        """
        seen, events = set(skipped), list[Deferred]()
        checkpoint: Checkpoint | None = None
        for _ in range(HELD_READS_MAX):
            checkpoint, waiting = await self._deferred.deferred(partition, DECISIONS_MAX, seen)
            if checkpoint is None or not waiting:
                break
            restating = await self._accounts.restating_among(partition, sorted({event.account for event in waiting}))
            held = {account for account, state in restating.items() if is_waiting(state, checkpoint.stream_time_ms)}
            events += [event for event in waiting if event.account not in held]
            seen.update(event.position for event in waiting)
            if not held or len(waiting) < DECISIONS_MAX:
                break
        return checkpoint, events[:DECISIONS_MAX]


def _forget_folded(decided: _Decided, checkpoint: Checkpoint) -> None:
    for offset in [offset for offset in decided if offset < checkpoint.next_offset]:
        del decided[offset]


def _decision(deferred: Deferred, first_position: int) -> DedupDecision:
    return DedupDecision(
        position=deferred.position,
        account=deferred.account,
        time_us=deferred.time_us,
        new=first_position == deferred.position,
        metered=any(dimensions for *_, dimensions in deferred.contributions),
        quarantine=deferred.quarantine,
    )
