"""A customer opens the page in a real browser, at two widths, and changes the plan by clicking only."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Final

import pytest
from playwright.sync_api import Browser

from tests.services.browser import Visitor
from tests.worlds.paged import Open, Paged, open_to_browsers

_NUMBERS: Final = itertools.count()
START_MS: Final = int(datetime(2027, 2, 1, tzinfo=UTC).timestamp()) * 1_000


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    """One business for the module."""
    with open_to_browsers(tmp_path_factory.mktemp("page"), START_MS, Paged.begin_selling) as opened:
        yield opened


class Customer:
    """Somebody at a browser, with a page of an account that opens for a year."""

    def __init__(self, served: Open, visitor: Visitor, account: str, *, scripts: bool) -> None:
        self.served, self.visitor, self.account, self.scripts = served, visitor, account, scripts
        self.url = served.link(account, days=366)
        self.back()

    def back(self) -> None:
        """Open the page."""
        self.visitor.page.goto(self.url)

    def press(self, button: str) -> None:
        """Press a button or follow a link."""
        self.visitor.press(button)

    def words(self) -> str:
        """What the page says, in one line."""
        return " ".join(self.visitor.text().split())

    def confirm(self) -> str:
        """Confirm the quote that is shown; returns what the page says then."""
        self.press("Confirm")
        return self.words()

    def store_card(self, card: Mapping[str, str]) -> None:
        """Store another card at Stripe, and come back."""
        self.press("Change the card")
        self.visitor.fill(**card)
        self.press("Save this card")
        self.press("Back")

    async def use(self) -> None:
        """Use 85 requests."""
        at = datetime.fromtimestamp(self.served.business.clock.now_ms() / 1_000, UTC)
        usual = {"specversion": "1.0", "source": "test", "type": "api.request", "subject": self.account}
        data = {"method": "GET", "region": "eu", "user": "ann"}
        times = {"time": f"{at:%Y-%m-%dT%H:%M:%SZ}", "data": data}
        events = ({**usual, **times, "id": f"{self.account}-{number}"} for number in range(85))
        await self.served.business.use(*events)

    def look(self, name: str) -> None:
        """Screenshots, and what can be measured of the page."""
        self.visitor.look(f"customer-{name}")
        if self.scripts:
            self.visitor.measure()


CARD: Final = {"number": "4242 4242 4242 4242", "expiry": "12 / 34", "cvc": "123"}
FAILING: Final = {**CARD, "number": "4000 0000 0000 0341"}


def _tries(customer: Customer) -> None:
    """Takes a trial without a card on file; a month later it is paid."""
    visitor = customer.visitor
    assert "You pay nothing" in visitor.text()
    customer.press("Change plan")
    customer.look("plans")
    customer.press("Try Pro for 30 days")
    customer.look("trial-quote")
    customer.press("Go on to payment")
    customer.look("trial-pay")
    customer.press("Go on to Stripe")
    visitor.fill(**CARD)
    customer.press("Subscribe")
    assert "Pro trial" in customer.words()
    assert "Your trial ends on" in customer.words()
    customer.look("trial")
    customer.served.pass_month()
    customer.served.run(customer.use)
    customer.back()
    assert "Pro active" in customer.words()


def _grows(customer: Customer) -> None:
    """Adds a location and upgrades; what changes nothing is refused."""
    customer.press("Change plan")
    customer.press("See what this costs")
    assert "This change cannot be made" in customer.words()
    customer.look("refused")
    plan = customer.visitor.page.locator(".card", has_text="your plan")
    plan.locator("[name='quantity.locations']").fill("2")
    customer.press("See what this costs")
    assert "Confirm and pay" in customer.words()
    customer.look("quote")
    assert "2 locations: $298.00 a month" in customer.confirm()
    customer.look("account")
    customer.press("Change plan")
    customer.press("See what Scale costs")
    assert "Scale: $200.00 a month" in customer.confirm()


def _fails_and_repairs(customer: Customer) -> None:
    """Stores a card that fails a month later, pays with another one, and stores that."""
    visitor = customer.visitor
    customer.store_card(FAILING)
    customer.served.pass_month()
    customer.back()
    assert "A payment of $" in customer.words()
    assert "Scale payment failed" in customer.words()
    customer.look("failed")
    customer.press("Pay now")
    visitor.fill(**CARD)
    customer.press("Pay")
    customer.back()
    customer.store_card(CARD)
    assert "A payment of $" not in customer.words()
    assert "Scale active" in customer.words()


def _leaves(customer: Customer) -> None:
    """Downgrades, takes that back, downgrades all the same, and cancels."""
    customer.press("Change plan")
    customer.press("See what Pro costs")
    assert "Your plan changes to Pro on" in customer.confirm()
    customer.look("pending")
    customer.press("Keep my plan as it is")
    assert "Renews on" in customer.confirm()
    customer.press("Change plan")
    customer.press("See what Pro costs")
    customer.confirm()
    customer.served.pass_month()
    customer.back()
    assert "Pro active" in customer.words()
    customer.press("Cancel plan")
    assert "Your plan ends on" in customer.confirm()
    customer.look("ends")
    customer.press("All invoices")
    customer.look("invoices")
    customer.visitor.page.locator("table a").first.click()
    customer.look("invoice")
    customer.served.pass_month()
    customer.back()
    assert "Free You pay nothing" in customer.words()
    customer.look("left")


@pytest.mark.parametrize(("width", "scripts"), [(1280, True), (390, False)], ids=["wide", "a phone without scripts"])
def test_a_customer_of_the_first_hour_until_the_end(
    browser: Browser, served: Open, width: int, *, scripts: bool
) -> None:
    """A trial, another location, an upgrade, a card that fails and is repaired, a downgrade, and the end: all by
    clicking, on our pages and Stripe's. Fails on an error of the console or a request to another host."""
    account = f"shop-{next(_NUMBERS)}"
    served.run(lambda: served.business.join(account, card=""))
    visitor = Visitor(browser, width, scripts=scripts)
    customer = Customer(served, visitor, account, scripts=scripts)

    _tries(customer)
    _grows(customer)
    _fails_and_repairs(customer)
    _leaves(customer)

    visitor.close()
    assert visitor.hosts <= {url.removeprefix("http://") for url in (served.url, served.stripe_url)}
    # A refused change is a page with the status 409, which the console notes.
    assert [error for error in visitor.errors if "409 (Conflict)" not in error] == []


def test_a_link_that_has_ended_shows_a_page(browser: Browser, served: Open) -> None:
    """A person with an old link sees words and no error of a program."""
    visitor = Visitor(browser, 390, scripts=False)
    visitor.page.goto(f"{served.url}/page/old/plans")
    assert "There is no such page" in visitor.text()
    visitor.look("customer-gone")
    visitor.close()
