"""Entitlements against their recount: what the report says of each difference. The recount itself has tests of its own
on PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from reconciler.causes import Cause, Pair, Verdict
from reconciler.entitlements import ACCOUNTS_AT_ONCE, STALE_MAX
from reconciler.report import Report, Row
from schemas.entitlement_recount import RecountedFeature
from tests.worlds.reconciler import Deployment, settled

SEATS = RecountedFeature("acme", "seats", 3, "4", "4", is_stale=False, is_kept=False)


class Recount:
    """Answers what a test says, and what it says the second time that an account is asked for."""

    def __init__(self, *rows: RecountedFeature, second: Sequence[RecountedFeature] = ()) -> None:
        self.rows, self.second = rows, second
        self.asked: list[Sequence[str]] = []
        self.error: Exception | None = None

    async def accounts(self, after: str = "", limit: int = 200) -> Sequence[str]:
        names = sorted({row.account for row in self.rows if row.account > after})
        return names[:limit]

    async def recount(self, accounts: Sequence[str], now_ms: int) -> Sequence[RecountedFeature]:
        assert now_ms > 0
        if self.error is not None:
            raise self.error
        rows = self.second if any(set(accounts) & set(before) for before in self.asked) else self.rows
        self.asked.append(accounts)
        return [row for row in rows if row.account in accounts]


async def compared(recount: Recount | None) -> tuple[Report, list[Row]]:
    deployment = await Deployment().start()
    deployment.views = replace(deployment.views, recount=recount)
    report = await deployment.reconcile()
    return report, [row for row in report.rows if row.pair is Pair.ENTITLEMENTS]


CASES = {
    "equal": (SEATS, []),
    "another value": (SEATS._replace(found="40"), [(Cause.DIFFERING, "4", "40")]),
    "no version": (SEATS._replace(found=None, version=0), [(Cause.MISSING, "4", "")]),
    "a feature is missing": (SEATS._replace(found=None), [(Cause.MISSING, "4", "")]),
    "a feature too many": (SEATS._replace(expected=None), [(Cause.EXTRA, "", "4")]),
    "kept because of a riddle": (SEATS._replace(found="40", is_kept=True), [(Cause.UNCHECKED, "4", "40")]),
}


@pytest.mark.parametrize(("row", "expected"), CASES.values(), ids=CASES)
async def test_each_difference_has_its_cause(row: RecountedFeature, expected: list[tuple[Cause, str, str]]) -> None:
    report, rows = await compared(Recount(row))

    assert [(found.cause, found.expected, found.found) for found in rows] == expected
    assert all((found.account, found.meter) == ("acme", "seats") for found in rows)
    assert report.differences == sum(cause.is_drift for cause, *_ in expected)
    summary = next(each for each in report.summaries if each.pair is Pair.ENTITLEMENTS)
    assert summary.equal == (not expected)


async def test_a_change_of_a_moment_ago_is_looked_at_again() -> None:
    """Between the change and the new version, half a second passes."""
    stale = SEATS._replace(found="3", is_stale=True)
    _, soon = await compared(Recount(stale, second=[SEATS]))
    report, never = await compared(Recount(stale, second=[stale]))

    assert soon == []
    assert [row.cause for row in never] == [Cause.IN_FLIGHT]
    assert report.verdict is Verdict.INCOMPLETE


async def test_all_accounts_are_compared_in_pages() -> None:
    """Also if all are stale at once, as after a change of the catalog: then few names are kept."""
    rows = [SEATS._replace(account=f"account {number:05}") for number in range(STALE_MAX + 2 * ACCOUNTS_AT_ONCE)]
    recount = Recount(*rows)
    _, equal = await compared(recount)
    stale = Recount(*(row._replace(is_stale=True) for row in rows), second=rows)
    _, waiting = await compared(stale)

    assert equal == []
    assert [len(names) for names in recount.asked] == [ACCOUNTS_AT_ONCE] * (len(rows) // ACCOUNTS_AT_ONCE)
    assert {row.cause for row in waiting} == {Cause.IN_FLIGHT}
    assert len(waiting) == len(rows) - STALE_MAX


async def test_what_cannot_be_read_is_not_equal() -> None:
    recount = Recount(SEATS)
    recount.error = ValueError("no JSON")
    report, rows = await compared(recount)

    assert [(row.cause, row.detail) for row in rows] == [(Cause.UNCHECKED, "a stored value cannot be read: no JSON")]
    assert report.verdict is Verdict.INCOMPLETE


@pytest.mark.parametrize(
    ("no_tables", "verdict"), [("", Verdict.EQUAL), ("PostgreSQL does not answer", Verdict.INCOMPLETE)]
)
async def test_a_deployment_without_side_tables_is_not_incomplete(no_tables: str, verdict: Verdict) -> None:
    deployment = await settled()
    deployment.views = replace(deployment.views, no_tables=no_tables)
    report = await deployment.reconcile()

    assert [row.detail for row in report.rows if row.pair is Pair.ENTITLEMENTS] == [no_tables] * bool(no_tables)
    assert report.verdict is verdict
