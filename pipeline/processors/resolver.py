"""The resolver: verdicts on parked events, from what the archive holds.

A parked event is new if its own arrival is the first of its identity in `usage_events`, and a duplicate if any other
is. Once the archive has passed the event's position that can never change, so that every resolver, at any time, says
the same; the fold takes the first verdict and ignores the others. A crash after the append repeats a verdict.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from pipeline.deployment import append_control
from schemas.analytics import ArchiveStore
from schemas.control import VERDICTS_MAX, Verdict, VerdictRecord
from schemas.log import Log, position
from schemas.rollup import Parked, RollupStore

# Verdicts that are given and not folded yet; beyond it the resolver waits for the fold.
TOLD_MAX: Final = 10 * VERDICTS_MAX


class Resolved(NamedTuple):
    """The verdicts of one call."""

    new: int = 0
    duplicates: int = 0


class Resolver:
    """Appends verdicts for the parked events of partitions; knows no Faust. Two of one partition do no harm."""

    def __init__(self, log: Log, store: RollupStore, archive: ArchiveStore, secret: bytes) -> None:
        self._log = log
        self._store = store
        self._archive = archive
        self._secret = secret
        self._told: dict[int, set[int]] = {}

    async def resolve(self, partition: int) -> Resolved:
        """Judge up to `VERDICTS_MAX` parked events of one partition that the archive has passed, oldest first.

        Raises `Transient` where a store or the log does not answer; the same verdicts are given by the next call.
        """
        told = self._told.get(partition, set())
        fence, waiting = await self._store.parked(partition, len(told) + VERDICTS_MAX)
        told &= {each.position for each in waiting}
        self._told[partition] = told
        chosen = [each for each in waiting if each.position not in told][:VERDICTS_MAX]
        if fence is None or not chosen or len(told) >= TOLD_MAX:
            return Resolved()
        reached = await self._archive.load_position(partition)
        # An archive of another log knows nothing of these events: they wait, and `tidemark reconcile` says why.
        if reached is None or reached.log_id != fence.log_id:
            return Resolved()
        passed = [each for each in chosen if each.position < position(reached.next_offset)]
        if not passed:
            return Resolved()
        first = await self._archive.first_positions([(each.account, each.id) for each in passed])
        # What the archive has passed and does not hold was lost there: it gets no verdict, and stands in nobody's way.
        held = [each for each in passed if (each.account, each.id) in first]
        verdicts = tuple(_verdict(each, first[each.account, each.id]) for each in held)
        if verdicts:
            await append_control(self._log, self._secret, partition, VerdictRecord(verdicts=verdicts))
        told.update(each.position for each in passed)
        new = sum(each.new for each in verdicts)
        return Resolved(new, len(verdicts) - new)


def _verdict(parked: Parked, first_position: int) -> Verdict:
    return Verdict(
        position=parked.position,
        account=parked.account,
        time_us=parked.time_us,
        new=first_position == parked.position,
        quarantine=parked.quarantine,
    )
