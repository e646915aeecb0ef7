"""Sends the bindings that the side tables planned to the usage log.

The steps of an account, and what a crash behind each step leaves:
1. The account's standing was read and the bindings that it has are skipped: nothing.
2. The records were appended, each under the account's next revision: the next round finds them in the standing.
3. The bindings are marked as sent: nothing is left to do.

Two rounds at once, in two processes, append under the same revision. The record that comes first in the log counts, and
the other process reads the standing anew in its next round. A person who binds or closes at the same time is such a
process too.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Final, NamedTuple

from aggregators.partitioning import partition_of
from pipeline.bindings import AccountLog, append_plan, planned, present, standing
from schemas.errors import Transient
from schemas.live_view import LiveView
from schemas.side_tables import DueBinding, SideTables

# A round reads this many bindings, which bounds its memory; the next round reads the next ones.
ROUND_BINDINGS_MAX: Final = 500


class OutboxStatus(NamedTuple):
    """The bindings that the last round left or failed to send, and since when the oldest one waits for this process."""

    due: int
    oldest_ms: int | None
    sent: int


class BindingOutbox:
    """Sends due bindings in rounds."""

    def __init__(self, tables: SideTables, accounts: AccountLog, view: LiveView) -> None:
        self._tables = tables
        self._accounts = accounts
        self._view = view
        self._seen_ms: dict[tuple[str, int], int] = {}
        self._sent = 0

    async def relay(self) -> int:
        """One round; returns how many bindings are marked as sent.

        An account that fails does not hold up those of other partitions. Raises the first `Transient` after the round;
        the next round repeats harmlessly.
        """
        due = await self._tables.due_bindings(ROUND_BINDINGS_MAX)
        now_ms = self._accounts.clock.now_ms()
        self._seen_ms = {(one.account, one.number): self._seen_ms.get((one.account, one.number), now_ms) for one in due}
        done = 0
        failed: dict[int, Transient] = {}
        for account, group in groupby(due, key=lambda one: one.account):
            partition = partition_of(account, self._accounts.partitions)
            if partition not in failed:
                try:
                    done += await self._send(account, list(group))
                except Transient as error:
                    failed[partition] = error
        if failed:
            raise next(iter(failed.values()))
        return done

    async def _send(self, account: str, due: Sequence[DueBinding]) -> int:
        bindings = [one.binding for one in due]
        known = await standing(self._accounts, self._view, account)
        for binding in bindings[present(known, account, bindings) :]:
            plan = planned(known, account, binding)
            await append_plan(self._accounts, plan)
            # The next append reads back from the same offset, so a record of somebody else is noticed.
            known = known._replace(state=known.after(plan.record))
        await self._tables.sent(due, self._accounts.clock.now_ms())
        for one in due:
            self._seen_ms.pop((one.account, one.number), None)
        self._sent += len(due)
        return len(due)

    def status(self) -> OutboxStatus:
        """The current values."""
        return OutboxStatus(len(self._seen_ms), min(self._seen_ms.values(), default=None), self._sent)
