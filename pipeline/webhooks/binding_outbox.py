"""Sends the bindings that the side tables planned to the usage log.

The steps of an account, and what a crash behind each step leaves:
1. The account's standing was read, and then its due bindings. Those that the account has are skipped: nothing.
2. The records were appended under the next revisions after that standing: the next round finds them in the standing.
3. The bindings are marked as sent: nothing is left to do.

The standing is read once, and before the bindings. So every binding that another process sends after the reading has a
revision that one of ours has too, and every binding that was sent before is not due any more. Otherwise a process that
stood still would send an older binding under a revision above that of a newer one, and so undo the newer one.

Of two records with one revision, the record that comes first in the log counts. The other process is told so, and reads
the standing anew in its next round. A person who binds or closes at the same time is such a process too.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from aggregators.partitioning import partition_of
from pipeline.logs.bindings import AccountLog, Standings, append_plan, planned, present
from schemas.errors import Transient
from schemas.live_view import LiveView
from schemas.side_tables import Due, SideTables

# A round looks at this many pages of due bindings, which bounds its length; a page bounds its memory. The next round
# goes on behind the last page.
PAGE_BINDINGS_MAX: Final = 500
ROUND_PAGES_MAX: Final = 20


class OutboxStatus(NamedTuple):
    """The bindings that were left after the last round, when the oldest of them was planned, and how many this process
    sent."""

    due: int
    oldest_ms: int | None
    sent: int


class BindingOutbox:
    """Sends due bindings in rounds."""

    def __init__(self, tables: SideTables, accounts: AccountLog, view: LiveView) -> None:
        self._tables = tables
        self._accounts = accounts
        self._view = view
        self._after = ""
        self._left = Due(0, None)
        self._sent = 0

    async def relay(self) -> int:
        """One round; returns how many bindings are marked as sent.

        After a failure, the other accounts of the partition wait for the next round, and those of other partitions are
        sent, however many accounts fail. Raises the first `Transient` after the round; the next round repeats
        harmlessly.
        """
        done, standings = 0, Standings(self._accounts, self._view)
        failed: dict[int, Transient] = {}
        for _ in range(ROUND_PAGES_MAX):
            page = await self._tables.due_bindings(PAGE_BINDINGS_MAX, after=self._after)
            for account in dict.fromkeys(one.account for one in page):
                partition = partition_of(account, self._accounts.partitions)
                if partition not in failed:
                    try:
                        done += await self._send(account, standings)
                    except Transient as error:
                        failed[partition] = error
            self._after = page[-1].account if len(page) == PAGE_BINDINGS_MAX else ""
            if not self._after:
                break
        self._left = await self._tables.due()
        if failed:
            raise next(iter(failed.values()))
        return done

    async def _send(self, account: str, standings: Standings) -> int:
        known = await standings.of(account)
        due = await self._tables.due_bindings(PAGE_BINDINGS_MAX, account=account)
        bindings = [one.binding for one in due]
        new = bindings[present(known, account, bindings) :]
        for revision, binding in enumerate(new, start=known.state.revision + 1):
            await append_plan(self._accounts, planned(known, account, binding, revision))
        await self._tables.sent(due, self._accounts.clock.now_ms())
        self._sent += len(due)
        return len(due)

    def status(self) -> OutboxStatus:
        """The current values."""
        return OutboxStatus(self._left.bindings, self._left.oldest_ms, self._sent)
