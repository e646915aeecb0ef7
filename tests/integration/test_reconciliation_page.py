"""The page of a reconciliation in a real browser: every number, two widths, two colour schemes, nothing foreign."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser

from reconciler.causes import Cause, Pair
from reconciler.coverage import Coverage
from reconciler.page import render_page
from reconciler.report import Findings, Report, Row
from schemas.clock import DAY_MS
from schemas.periods import Period
from tests.services.browser import Visitor
from tests.worlds.reconciler import DECEMBER_MS, NOVEMBER_MS

NOVEMBER = Period(NOVEMBER_MS, DECEMBER_MS)
DECEMBER = Period(DECEMBER_MS, DECEMBER_MS + 31 * DAY_MS)
HOSTILE = '<script>document.title="owned"</script><img src="https://example.com/x.png">'


def bill(cause: Cause, account: str, expected: str, found: str, items: str = "", detail: str = "") -> Row:
    return Row(
        Pair.INVOICES, cause, None, account, "calls", DECEMBER if cause is Cause.IN_FLIGHT else NOVEMBER,
        stripe_customer=f"cus_{account[:8]}", expected=expected, found=found, detail=detail, event_name="calls",
        items=items, invoices="in_1TideMarkNovember2026",
    )  # fmt: skip


def report() -> Report:
    """A month in which something of everything happened."""
    findings = Findings()
    findings.equal(Pair.REDIS, 1_204)
    findings.confirm(bill(Cause.CONFIRMED, "acme", "137510", "137510"))
    findings.confirm(bill(Cause.CONFIRMED, "late-but-billed", "1125", "1125", "125"))
    findings.add(
        bill(
            Cause.UNBILLED, "northwind", "2014.125", "2000", "",
            "14.125 reported and not billed: Stripe adds usage to no invoice that is final: bill the difference by an "
            "invoice item (`tidemark reconcile --repair` plans it), or write it off",
        )
    )  # fmt: skip
    findings.add(bill(Cause.IN_FLIGHT, "acme", "512", "", "", "the period runs"))
    findings.add(bill(Cause.EXTRA, HOSTILE, "10", "12", "", "the invoice bills more than was reported"))
    findings.add(
        Row(Pair.STRIPE, Cause.MISSING, None, "initech", "calls", NOVEMBER, None, "", "cus_initech", "100", "90",
            "accepted, but not in Stripe's sum")
    )  # fmt: skip
    findings.sums, findings.invoices = Coverage(48, 32, 340, DECEMBER_MS), Coverage(4, 4, 0)
    return findings.report(DECEMBER_MS + 5 * DAY_MS, None, None)


@pytest.mark.parametrize("width", [420, 1280])
def test_the_page_shows_every_number_at_both_widths(browser: Browser, tmp_path: Path, width: int) -> None:
    """A finance person reads it on a phone and on a desk; an account's name cannot run code or load anything."""
    path = tmp_path / "reconciliation.html"
    path.write_text(render_page(report()), encoding="utf-8")
    visitor = Visitor(browser, width, scripts=True)
    try:
        visitor.page.goto(path.as_uri())
        visitor.look("reconciliation")
        text = visitor.text()

        assert "Something does not agree" in text
        assert "32 of 48 sums that were due were read (66 %)" in text
        rows = [[cell.inner_text() for cell in row.locator("td").all()] for row in visitor.page.locator("tr").all()]
        found = {row[0].split()[0]: [cell.strip() for cell in row[3:8]] for row in rows if len(row) == 9}
        assert ["not billed", "2014.125", "2000", "", "-14.125"] == found["northwind"]
        assert ["billed", "1125", "1000", "125", ""] == found["late-but-billed"]
        assert "invoice item" in text
        assert "accepted, but not in Stripe's sum" in text
        assert HOSTILE in text
        assert ("Reconciliation: Something does not agree", set(), []) == (
            visitor.page.title(), visitor.hosts - {""}, visitor.errors,
        )  # fmt: skip
    finally:
        visitor.close()
