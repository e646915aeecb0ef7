"""Somebody of finance opens the dashboard in a real browser, at two widths, and asks why October changed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.services.browser import Visitor
from tests.worlds.earning import Fixed, figures, served_dashboard


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served_dashboard(Fixed(figures())) as address:
        yield address


@pytest.mark.parametrize("width", [1280, 360])
def test_a_newcomer_finds_out_what_october_earned_and_why(browser: Browser, address: str, width: int) -> None:
    visitor = Visitor(browser, width, scripts=True)
    visitor.page.goto(f"{address}?currency=usd")
    visitor.look("dashboard")
    visitor.measure()
    with visitor.page.expect_download() as downloading:
        visitor.page.get_by_role("link", name="Monthly recurring revenue as CSV").click()
    assert downloading.value.suggested_filename == "mrr-usd.csv"

    # The newest month comes first: the link of the table of recurring revenue.
    visitor.page.get_by_role("link", name="October 2026").first.click()
    words = " ".join(visitor.text().split())
    assert "October 2026: earned $1,100.00. That is $800.00 more than in September 2026." in words
    assert all(f"{name} " in words for name in ("dora", "bob", "cleo", "emil"))
    for amount in visitor.page.get_by_text("$500.00").all():
        box = amount.bounding_box()
        assert box is not None
        assert box["x"] + box["width"] <= width, "a person would have to scroll to see the cause"
    visitor.look("dashboard-october")
    visitor.measure()

    visitor.press("November 2026")
    assert "November 2026: earned $1,150.00." in " ".join(visitor.text().split())
    visitor.press("All months")
    visitor.press("EUR")
    assert "€80.00" in visitor.text()
    assert (visitor.errors, len(visitor.hosts)) == ([], 1)
    visitor.close()
