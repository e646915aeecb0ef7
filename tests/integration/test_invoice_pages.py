"""Why does an invoice say $266.51? A customer and an operator read the reason in a real browser, at two widths."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from sinks.clickhouse.client import ClickHouse
from tests.services.browser import Visitor, open_browser
from tests.worlds.explained import explained_business, pages_of

USES = (
    ("ada", "100000", 3, "op-1"),
    ("ada", "37000", 9, "op-2"),
    ("ada", "37000", 9, "op-2"),
    ("ada", "510", 20, "op-3"),
)


def _words(visitor: Visitor) -> str:
    return " ".join(visitor.text().split())


def _numbers(words: str) -> str:
    """The words without the heads that a narrow screen shows beside each number."""
    for head in ("Quantity ", "Unit price ", "Amount "):
        words = words.replace(head, "")
    return words


def _customer(browser: Browser, address: str, width: int) -> None:
    """From the list of invoices to the id of an event, by clicking."""
    visitor = Visitor(browser, width, scripts=True)
    try:
        visitor.page.goto(f"{address}invoices")
        visitor.page.locator("tr", has_text="$266.51").get_by_role("link").first.click()
        visitor.look("invoice-customer")
        visitor.measure()
        words = _words(visitor)
        # The steps of the price in their order, each as quantity × unit price = amount.
        steps = ("1 $49.00 $49.00", "10,000 $0.00 $0.00", "90,000 $0.002 $180.00", "37,510 $0.001 $37.51")
        places = [_numbers(words).find(part) for part in (*steps, "Total $266.51")]
        assert -1 not in places, words
        assert places == sorted(places)
        visitor.page.locator("tr", has_text="$37.51").get_by_role("link").first.click()
        visitor.look("invoice-customer-line")
        visitor.measure()
        words = _words(visitor)
        assert "the first 10,000 at $0.00 each $0.00" in words, words
        assert "the next 90,000 at $0.002 each $180.00" in words
        assert "the next 37,510 at $0.001 each $37.51 all 137,510 $217.51" in words
        visitor.press("November 10")
        assert "op-2" in _words(visitor)
        visitor.look("invoice-customer-events")
        visitor.measure()
        assert visitor.errors == []
    finally:
        visitor.close()


def _operator(browser: Browser, address: str, width: int, invoice: str) -> None:
    """The id of the invoice is typed, and the page says why."""
    visitor = Visitor(browser, width, scripts=True)
    try:
        visitor.page.goto(address)
        visitor.fill(name=invoice)
        visitor.press("Look")
        visitor.look("invoice-operator")
        visitor.measure()
        words = _words(visitor)
        assert "Why the invoice says $266.51" in words
        assert "All of it is explained, and all numbers agree." in words
        # The sum, in the order in which a person adds up.
        whole = (
            "base 1 at $49.00 each $49.00",
            "calls the first 10,000 at $0.00 each $0.00",
            "calls the next 90,000 at $0.002 each $180.00",
            "calls the next 37,510 at $0.001 each $37.51",
            "The invoice $266.51",
        )
        places = [words.find(part) for part in whole]
        assert -1 not in places, words
        assert places == sorted(places)
        visitor.page.locator("summary").first.click()
        assert "100000" in _words(visitor)
        assert visitor.errors == []
    finally:
        visitor.close()


@pytest.mark.asyncio
async def test_why_an_invoice_says_266_dollars_51(clickhouse: ClickHouse, tmp_path: Path) -> None:
    """4900 + 0 + 18 000 + 3751 cents: scenario 1 on the pages."""
    async with explained_business(clickhouse) as business:
        await business.buy("ada", "api.v1.base", "api.v1.calls")
        await business.november(*USES)
        invoice, total = (await business.billed("ada"))[-1]
        assert total == 26_651

        async with pages_of(business, "ada", tmp_path) as (customer, operator):

            def looked() -> None:
                with open_browser() as browser:
                    for width in (1_280, 390):
                        _customer(browser, customer, width)
                        _operator(browser, operator, width, invoice)

            await asyncio.to_thread(looked)
