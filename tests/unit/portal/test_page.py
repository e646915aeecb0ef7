"""The customer's page over HTTP: who sees it, what it says, and that a change is quoted before it is made."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import pytest
import pytest_asyncio

from pipeline.http.api_keys import Role, create_key
from portal.tokens import signed
from schemas.clock import DAY_MS, MINUTE_MS
from schemas.errors import Transient
from tests.worlds.gateway import Gateway
from tests.worlds.paged import SECRET, Paged

START_MS: Final = int(datetime(2027, 2, 1, tzinfo=UTC).timestamp()) * 1_000


class Served(NamedTuple):
    """A gateway with the page of acme, which has the plan essential, on the tenth day of its period."""

    gateway: Gateway
    business: Paged
    folder: Path

    def path(self, account: str = "acme", life_ms: int = DAY_MS, secret: str = SECRET) -> str:
        return f"/page/{signed(account, self.business.clock.now_ms() + life_ms, secret)}/"

    async def see(self, path: str = "", account: str = "acme") -> httpx.Response:
        return await self.gateway.client.get(self.path(account) + path)

    async def send(self, path: str, account: str = "acme", **fields: str) -> httpx.Response:
        return await self.gateway.client.post(self.path(account) + path, data=fields, follow_redirects=True)


def text_of(answer: httpx.Response) -> str:
    """What a person reads."""
    body = answer.text.partition("<body")[2].partition(">")[2]
    return " ".join(re.sub("<[^>]*>", " ", body).split())


@pytest_asyncio.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    business = Paged(START_MS)
    await business.begin_selling()
    await business.subscribed("essential.v1.location.month.usd")
    await business.settle()
    business.clock.ms += 9 * DAY_MS
    async with business.opened(tmp_path) as gateway:
        yield Served(gateway, business, tmp_path)


async def test_a_key_for_billing_gets_a_link_that_opens_the_page(served: Served) -> None:
    keys = served.folder / "keys.jsonl"
    key, _ = create_key(keys, Role.BILLING, served.business.clock, account="acme")
    headers = {"authorization": f"Bearer {key}"}
    client = served.gateway.client

    made = await client.post("/v1/accounts/acme/page", json={"expires_in_s": 60}, headers=headers)
    foreign = await client.post("/v1/accounts/globex/page", headers=headers)
    reader = await client.post("/v1/accounts/acme/page", headers=served.gateway.bearer("read"))
    bodies: list[object] = [{"expires_in_s": 59}, {"expires_in_s": 2_592_001}, {"expires": 60}, []]
    wrong = [(await client.post("/v1/accounts/acme/page", json=body, headers=headers)).status_code for body in bodies]

    assert (made.status_code, made.json()["expires_at"]) == (201, "2027-02-10T00:01:00Z")
    assert (await client.get(made.json()["url"])).status_code == 200
    assert (foreign.status_code, reader.status_code) == (403, 403)
    assert [400] * 4 == wrong


@pytest.mark.parametrize(
    "changed",
    [{"life_ms": 0}, {"secret": "y" * 32}, {"account": "globex", "secret": "y" * 32}],
    ids=["expired", "altered", "other account"],
)
async def test_a_link_that_does_not_open_tells_nothing(served: Served, changed: dict[str, Any]) -> None:
    nothing = await served.gateway.client.get("/page/nothing/")
    found = await served.gateway.client.get(served.path(**changed))
    deep = await served.gateway.client.post(served.path(**changed) + "quotes", data={"kind": "cancel"})

    assert (found.status_code, deep.status_code) == (404, 404)
    assert (nothing.text, nothing.headers["content-type"]) == (found.text, found.headers["content-type"])
    assert nothing.text == deep.text


async def test_a_secret_is_replaced_without_closing_open_pages(served: Served) -> None:
    path, secrets = served.path(), served.folder / "page_secrets"

    secrets.write_text(f"{'n' * 32}\n{SECRET}\n")
    both = await served.gateway.client.get(path)
    secrets.write_text(f"{'n' * 40}\n")
    after = await served.gateway.client.get(path)

    assert (both.status_code, after.status_code) == (200, 404)


async def test_the_page_says_what_the_account_has(served: Served) -> None:
    await served.business.use(
        *({"specversion": "1.0", "id": f"a{n}", "source": "s", "type": "api.request", "subject": "acme",
           "time": "2027-02-10T00:00:00Z", "data": {"method": "GET", "region": "eu", "user": "u"}} for n in range(85))
    )  # fmt: skip

    answer = await served.see()
    text = text_of(answer)

    assert answer.status_code == 200
    assert "Essential active For one shop or two. 1 location: $79.00 a month Renews on March 1." in text
    assert "api requests 85 of 100 85 %" in text
    assert "You have used 85 % of your limit of api requests in this period." in text
    assert "Complete up to 00:00 UTC" in text
    assert "Paid ahead $79.00 Stripe&#x27;s preview of 00:00 UTC $79.00" in text
    assert "March 1 The next invoice bills $79.00" in text
    assert "February 1 paid $79.00" in text


async def test_no_script_no_cookie_and_no_other_origin(served: Served) -> None:
    answers = [await served.see(path) for path in ("", "plans", "invoices", "nothing", "quotes/qt_1")]
    answers.append(await served.gateway.client.get("/page/nothing/"))

    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert policy == (
            "default-src 'none'; style-src 'self'; img-src data:; base-uri 'none'; form-action 'self'; "
            "frame-ancestors 'none'"
        )
        assert "set-cookie" not in answer.headers
        assert (answer.headers["cache-control"], answer.headers["referrer-policy"]) == ("no-store", "same-origin")
        assert not re.search(r"<script|<style| style=| on\w+=", answer.text)


async def test_applications_that_are_named_may_embed_the_page_in_their_colours(tmp_path: Path) -> None:
    theme = tmp_path / "theme.css"
    theme.write_text(":root { --accent: #085; }")
    business = Paged(START_MS)
    await business.begin_selling()

    async with business.opened(tmp_path, page_frames="https://app.example", page_theme=theme) as gateway:
        page = await gateway.client.get(f"/page/{signed('acme', START_MS + DAY_MS, SECRET)}/")
        styles = [await gateway.client.get(f"/page/{name}.css") for name in ("style", "theme")]

    assert page.headers["content-security-policy"].endswith("frame-ancestors https://app.example")
    assert [each.headers["content-type"] for each in styles] == ["text/css; charset=utf-8"] * 2
    assert styles[1].text == ":root { --accent: #085; }"


async def test_a_change_is_quoted_in_words_and_cents_before_it_is_made(served: Served) -> None:
    quoted = await served.send("quotes", kind="plan", plan="pro", interval="month", **{"quantity.locations": "1"})
    text = text_of(quoted)
    before = served.business.bought()
    confirmed = await served.send(f"{quoted.url.path.rpartition('/page/')[2].partition('/')[2]}/accept")
    after = text_of(await served.see())

    assert "You will be charged $47.50 today for the remaining 19 days of your billing cycle" in text
    assert "Total $47.50" in text
    assert "Confirm and pay $47.50" in text
    assert before == {("essential.v1.location.month.usd", 1)}
    assert "Confirmed on February 10. The offer was: You will be charged $47.50 today" in text_of(confirmed)
    assert "Pro active" in after
    assert served.business.bought() == {("pro.v1.location.month.usd", 1)}


async def test_a_change_whose_payment_fails_is_not_called_made(served: Served) -> None:
    """The plan changes once the invoice is paid, and the page says so."""
    served.business.use_card("pm_card_chargeCustomerFail")
    quoted = await served.send("quotes", kind="plan", plan="pro", interval="month", **{"quantity.locations": "1"})
    confirmed = text_of(await served.send(f"quotes/{quoted.url.path.rpartition('/')[2]}/accept"))

    assert served.business.bought() == {("essential.v1.location.month.usd", 1)}
    assert "was not paid when you confirmed it: it waits for the payment of the invoice: http" in confirmed
    assert "The offer was" not in confirmed


async def test_a_confirmation_that_fails_after_the_change_does_not_deny_it(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    quoted = await served.send("quotes", kind="plan", plan="pro", interval="month", **{"quantity.locations": "1"})

    async def fails(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(served.business.client, "invoice", fails)
    answer = await served.send(f"quotes/{quoted.url.path.rpartition('/')[2]}/accept")

    assert served.business.bought() == {("pro.v1.location.month.usd", 1)}
    assert answer.status_code == 500
    assert "Open your page again to see what holds now." in text_of(answer)
    assert "Nothing was changed" not in text_of(answer)


async def test_a_cancellation_is_confirmed_and_taken_back(served: Served) -> None:
    async def do(**fields: str) -> str:
        quoted = await served.send("quotes", **fields)
        await served.send(f"quotes/{quoted.url.path.rpartition('/')[2]}/accept")
        return text_of(await served.see())

    canceled = await do(kind="cancel")
    kept = await do(kind="undo")

    assert "Your plan ends on March 1. You can use it until then; after it, Free." in canceled
    assert "Keep my plan as it is" in canceled
    assert "Renews on March 1." in kept


NONSENSE: Final[dict[str, tuple[dict[str, str], int, str]]] = {
    "unknown plan": ({"kind": "plan", "plan": "gold"}, 409, "plan: there is no plan &#x27;gold&#x27;"),
    "same plan": ({"kind": "plan", "plan": "essential"}, 409, "This change cannot be made"),
    "nothing pending": ({"kind": "undo"}, 409, "This change cannot be made"),
    "now": ({"kind": "cancel_now"}, 409, "kind: is not a change that can be made here"),
    "nothing": ({}, 409, "kind: is not a change that can be made here"),
    "interval": ({"kind": "plan", "plan": "pro", "interval": "century"}, 409, "interval: is not one that is sold"),
    "number": ({"kind": "plan", "plan": "pro", "quantity.locations": "1e9"}, 409, "locations: must be a whole number"),
    "negative": ({"kind": "plan", "plan": "pro", "quantity.locations": "-1"}, 409, "locations: must be a whole"),
    "large": ({"kind": "plan", "plan": "x" * 20_000}, 400, "form: has more than 16384 bytes"),
    "many fields": ({f"field{n}": "" for n in range(101)}, 400, "form: is not one of this page"),
}


async def test_a_form_that_asks_for_nonsense_is_answered_in_words(served: Served) -> None:
    found = {name: await served.send("quotes", **fields) for name, (fields, _, _) in NONSENSE.items()}

    assert {name: answer.status_code for name, answer in found.items()} == {
        name: status for name, (_, status, _) in NONSENSE.items()
    }
    assert [name for name, (_, _, said) in NONSENSE.items() if said not in text_of(found[name])] == []
    assert served.business.bought() == {("essential.v1.location.month.usd", 1)}


async def test_a_quote_of_another_account_is_not_there(served: Served) -> None:
    quoted = await served.send("quotes", kind="cancel")
    identifier = quoted.url.path.rpartition("/")[2]

    seen = await served.see(f"quotes/{identifier}", account="globex")
    accepted = await served.send(f"quotes/{identifier}/accept", account="globex")

    assert (seen.status_code, accepted.status_code) == (404, 404)
    assert served.business.at_stripe()["cancel_at_period_end"] is False


async def test_an_offer_that_has_expired_is_not_confirmed(served: Served) -> None:
    quoted = await served.send("quotes", kind="cancel")
    served.business.clock.ms += 16 * MINUTE_MS

    old = await served.see(f"quotes/{quoted.url.path.rpartition('/')[2]}")
    accepted = await served.send(f"quotes/{quoted.url.path.rpartition('/')[2]}/accept")

    assert "This offer has expired" in text_of(old)
    assert "Confirm</button>" not in old.text
    assert (accepted.status_code, "the quote has expired" in text_of(accepted)) == (409, True)


async def test_a_first_payment_and_a_card_lead_to_stripe_and_no_form_leaves_our_origin(served: Served) -> None:
    """The policy of the page lets forms go to our own origin only, so a link leads to Stripe."""
    await served.business.join("globex", card="")
    account = "globex"

    quoted = await served.send("quotes", account, kind="trial", plan="pro", interval="month")
    identifier = quoted.url.path.rpartition("/")[2]
    paying = await served.send(f"quotes/{identifier}/accept", account)
    again = await served.send(f"quotes/{identifier}/accept", account)
    card = await served.see("card", account)
    nobody = await served.see("card", "nobody")

    assert "Go on to payment" in text_of(quoted)
    assert (paying.status_code, paying.url.host) == (200, "gateway")
    assert re.search(r'href="http://[^"]+/_simulator/checkout/cs_\w+"[^>]* target="_top"', paying.text)
    assert paying.text == again.text
    assert card.status_code == 303
    assert "/_simulator/portal/" in card.headers["location"]
    assert (nobody.status_code, "belongs to no Stripe customer" in text_of(nobody)) == (400, True)


async def test_an_invoice_opens_to_its_lines_hours_and_events(served: Served) -> None:
    await served.business.join("globex")
    await served.business.subscribed("scale.v1.base.month.usd")
    await served.business.settle()
    price = served.business.prices["tm.scale.v1.tokens.month.usd"]
    added = {"subscription": served.business.subscription, "price": price}
    served.business.stripe.call("POST /v1/subscription_items", added)
    await served.business.settle()
    served.business.clock.ms += 40 * DAY_MS
    served.business.stripe.simulator.catch_up()
    await served.business.settle()

    listed = await served.see("invoices", account="globex")
    (last, *_) = re.findall(r'href="(invoices/in_\w+)"', listed.text)
    invoice = await served.see(last, account="globex")
    (line,) = re.findall(r'href="\.\./(invoices/\w+/lines/\w+)"', invoice.text)
    hours = await served.see(line, account="globex")
    (hour,) = re.findall(r'href="\.\./\.\./\.\./(invoices/\w+/lines/\w+/hours/\d+)"', hours.text)
    events = await served.see(hour, account="globex")

    assert "Scale: tokens" in text_of(invoice)
    assert "25" in text_of(hours)
    assert "op &lt;1&gt;" in events.text
    for path in (last, line, hour, f"{line}/hours/17", last.replace("in_", "in_x")):
        foreign = await served.see(path)
        assert foreign.status_code == 404, path


async def test_a_page_is_shown_without_what_does_not_answer(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(*_: object) -> None:
        raise Transient("Redis does not answer")

    monkeypatch.setattr(type(served.business.store.totals), "account_totals", silent)
    monkeypatch.setattr(type(served.business.client), "preview", silent)
    monkeypatch.setattr(type(served.gateway.clickhouse), "usage", silent)

    answer = await served.see()

    assert answer.status_code == 200
    assert "The usage is not known at the moment." in text_of(answer)
    assert "preview" not in text_of(answer)
    assert "Paid ahead $79.00" in text_of(answer)


async def test_a_page_says_so_if_sql_does_not_answer(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(*_: object) -> None:
        raise Transient("PostgreSQL at 10.0.0.7 does not answer")

    monkeypatch.setattr(served.business.records, "mirrored_of", silent)

    answer = await served.see()

    assert (answer.status_code, "10.0.0.7" in answer.text) == (503, False)
    assert "Try again in a minute" in text_of(answer)


async def test_an_account_without_a_customer_sees_the_default_plan(served: Served) -> None:
    answer = await served.see(account="nobody/at all")

    assert "Free You pay nothing." in text_of(answer)
    assert "0 of 10" in text_of(answer)


@pytest.mark.parametrize("path", ["quotes/a%2Fb", "invoices/a%2Fb", "invoices/a%2Fb/lines/c", "invoices/a/lines/c%2Fd"])
async def test_an_encoded_slash_is_of_a_name(served: Served, path: str) -> None:
    """It was a character that no database takes: 500, with a stack trace in the log."""
    assert (await served.see(path)).status_code == 404
