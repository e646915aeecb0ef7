"""An operator looks at the page in a real browser, at two widths, with and without scripts, and acts by clicking."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

import pytest
from playwright.sync_api import Browser, expect

from schemas.clock import HOUR_MS
from schemas.reports import Attempt, Intent, OutcomeStatus, ReportOutcome
from tests.services.browser import CONTRAST, UNNAMED, Visitor
from tests.worlds.paged import Open, Paged, open_to_browsers

START_MS: Final = int(datetime(2027, 2, 1, tzinfo=UTC).timestamp()) * 1_000
# The report of each walk.
REPORTS: Final = {(1_280, True): "tm_wide", (390, True): "tm_narrow", (1_280, False): "tm_static"}


async def _begin(business: Paged) -> None:
    """A business of whose reports Stripe refused three, and an event that was not counted."""
    await business.begin_selling()
    entries: list[Intent | Attempt | ReportOutcome] = []
    for name in REPORTS.values():
        entries += [
            Intent(
                identifier=name, livemode=False, stripe_account="acct_1", log_id=business.log_id, meter="tokens",
                event_name="tokens", account="acme", period_start_ms=START_MS - 48 * HOUR_MS,
                period_end_ms=START_MS - 24 * HOUR_MS, bucket_start_ms=START_MS - 30 * HOUR_MS,
                bucket_end_ms=START_MS - 29 * HOUR_MS, delta_minor=7, scale=0,
            ),
            Attempt(
                identifier=name, stripe_customer="cus_1", timestamp_s=START_MS // 1_000, value="7",
                attempted_at_ms=START_MS,
            ),
            ReportOutcome(identifier=name, status=OutcomeStatus.DEAD, detail="no such customer"),
        ]  # fmt: skip
    await business.sql.intents.apply(0, None, len(entries), list(enumerate(entries)))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    """One business for the module."""
    with open_to_browsers(tmp_path_factory.mktemp("operator"), START_MS, _begin) as opened:
        yield opened


class Walk:
    """An operator at a browser."""

    def __init__(self, served: Open, visitor: Visitor, *, scripts: bool) -> None:
        self.served, self.visitor, self.scripts = served, visitor, scripts
        self.visitor.page.goto(served.operator_link())

    def words(self) -> str:
        """What the page says, in one line."""
        return " ".join(self.visitor.text().split())

    def look(self, name: str) -> None:
        """Screenshots, and what can be measured of the page."""
        page = self.visitor.page
        self.visitor.look(f"operator-{name}{'' if self.scripts else '-static'}")
        if self.scripts:
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                assert page.evaluate(CONTRAST) == [], (name, scheme)
            assert page.evaluate(UNNAMED) == [], name
        page.emulate_media(color_scheme="light")


@pytest.mark.parametrize(("width", "scripts"), list(REPORTS), ids=["wide", "narrow", "without scripts"])
def test_an_operator_sees_what_is_wrong_and_mends_it(
    served: Open, browser: Browser, width: int, *, scripts: bool
) -> None:
    """The page says what is wrong; one report is sent again, and is so once after a double click."""
    report = REPORTS[width, scripts]
    visitor = Visitor(browser, width, scripts=scripts)
    try:
        walk = Walk(served, visitor, scripts=scripts)
        assert "Wrong now. To Stripe: Stripe refused" in walk.words()
        walk.look("front")
        visitor.page.locator(f"a[href='reports/{report}']").click()
        assert "A report that Stripe refused" in walk.words()
        walk.look("report")
        form = visitor.page.locator(f"form[action='{report}/redrive']")
        form.locator("[name=by]").fill("Ann")
        form.locator("[name=reason]").fill("customer repaired")
        form.locator("button").dblclick()
        expect(visitor.page.locator("body")).to_contain_text("is sent again, as")
        assert [each for each in served.business.redriven if each[0] == report] == [
            (report, "Ann (link of ann)", "customer repaired")
        ]
        visitor.fill(name="acme")
        visitor.press("Look")
        assert "Account acme" in walk.words()
        walk.look("account")
        visitor.press("Operations")
        visitor.page.locator("#sink ~ p a, a[href='runbook/stripe-dead-letters']").first.click()
        assert "Runbook: stripe-dead-letters" in walk.words()
        assert visitor.errors == []
        assert visitor.hosts == {re.sub("https?://", "", served.url)}
    finally:
        visitor.close()


def test_the_page_follows_without_a_reload(served: Open, browser: Browser) -> None:
    """A report is left as it is beside the open page, and the page says so by itself."""
    visitor = Visitor(browser, 1_280, scripts=True)
    try:
        visitor.page.goto(served.operator_link())
        expect(visitor.page.locator("#live-state")).to_contain_text("Live")
        before = served.business.clock.ms

        async def leave() -> None:
            acknowledgements = served.business.sql.acknowledgements
            for name in REPORTS.values():
                await acknowledgements.acknowledge("acme", name, "bob", "goodwill", before)
            served.business.clock.ms += 10_000

        served.run(leave)
        expect(visitor.page.locator("#live")).to_contain_text("left by bob: goodwill", timeout=15_000)
        assert "Stripe refused" not in visitor.text()
    finally:
        visitor.close()
