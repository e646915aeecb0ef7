"""Compares what the role mirror keeps of accounts' entitlements with a recount by SQL that shares no code with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Final

from reconciler.causes import Cause, Pair
from reconciler.report import Findings, Row
from reconciler.views import Views
from schemas.clock import Clock
from schemas.entitlement_recount import RecountedFeature

ACCOUNTS_AT_ONCE: Final = 200
# The role mirror computes within a second; what is stale for longer waits for something.
STALE_WAIT_S: Final = 3.0
STALE_MAX: Final = 1_000
RECOMPUTE: Final = "run `tidemark billing recompute`; if it stays, the two disagree about a rule: that is a defect"
STALE: Final = "something happened to the account, and the role mirror has not computed its entitlements yet"
KEPT: Final = (
    "the account keeps what it had, because a subscription has prices that no plan has: see `tidemark catalog drift`"
)


@dataclass(frozen=True, slots=True)
class EntitlementComparison:
    """Compares the values of now, `ACCOUNTS_AT_ONCE` accounts at a time."""

    views: Views
    clock: Clock
    findings: Findings

    async def run(self) -> None:
        """Compare all accounts. Accounts to which something has just happened are looked at a second time. May raise
        `Transient` and `ValueError`."""
        recount = self.views.recount
        if recount is None:
            if self.views.no_tables:
                self.findings.add(Row(Pair.ENTITLEMENTS, Cause.UNCHECKED, detail=self.views.no_tables))
            return
        stale: list[str] = []
        after = ""
        while accounts := await recount.accounts(after, ACCOUNTS_AT_ONCE):
            after = accounts[-1]
            fresh = self._compare(await recount.recount(accounts, self.clock.now_ms()))
            stale += (account for account in accounts if account not in fresh)
            self._waiting(stale[STALE_MAX:])
            del stale[STALE_MAX:]
        if stale:
            await self.clock.sleep(STALE_WAIT_S)
        for start in range(0, len(stale), ACCOUNTS_AT_ONCE):
            accounts = stale[start : start + ACCOUNTS_AT_ONCE]
            fresh = self._compare(await recount.recount(accounts, self.clock.now_ms()))
            self._waiting([account for account in accounts if account not in fresh])

    def _compare(self, rows: Sequence[RecountedFeature]) -> set[str]:
        """Report the accounts that are not stale, and return them."""
        compared = set()
        for account, features in groupby(rows, attrgetter("account")):
            for row in features:
                if not row.is_stale:
                    compared.add(account)
                    self._feature(row)
        return compared

    def _feature(self, row: RecountedFeature) -> None:
        if row.expected == row.found:
            self.findings.equal(Pair.ENTITLEMENTS, 1)
            return
        cause, detail = Cause.DIFFERING, f"version {row.version} has another value than the recount; {RECOMPUTE}"
        if row.is_kept:
            cause, detail = Cause.UNCHECKED, KEPT
        elif row.found is None:
            cause, detail = Cause.MISSING, f"version {row.version} lacks the feature; {RECOMPUTE}"
            if not row.version:
                detail = f"the account has no version; {RECOMPUTE}"
        elif row.expected is None:
            cause, detail = Cause.EXTRA, f"version {row.version} has a feature that no catalog has; {RECOMPUTE}"
        self.findings.add(
            Row(
                Pair.ENTITLEMENTS, cause, None, row.account, row.feature, expected=row.expected or "",
                found=row.found or "", detail=detail,
            )
        )  # fmt: skip

    def _waiting(self, accounts: Sequence[str]) -> None:
        for account in accounts:
            self.findings.add(Row(Pair.ENTITLEMENTS, Cause.IN_FLIGHT, account=account, detail=STALE))
