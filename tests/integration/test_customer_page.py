"""A customer opens the page in a real browser, at two widths, and changes the plan by clicking only."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

import pytest
from playwright.sync_api import Browser

from tests.services.browser import Visitor
from tests.worlds.paged import Open, Paged, open_to_browsers

_NUMBERS: Final = itertools.count()
START_MS: Final = int(datetime(2027, 2, 1, tzinfo=UTC).timestamp()) * 1_000
# The contrast of each text with the colour behind it, where it is less than WCAG AA asks for.
CONTRAST: Final = """() => {
  const luminance = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const parts = text => text.match(/[\\d.]+/g).map(Number);
  const behind = node => {
    for (let each = node; each; each = each.parentElement) {
      const colour = parts(getComputedStyle(each).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const node of document.querySelectorAll('body *')) {
    const own = [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.getClientRects().length || node.closest('svg')) continue;
    const style = getComputedStyle(node), large = parseFloat(style.fontSize) >= 24;
    const [light, dark] = [luminance(parts(style.color)), luminance(behind(node))].sort((a, b) => b - a);
    const ratio = (light + 0.05) / (dark + 0.05);
    const words = node.textContent.trim().slice(0, 40);
    if (ratio < (large ? 3 : 4.5)) found.push(`${node.tagName} ${words}: ${ratio.toFixed(2)}`);
  }
  return found;
}"""
# What a person who does not see the page, or who uses the keyboard, would miss.
UNNAMED: Final = """() => {
  const found = [];
  if (document.documentElement.lang !== 'en') found.push('no language');
  if (document.querySelectorAll('h1').length !== 1) found.push('not one h1');
  for (const each of document.querySelectorAll('input:not([type=hidden]), select'))
    if (!each.labels.length) found.push(`no label: ${each.name}`);
  for (const each of document.querySelectorAll('button, a'))
    if (!each.textContent.trim()) found.push(`no text: ${each.outerHTML}`);
  for (const each of document.querySelectorAll('progress, svg'))
    if (!each.getAttribute('aria-label')) found.push(`no name: ${each.tagName}`);
  for (const each of document.querySelectorAll('button, .button'))
    if (each.getBoundingClientRect().height < 40) found.push(`small: ${each.textContent}`);
  return found;
}"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    """One business for the module."""
    with open_to_browsers(tmp_path_factory.mktemp("page"), START_MS, Paged.begin_selling) as opened:
        yield opened


class Customer:
    """Somebody at a browser, with a page of an account."""

    def __init__(self, served: Open, visitor: Visitor, account: str, *, scripts: bool) -> None:
        self.served, self.visitor, self.scripts = served, visitor, scripts
        self.url = served.link(account)
        visitor.page.goto(self.url)

    def press(self, button: str) -> None:
        self.visitor.press(button)

    def confirm(self) -> str:
        """Confirm the quote that is shown; returns what the page says then."""
        self.press("Confirm")
        return self.visitor.text()

    def look(self, name: str) -> None:
        """Screenshots, and what can be measured of the page."""
        page = self.visitor.page
        self.visitor.look(f"customer-{name}")
        if self.scripts:
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                assert page.evaluate(CONTRAST) == [], (name, scheme)
            assert page.evaluate(UNNAMED) == [], name
        page.emulate_media(color_scheme="light")


@pytest.fixture(params=[(1280, True), (390, False)], ids=["wide", "a phone without scripts"])
def customer(request: pytest.FixtureRequest, browser: Browser, served: Open) -> Iterator[Customer]:
    """A customer with a plan. Fails on an error of the console or a request to another host."""
    width, scripts = request.param
    account = f"shop-{next(_NUMBERS)}"

    async def subscribe() -> None:
        await served.business.join(account)
        await served.business.subscribed("essential.v1.location.month.usd", quantity=2)
        await served.business.settle()
        await served.business.use(*(_call(account, number) for number in range(85)))

    served.run(subscribe)
    visitor = Visitor(browser, width, scripts=scripts)
    yield Customer(served, visitor, account, scripts=scripts)
    visitor.close()
    # A refused change is a page with the status 409, which the console notes.
    assert [error for error in visitor.errors if "409 (Conflict)" not in error] == []
    assert visitor.hosts <= {served.url.removeprefix("http://")}


def _call(account: str, number: int) -> dict[str, Any]:
    return {
        "specversion": "1.0", "id": f"{account}-{number}", "source": "test", "type": "api.request", "subject": account,
        "time": "2027-02-01T00:00:00Z", "data": {"method": "GET", "region": "eu", "user": "ann"},
    }  # fmt: skip


def test_a_customer_changes_the_plan_by_clicking_only(customer: Customer) -> None:
    """Sees the account; upgrades, downgrades, takes that back, cancels, and takes that back too."""
    assert "2 locations: $158.00 a month" in customer.visitor.text()
    assert "You have used 85 % of your limit" in customer.visitor.text()
    customer.look("account")

    customer.press("Change plan")
    customer.look("plans")
    customer.press("See what Pro costs")
    assert "You will be charged" in customer.visitor.text()
    customer.look("quote")
    assert "Confirmed on" in customer.confirm()
    assert "2 locations: $298.00 a month" in customer.visitor.text()

    customer.press("Change plan")
    customer.press("See what Essential costs")
    assert "Your plan changes to Essential on" in customer.confirm()
    customer.look("pending")
    customer.press("Keep my plan as it is")
    assert "Renews on" in customer.confirm()

    customer.press("Cancel plan")
    customer.look("cancel")
    assert "Your plan ends on" in customer.confirm()
    customer.look("ends")
    customer.press("Keep my plan as it is")
    assert "Renews on" in customer.confirm()

    customer.press("All invoices")
    customer.look("invoices")
    customer.visitor.page.locator("table a").first.click()
    assert "Total" in customer.visitor.text()
    customer.look("invoice")
    customer.press("All invoices")
    customer.press("Back to your plan")
    assert customer.visitor.page.url == customer.url


def test_a_form_that_cannot_be_done_says_why(customer: Customer) -> None:
    """The customer stays on the page of the plans, and nothing changes."""
    customer.press("Change plan")
    customer.press("See what this costs")
    assert "This change cannot be made" in customer.visitor.text()
    customer.look("refused")


def test_a_link_that_has_ended_shows_a_page(browser: Browser, served: Open) -> None:
    """A person with an old link sees words and no error of a program."""
    visitor = Visitor(browser, 390, scripts=False)
    visitor.page.goto(f"{served.url}/page/old/plans")
    assert "There is no such page" in visitor.text()
    visitor.look("customer-gone")
    visitor.close()
