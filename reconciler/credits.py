"""Compares what the log says that credits pay with the ledger of credits, and each grant with its rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from aggregators.quantities import decimal_text
from aggregators.report_records import ReportedIntent
from reconciler.causes import Cause, Pair
from reconciler.compare import Range
from reconciler.report import Findings, Row
from reconciler.reports_index import ReportsIndex
from reconciler.views import Views
from schemas.credits import KeptAllocation
from schemas.periods import Period
from schemas.reports import OutcomeStatus

ALLOCATIONS_AT_ONCE: Final = 1_000
_NOT_PAID: Final = frozenset({OutcomeStatus.FREE, OutcomeStatus.REPLACED})
LOST: Final = (
    "the ledger of credits lacks this draw, as after a restored backup: the account has these credits once more"
)
UNUSED: Final = "credits were drawn, and Stripe was sent all of it: grant as many with `tidemark credits grant`"
KEPT: Final = "the usage is paid by nobody, or by other reports, and its credits did not come back: grant as many"
WRONG: Final = "a grant is not the sum of its rows: restore the backup, or find out who wrote into the tables"


@dataclass(frozen=True, slots=True)
class CreditComparison:
    """Compares the settled intents of the range, by the first revision of each."""

    views: Views
    index: ReportsIndex
    period_of: Callable[[ReportedIntent], Period]
    findings: Findings
    limits: Range

    async def run(self) -> None:
        """Compare. `index` has been read. Memory grows with the intents that credits pay. May raise `Transient`."""
        ledger = self.views.credits
        if ledger is None:
            if self.views.no_tables:
                self.findings.add(Row(Pair.CREDITS, Cause.UNCHECKED, detail=self.views.no_tables))
            return
        for wrong in await ledger.wrong():
            self.findings.add(Row(Pair.CREDITS, Cause.DIFFERING, detail=f"{wrong}; {WRONG}"))
        seen: set[str] = set()
        after = ""
        while page := await ledger.allocations(after, ALLOCATIONS_AT_ONCE):
            after = page[-1].identifier
            for kept in page:
                first = self.index.get(kept.identifier)
                if first is not None:
                    self._compare(first, kept)
                    seen.add(kept.identifier)
        for reported in self.index.reported():
            is_first = not reported.intent.revision and reported.intent.identifier not in seen
            if is_first and reported.allocation is not None:
                self._compare(reported, KeptAllocation(reported.intent.identifier, 0, is_taken_back=False))

    def _compare(self, first: ReportedIntent, kept: KeptAllocation) -> None:
        last = first
        while last.redrive is not None and (successor := self.index.get(last.redrive.successor)):
            last = successor
        period = self.period_of(first)
        # Of an intent without outcome the two are written one after the other.
        if last.outcome is None or not self.limits.overlaps(period):
            return
        is_paid = last.outcome.status not in _NOT_PAID
        expected = last.allocation.drawn_minor if last.allocation and is_paid else 0
        found = 0 if kept.is_taken_back else kept.drawn_minor
        if expected == found:
            self.findings.equal(Pair.CREDITS, 1)
            return
        cause, detail = (Cause.MISSING, LOST) if abs(found) < abs(expected) else (Cause.EXTRA, UNUSED)
        intent = first.intent
        self.findings.add(
            Row(
                Pair.CREDITS, cause, first.partition, intent.account, intent.meter, period,
                expected=decimal_text(expected, intent.scale), found=decimal_text(found, intent.scale),
                detail=detail if is_paid else KEPT,
            )
        )  # fmt: skip
