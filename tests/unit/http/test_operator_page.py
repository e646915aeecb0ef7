"""The operator's page through the gateway: what its boxes say, what it may change, and what it survives."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import httpx
import pytest

from portal.tokens import CUSTOMER, OPERATOR, signed
from schemas.clock import HOUR_MS, MINUTE_MS
from schemas.intent_ledger import IntentState
from schemas.reports import Attempt, Intent, OutcomeStatus, ReportEntry, ReportOutcome
from tests.worlds.gateway import NOW_MS, Gateway, event
from tests.worlds.paged import SECRET, Paged

REPORT: Final = "tm_0123456789abcdef"


class Desk:
    """An operator with a link."""

    def __init__(self, business: Paged, door: Gateway) -> None:
        self.business, self.door = business, door
        self.root = f"/operator/{signed('ann', NOW_MS + HOUR_MS, SECRET, OPERATOR)}/"

    async def get(self, path: str = "", status: int = 200) -> str:
        """The words of a page."""
        answer = await self.door.client.get(self.root + path, follow_redirects=True)
        assert answer.status_code == status, answer.text
        return words(answer.text)

    async def send(self, path: str, headers: dict[str, str] | None = None, **fields: str) -> httpx.Response:
        """Send a form."""
        return await self.door.client.post(self.root + path, data=fields, headers=headers)


def words(markup: str) -> str:
    """What a person reads."""
    return " ".join(re.sub(r"<[^>]+>", " ", markup).split())


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    """A business that sells, with one report that Stripe refused."""
    business = Paged(NOW_MS)
    await business.begin_selling()
    async with business.opened(tmp_path) as door:
        intent = Intent(
            identifier=REPORT, livemode=False, stripe_account="acct_1", log_id=business.log_id, meter="tokens",
            event_name="tokens", account="acme", period_start_ms=NOW_MS - 48 * HOUR_MS,
            period_end_ms=NOW_MS - 24 * HOUR_MS, bucket_start_ms=NOW_MS - 30 * HOUR_MS,
            bucket_end_ms=NOW_MS - 29 * HOUR_MS, delta_minor=7, scale=0,
        )  # fmt: skip
        attempt = Attempt(
            identifier=REPORT, stripe_customer="cus_1", timestamp_s=NOW_MS // 1_000, value="7", attempted_at_ms=NOW_MS
        )
        outcome = ReportOutcome(identifier=REPORT, status=OutcomeStatus.DEAD, detail="no such customer")
        entries: list[tuple[int, ReportEntry]] = [(0, intent), (1, attempt), (2, outcome)]
        await business.sql.intents.apply(0, None, 3, entries)
        yield Desk(business, door)


async def test_the_page_says_what_is_wrong_now(desk: Desk) -> None:
    page = await desk.get()

    assert "Wrong now. To Stripe: Stripe refused 1 report: not billed." in page
    assert "no such customer" in page
    assert "Redrive or leave" in page
    assert "unmetered 0 archived, but no meter counts them" in page
    assert "canary heard no canary is set The canary is a customer of ours at Stripe" in page
    assert "held 0 events of customers who have no account yet" in page
    for title in ("Events", "From Stripe", "Reconciliation", "Plan changes", "Dunning", "Migrations", "Quarantine"):
        assert title in page


async def test_a_store_that_hangs_takes_only_its_boxes_down(desk: Desk) -> None:
    desk.business.sql_is_away = True

    page = await desk.get()

    assert "Not known: no answer in 1 s" in page
    assert "No event was refused." in page


async def test_a_report_is_sent_again_once_however_often_somebody_clicks(desk: Desk) -> None:
    """The first click acts; the second one gets its answer. Who and why are kept."""
    page = (await desk.door.client.get(f"{desk.root}reports/{REPORT}")).text
    (once, *_) = re.findall(r'name="once" value="([^"]+)"', page)

    answers = [
        await desk.send(f"reports/{REPORT}/redrive", once=once, by="Ann", reason="customer repaired") for _ in range(2)
    ]

    assert [answer.status_code for answer in answers] == [303, 303]
    assert desk.business.redriven == [(REPORT, "Ann (link of ann)", "customer repaired")]
    assert "is sent again, as" in await desk.get(f"?done={once}")


REFUSED: Final = {
    "without why": ({"by": "Ann", "reason": ""}, {}, 400),
    "without who": ({"by": " ", "reason": "why"}, {}, 400),
    "no form of the page": ({"by": "Ann", "reason": "why", "once": "short"}, {}, 400),
    "from another site": ({"by": "Ann", "reason": "why"}, {"sec-fetch-site": "cross-site"}, 403),
}


async def test_nothing_is_done_without_who_and_why_or_from_another_site(desk: Desk) -> None:
    found = {
        name: (await desk.send(f"reports/{REPORT}/redrive", headers, **{"once": "x" * 24, **fields})).status_code
        for name, (fields, headers, _) in REFUSED.items()
    }

    assert found == {name: status for name, (_, _, status) in REFUSED.items()}
    assert desk.business.redriven == []


async def test_what_somebody_leaves_is_wrong_no_more_and_in_the_audit(desk: Desk) -> None:
    answer = await desk.send(f"accounts/acme/leave/{REPORT}", once="y" * 24, by="Ann", reason="goodwill")

    assert answer.status_code == 303
    page = await desk.get()
    assert "Stripe refused" not in page
    assert "left by Ann (link of ann): goodwill" in page
    (row,) = [row for row in await desk.business.sql.audit("acme") if row.entity == "acknowledgement"]
    assert (row.entity_id, row.actor, row.reason) == (REPORT, "Ann (link of ann)", "goodwill")
    assert "Somebody looked, and left it as it is" in await desk.get("accounts/acme/")


async def test_quarantined_events_that_pass_now_are_sent_again_once(desk: Desk) -> None:
    """The box leads to the reason, the reason says what would become of the events, and two clicks send once."""
    early = [event(f"op-{number}", time="2026-11-21T11:20:00Z") for number in range(3)]
    await desk.door.post([*early, event("bad", data={"usage": {"tokens": "many"}, "model": "small"})])
    desk.business.clock.advance(50 * MINUTE_MS)
    front = (await desk.door.client.get(desk.root)).text
    assert 'href="quarantine/too_far_in_future"' in front

    page = (await desk.door.client.get(f"{desk.root}quarantine/too_far_in_future")).text
    assert "Would pass now 3" in words(page)
    (once,) = re.findall(r'name="once" value="([^"]+)"', page)
    path = "quarantine/too_far_in_future/redrive"
    answers = [await desk.send(path, once=once, by="Ann", reason="the clock was ahead") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [303, 303]
    assert "3 events that were refused as too_far_in_future are sent again." in await desk.get(f"?done={once}")
    (done,) = await desk.business.sql.redrives.listed(10)
    assert (done.by, done.reason, done.counts.sent) == ("Ann (link of ann)", "the clock was ahead", 3)

    bad = await desk.get("quarantine/bad_quantity")
    assert "Would pass now 0" in bad
    assert "Would be refused again as bad_quantity" in bad
    assert "Send them again" not in bad
    assert "no reason" in await desk.get("quarantine/nonsense", 400)


async def test_an_account_has_its_timeline_and_its_reports(desk: Desk) -> None:
    page = await desk.get("find?name=acme")

    assert "Account acme" in page
    assert "The customer changed at Stripe" in page
    assert f"{IntentState.DEAD.value}: Stripe refused it for good" in page


OTHERS: Final = {
    "ended": signed("ann", NOW_MS - 1_000, SECRET, OPERATOR),
    "a customer's link": signed("acme", NOW_MS + HOUR_MS, SECRET, CUSTOMER),
    "another secret": signed("ann", NOW_MS + HOUR_MS, "another-secret-of-forty-characters-at-least", OPERATOR),
    "no token": "x.y",
}


async def test_no_other_link_opens_the_page(desk: Desk) -> None:
    for name, token in OTHERS.items():
        answer = await desk.door.client.get(f"/operator/{token}/")
        assert (answer.status_code, "Reconciliation" in answer.text) == (404, False), name


async def test_a_link_needs_the_role_operator_for_all_accounts(desk: Desk) -> None:
    for key, status in (("operator", 201), ("admin", 201), ("read", 403), ("acme", 403)):
        answer = await desk.door.client.post("/v1/operator/page", headers=desk.door.bearer(key))
        assert answer.status_code == status, key
        if status == 201:
            opened = await desk.door.client.get(answer.json()["url"].removeprefix("http://gateway"))
            assert opened.status_code == 200
            assert "script-src 'self'" in opened.headers["content-security-policy"]
            assert "unsafe" not in opened.headers["content-security-policy"]


async def test_the_runbook_opens(desk: Desk) -> None:
    assert "# " in await desk.get("runbook/stripe-dead-letters")
    await desk.get("runbook/..%2Fsettings", 404)


async def test_each_form_acts_although_another_one_of_the_page_was_sent(desk: Desk) -> None:
    """Send it again, go back, leave it: the second form is no second click. A form of one page is none of another."""
    page = (await desk.door.client.get(f"{desk.root}reports/{REPORT}")).text
    again, leave = re.findall(r'name="once" value="([^"]+)"', page)
    await desk.send(f"reports/{REPORT}/redrive", once=again, by="Ann", reason="customer repaired")

    answer = await desk.send(f"accounts/acme/leave/{REPORT}", once=again, by="Ann", reason="goodwill")
    assert (answer.status_code, await desk.business.sql.acknowledgements.acknowledged(["acme"])) == (400, {})
    answer = await desk.send(f"accounts/acme/leave/{REPORT}", once=leave, by="Ann", reason="goodwill")
    assert answer.status_code == 303
    assert set(await desk.business.sql.acknowledgements.acknowledged(["acme"])) == {REPORT}


async def test_a_long_name_does_not_hide_whose_link_it_is(desk: Desk) -> None:
    await desk.send(f"reports/{REPORT}/redrive", once="z" * 24, by="Bob (link of bob)".ljust(400, "x"), reason="why")

    ((_, actor, _),) = desk.business.redriven
    assert actor.endswith(" (link of ann)")


async def test_an_encoded_slash_anywhere_in_an_address_is_no_error(desk: Desk) -> None:
    """Anybody may ask for the first three."""
    paths = ["/operator/a%2Fb", "/page/a%2Fb", "/revenue/a%2Fb"]
    paths += [f"{desk.root}reports/a%2Fb", f"{desk.root}accounts/acme/leave/a%2Fb"]
    found = [(await desk.door.client.get(path)).status_code for path in paths]
    assert found == [307, 307, 307, 404, 200]
