"""Plan changes over HTTP: who may quote and accept, what is answered, and what bad requests are told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest_asyncio

from pipeline.changes.parts import Parts
from pipeline.http.api_keys import Role, create_key
from schemas.catalog_changes import CatalogStore
from schemas.clock import MINUTE_MS
from schemas.plan_changes import RefusalCode
from stripe_simulator.faults import Fault, FaultKind
from tests.worlds.changing import Changing
from tests.worlds.gateway import Gateway, running

START_MS: Final = int(datetime(2027, 2, 1, tzinfo=UTC).timestamp()) * 1_000
QUOTES: Final = "accounts/acme/quotes"
PENDING: Final = "accounts/acme/changes/pending"


class Served(NamedTuple):
    """A gateway over a business whose account acme has the plan essential."""

    gateway: Gateway
    business: Changing

    async def send(
        self, method: str, path: str, body: Any = None, key: str = "billing", **headers: str
    ) -> tuple[int, Any]:
        sent = self.gateway.bearer(key) | {name.replace("_", "-"): text for name, text in headers.items()}
        answer = await self.gateway.client.request(method, f"/v1/{path}", json=body, headers=sent)
        return answer.status_code, answer.json()

    async def quote(self, body: Any, key: str = "billing", **headers: str) -> tuple[int, Any]:
        return await self.send("POST", QUOTES, body, key, **headers)

    async def accept(self, quote: str, body: Any = None, key: str = "billing") -> tuple[int, Any]:
        return await self.send("POST", f"{QUOTES}/{quote}/accept", body, key)


@pytest_asyncio.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """On the tenth day of acme's period."""
    business = Changing(START_MS)
    await business.begin()
    await business.subscribed("essential.v1.location.month.usd")
    await business.settle()
    business.clock.ms += 9 * 1_440 * MINUTE_MS

    async def changes() -> Parts:
        return business.parts()

    async def catalog() -> CatalogStore:
        return business.parts().catalog

    async with running(tmp_path, business, changes=changes, catalog=catalog) as gateway:
        keys = tmp_path / "keys.jsonl"
        more = {
            "billing": create_key(keys, Role.BILLING, business.clock)[0],
            "billing of acme": create_key(keys, Role.BILLING, business.clock, account="acme")[0],
            "billing of globex": create_key(keys, Role.BILLING, business.clock, account="globex")[0],
        }
        yield Served(Gateway(**{**vars(gateway), "keys": {**gateway.keys, **more}}), business)


async def test_a_quote_is_made_and_accepted(served: Served) -> None:
    status, quote = await served.quote({"plan": "pro", "by": "ann"})
    accepted = await served.accept(quote["id"], {"by": "ann"})
    again = await served.accept(quote["id"])

    assert (status, quote["words"]) == (201, (
        "You will be charged $47.50 today for the remaining 19 days of your billing cycle, and your next invoice on "
        "March 1 will be $149.00."
    ))  # fmt: skip
    assert quote["due_now"] == {"minor": 4750, "currency": "usd", "exponent": 2}
    assert quote["next"] == {
        "at": "2027-03-01T00:00:00Z", "amount": {"minor": 14900, "currency": "usd", "exponent": 2},
    }  # fmt: skip
    assert [(line["amount"]["minor"], line["proration"]) for line in quote["lines"]] == [(-5361, True), (10111, True)]
    assert (quote["row"], quote["when"], quote["checked"], quote["operation"]) == (6, "now", "equal", None)
    assert (accepted[0], accepted) == (200, again)
    operation = accepted[1]["operation"]
    assert (operation["state"], operation["charged"]["minor"], operation["differs"]) == ("done", 4750, False)
    assert served.business.invoices() == [7900, 4750]
    trail = [row.actor for row in await served.business.sql.audit("acme") if row.entity == "operation"]
    assert (trail[0].partition(" (")[0], trail[1]) == ("ann", "stripe")


async def test_a_pending_change_is_taken_back(served: Served) -> None:
    _, quote = await served.quote({"cancel": "period_end"})
    await served.accept(quote["id"])
    status, undone = await served.send("DELETE", PENDING)

    assert (status, undone["operation"]["state"], served.business.at_stripe()["cancel_at"]) == (200, "done", None)
    assert (await served.send("DELETE", PENDING))[1]["error"]["code"] == "nothing_pending"


WHO: Final = {
    "": 401, "ingest": 403, "read": 403, "check": 403, "billing": 201, "billing of acme": 201, "billing of globex": 403,
    "operator": 201, "admin": 201,
}  # fmt: skip


async def test_who_may_change_plans(served: Served) -> None:
    quoted = {key: (await served.quote({"plan": "pro"}, key))[0] for key in WHO}
    accepted = {key: (await served.accept("qt_1", key=key))[0] for key in WHO}
    undone = {key: (await served.send("DELETE", PENDING, key=key))[0] for key in WHO}

    assert quoted == WHO
    assert accepted == {key: 404 if status == 201 else status for key, status in WHO.items()}
    assert undone == {key: 409 if status == 201 else status for key, status in WHO.items()}


async def test_only_operators_end_a_subscription_at_once(served: Served) -> None:
    for key, status in (("billing", 403), ("acme", 403), ("operator", 201)):
        made, quote = await served.quote({"cancel": "now"}, key)
        assert made == status
    # Whoever gets to know the quote's id cannot accept what they may not quote.
    status, refused = await served.accept(quote["id"], key="billing")
    assert (status, refused["error"]["code"], served.business.at_stripe()["status"]) == (403, "operator_only", "active")
    assert (await served.accept(quote["id"], key="operator"))[0] == 200


async def test_the_plans_are_listed(served: Served) -> None:
    _, found = await served.send("GET", "plans", key="read")

    assert [plan["id"] for plan in found["plans"]] == ["free@1", "essential@1", "metered@1", "pro@1", "scale@1"]
    assert found["plans"][3]["trial_days"] == 30
    price = found["plans"][3]["prices"][0]
    assert (price["component"], price["interval"], price["currency"], price["quantity"], price["metered"]) == (
        "location", "month", "usd", "locations", False,
    )  # fmt: skip
    assert "149.00" in price["amount"]
    assert (await served.send("GET", "plans", key="ingest"))[0] == 403


BAD: Final[dict[str, tuple[Any, int, str, str]]] = {
    "nothing": ({}, 400, "invalid_input", "plan"),
    "a plan and an end": ({"plan": "pro", "cancel": "period_end"}, 400, "invalid_input", "plan"),
    "an unknown plan": ({"plan": "gold"}, 400, "invalid_input", "plan"),
    "a foreign currency": ({"plan": "pro", "currency": "eur"}, 400, "invalid_input", "currency"),
    "an unknown interval": ({"plan": "pro", "interval": "decade"}, 400, "invalid_input", ""),
    "no such interval": ({"plan": "essential", "interval": "year"}, 400, "invalid_input", "interval"),
    "a quantity of nothing": ({"plan": "pro", "quantities": {"users": 1}}, 400, "invalid_input", "quantities"),
    "a quantity of 0": ({"plan": "pro", "quantities": {"locations": 0}}, 400, "invalid_input", "quantities"),
    "no number": ({"plan": "pro", "used": {"locations": "many"}}, 400, "invalid_input", "used"),
    "another field": ({"plan": "pro", "seats": 1}, 400, "invalid_input", ""),
    "no object": ([1], 400, "invalid_input", ""),
    "the same plan": ({"plan": "essential"}, 409, "nothing_changes", "plan"),
    "no trial": ({"plan": "scale", "trial": True}, 400, "invalid_input", "trial"),
    "too much in use": ({"plan": "free", "used": {"locations": "3"}}, 409, "over_limit", "locations"),
}


async def test_bad_requests_name_the_field_and_the_remedy(served: Served) -> None:
    found = {}
    for name, (body, *_) in BAD.items():
        status, answer = await served.quote(body)
        found[name] = (body, status, answer["error"]["code"], answer["error"].get("field", ""))
        assert len(answer["error"]["message"]) > 10

    assert found == BAD


async def test_old_and_foreign_quotes_are_refused(served: Served) -> None:
    _, quote = await served.quote({"plan": "pro"})
    foreign = await served.send("POST", f"accounts/globex/quotes/{quote['id']}/accept")
    served.business.clock.ms += 15 * MINUTE_MS
    old = await served.accept(quote["id"])

    assert [(status, body["error"]["code"], body["error"]["field"]) for status, body in (foreign, old)] == [
        (404, "no_quote", "quote"), (409, "quote_expired", "quote"),
    ]  # fmt: skip


async def test_a_subscription_that_changed_since_is_refused(served: Served) -> None:
    _, quote = await served.quote({"plan": "pro"})
    route = "POST /v1/subscriptions/{subscription_exposed_id}"
    served.business.stripe.call(route, {"cancel_at_period_end": True}, served.business.subscription)
    status, answer = await served.accept(quote["id"])

    assert (status, answer["error"]["code"], answer["error"]["field"]) == (409, "changed", "cancellation")


async def test_an_answer_that_is_lost_is_202_and_then_200(served: Served) -> None:
    _, quote = await served.quote({"plan": "pro"})
    fault = Fault(FaultKind.SERVER_ERROR_AFTER_COMMIT, count=1, path="/v1/subscriptions")
    served.business.stripe.simulator.faults.add(fault)
    first, second = [await served.accept(quote["id"]) for _ in range(2)]

    assert [(status, body["operation"]["state"]) for status, body in (first, second)] == [(202, "sent"), (200, "done")]
    assert served.business.invoices() == [7900, 4750]


async def test_a_declined_card_is_said(served: Served) -> None:
    await served.business.join("globex", "pm_card_chargeCustomerFail")
    _, quote = await served.send("POST", "accounts/globex/quotes", {"plan": "pro"})
    status, answer = await served.send("POST", f"accounts/globex/quotes/{quote['id']}/accept")

    assert (status, answer["error"]["code"]) == (409, "change_failed")
    assert "card" in answer["error"]["message"]


async def test_the_same_idempotency_key_is_the_same_quote(served: Served) -> None:
    quotes = [await served.quote({"plan": "pro"}, idempotency_key="one") for _ in range(2)]
    other = await served.quote({"plan": "scale"}, idempotency_key="one")
    long = await served.quote({"plan": "pro"}, idempotency_key="x" * 257)

    assert quotes[0] == quotes[1]
    assert [(status, body["error"]["field"]) for status, body in (other, long)] == [(400, "Idempotency-Key")] * 2


async def test_stripe_away_is_no_quote(served: Served) -> None:
    fault = Fault(FaultKind.SERVER_ERROR, count=1, path="/v1/invoices/create_preview")
    served.business.stripe.simulator.faults.add(fault)

    assert (await served.quote({"plan": "pro"}))[0] == 503


async def test_a_gateway_without_stripe_says_so(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        answer = await gateway.client.get("/v1/plans", headers=gateway.bearer("read"))

    assert (answer.status_code, answer.json()["error"]["code"]) == (501, "not_configured")


def test_every_refusal_is_documented() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "plan-changes.md").read_text()

    assert [code.value for code in RefusalCode if f"`{code.value}`" not in page] == []


CHECKOUT: Final = "accounts/initech/checkout"
PORTAL: Final = "accounts/initech/portal"
BUY: Final = {"plan": "pro", "return_url": "https://app.example/billing"}


async def test_an_account_without_a_subscription_gets_a_page(served: Served) -> None:
    """The same Idempotency-Key gets the same page; a quote that was shown before leads to a page too."""
    await served.business.join("initech", "")
    status, first = await served.send("POST", CHECKOUT, BUY, idempotency_key="one")
    again = await served.send("POST", CHECKOUT, BUY, idempotency_key="one")
    _, quote = await served.send("POST", "accounts/initech/quotes", {"plan": "pro", "trial": True})
    _, trial = await served.send("POST", CHECKOUT, {"quote": quote["id"], "return_url": BUY["return_url"]})
    refused = await served.send("POST", f"accounts/initech/quotes/{quote['id']}/accept")

    assert (status, again) == (201, (201, first))
    assert first["url"] == first["quote"]["operation"]["checkout_url"]
    assert (first["quote"]["row"], first["quote"]["due_now"]["minor"]) == (1, 14900)
    assert quote["words"] == (
        "You will be charged nothing today. Your trial goes on until March 12 with Pro, and your next invoice on "
        "March 12 will be $149.00."
    )
    assert (trial["quote"]["row"], trial["quote"]["due_now"]["minor"], trial["url"] != first["url"]) == (3, 0, True)
    # It is accepted already, so the answer says how far it is.
    assert (refused[0], refused[1]["operation"]["checkout_url"]) == (200, trial["url"])


async def test_a_quote_that_leads_to_a_page_is_not_accepted_without_one(served: Served) -> None:
    await served.business.join("initech", "")
    _, quote = await served.send("POST", "accounts/initech/quotes", {"plan": "pro"})
    status, answer = await served.send("POST", f"accounts/initech/quotes/{quote['id']}/accept")

    assert (status, answer["error"]["code"], answer["error"]["field"]) == (409, "checkout", "return_url")


async def test_a_page_of_the_portal(served: Served) -> None:
    await served.business.join("initech", "")
    body = {"return_url": "https://app.example/billing", "only_card": True}
    status, answer = await served.send("POST", PORTAL, body)

    assert (status, "/_simulator/portal/" in answer["url"]) == (201, True)
    nobody = await served.send("POST", "accounts/nobody/portal", body)
    assert (nobody[0], nobody[1]["error"]["code"]) == (409, "no_customer")


BAD_PAGES: Final[dict[str, tuple[str, Any, int, str, str]]] = {
    "no address": (CHECKOUT, {"plan": "pro"}, 400, "invalid_input", ""),
    "a script": (CHECKOUT, {**BUY, "return_url": "javascript:alert(1)"}, 400, "invalid_input", "return_url"),
    "no plan": (CHECKOUT, {"return_url": BUY["return_url"]}, 400, "invalid_input", "plan"),
    "an end": (CHECKOUT, {**BUY, "plan": "", "cancel": "period_end"}, 400, "invalid_input", "plan"),
    "both": (CHECKOUT, {**BUY, "quote": "qt_1"}, 400, "invalid_input", "quote"),
    "no such quote": (CHECKOUT, {"quote": "qt_1", "return_url": BUY["return_url"]}, 404, "no_quote", "quote"),
    "a subscription": ("accounts/acme/checkout", BUY, 409, "no_checkout", "plan"),
    "no trial": (CHECKOUT, {**BUY, "plan": "scale", "trial": True}, 400, "invalid_input", "trial"),
    "a portal to nowhere": (PORTAL, {"return_url": ""}, 400, "invalid_input", "return_url"),
}


async def test_bad_requests_for_pages_name_the_field_and_the_remedy(served: Served) -> None:
    await served.business.join("initech", "")
    found = {}
    for name, (path, body, *_) in BAD_PAGES.items():
        status, answer = await served.send("POST", path, body)
        found[name] = (path, body, status, answer["error"]["code"], answer["error"].get("field", ""))

    assert found == BAD_PAGES


async def test_who_may_make_pages(served: Served) -> None:
    """A key of one account makes pages of that account only."""
    await served.business.join("initech", "")
    for path in (CHECKOUT, PORTAL):
        found = {key: (await served.send("POST", path, BUY, key))[0] for key in WHO if key != "billing of acme"}
        wanted = {"operator": 201, "admin": 201, "billing": 201, "": 401}
        if path == PORTAL:
            wanted = {"operator": 400, "admin": 400, "billing": 400, "": 401}
        assert found == {key: wanted.get(key, 403) for key in found}


async def test_a_page_whose_answer_is_lost_is_202_and_then_201(served: Served) -> None:
    await served.business.join("initech", "")
    fault = Fault(FaultKind.RATE_LIMITED, count=1, path="/v1/checkout/sessions", method="POST")
    served.business.stripe.simulator.faults.add(fault)
    first, second = [await served.send("POST", CHECKOUT, BUY, idempotency_key="one") for _ in range(2)]

    assert [(status, bool(body["url"])) for status, body in (first, second)] == [(202, False), (201, True)]
