"""Pages of checkout and of the portal: one open page for an account, and one subscription whatever happens."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import pytest

from pipeline.changes.operating import PATIENCE_MS, accept, turn
from pipeline.changes.pages import PAGE_MS, portal_page
from pipeline.changes.trials import follow
from schemas.checkout import check_return_url
from schemas.clock import DAY_MS, HOUR_MS, SECOND_MS
from schemas.errors import InvalidInput
from schemas.plan_changes import ChangeKind, OperationState, Refusal, RefusalCode
from tests.worlds.changing import ACME, BACK, CATALOG, Changing
from tests.worlds.ending import Ends

START_MS: Final = int(datetime(2027, 2, 1, tzinfo=UTC).timestamp()) * 1_000
PRO: Final = "pro.v1.location.month.usd"
SESSION: Final = "GET /v1/checkout/sessions/{session}"
TAXED: Final = CATALOG.replace("automatic_tax: false", "automatic_tax: true")


async def without_a_card(catalog: str = CATALOG) -> Changing:
    """An account whose customer has no card."""
    business = Changing(START_MS)
    await business.begin(catalog, card="")
    return business


async def test_an_account_without_a_card_pays_at_stripes_page() -> None:
    """What it pays is what the quote says, and it has the plan as soon as Stripe says so."""
    business = await without_a_card()
    quote = await business.quoted("pro", quantities={"locations": 2})
    refused = await accept(business.parts(), ACME, quote.id, "ann")
    kept, operation = await business.accepted(quote)
    session = business.stripe.call(SESSION, {}, operation.session)

    assert isinstance(refused, Refusal)
    assert (refused.code, refused.field) == (RefusalCode.CHECKOUT, "return_url")
    assert (quote.decided.row, quote.total.minor, quote.ours_minor) == (1, 29800, 29800)
    assert (operation.state, operation.url) == (OperationState.DONE, session["url"])
    assert (session["amount_total"], session["success_url"], session["cancel_url"]) == (29800, BACK, BACK)
    assert session["expires_at"] == (operation.made_ms + PAGE_MS) // SECOND_MS
    assert business.subscriptions() == []

    business.pays(operation.session)
    await business.settle()
    (made,) = business.subscriptions()
    assert (made["status"], made["billing_mode"]["type"], business.bought()) == ("active", "flexible", {(PRO, 2)})
    assert made["metadata"] == {"tidemark_account": ACME, "tidemark_operation": operation.id}
    assert await business.reason("pos") == "included"
    assert not kept.is_differing


async def test_a_page_that_is_left_or_ends_leaves_nothing() -> None:
    """And the account can buy again."""
    business = await without_a_card()
    operation = await business.page("pro")
    business.clock.ms += PAGE_MS
    business.stripe.simulator.catch_up()
    await business.settle()

    assert business.stripe.call(SESSION, {}, operation.session)["status"] == "expired"
    assert (business.subscriptions(), business.invoices()) == ([], [])
    assert (await business.page("pro")).session != operation.session


async def test_a_second_page_ends_the_first() -> None:
    business = await without_a_card()
    first, second = await business.page("pro"), await business.page("essential")
    states = [business.stripe.call(SESSION, {}, each.session)["status"] for each in (first, second)]

    assert states == ["expired", "open"]


async def test_a_purchase_without_a_page_ends_an_open_page() -> None:
    """A card was stored meanwhile, so the second purchase needs no page."""
    business = await without_a_card()
    first = await business.page("pro")
    business.use_card("pm_card_visa")
    await business.changed("essential")

    assert business.stripe.call(SESSION, {}, first.session)["status"] == "expired"
    assert len(business.subscriptions()) == 1


async def test_a_page_that_is_paid_while_another_is_asked_for_stays_the_only_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second page is quoted before the first is paid, and accepted after."""
    business = await without_a_card()
    first = await business.page("pro")
    quote = await business.quoted("essential", by_page=True)
    real = business.client.open_sessions

    async def pays_first(customer: str) -> Any:
        business.pays(first.session)
        return await real(customer)

    monkeypatch.setattr(business.client, "open_sessions", pays_first)
    found = await accept(business.parts(), ACME, quote.id, "ann", BACK)

    assert not isinstance(found, Refusal)
    assert (found[1].state, "a moment ago" in found[1].detail) == (OperationState.FAILED, True)
    assert len(business.subscriptions()) == 1
    assert business.invoices() == [14900]


@pytest.mark.parametrize(("kind", "billed"), [(ChangeKind.PLAN, 14900), (ChangeKind.TRIAL, 0)], ids=["plan", "trial"])
async def test_a_page_whose_process_ends_after_any_call_is_one(kind: ChangeKind, billed: int) -> None:
    """Events come before another process goes on, or after, and then the customer pays once."""
    business, ends, has_ended = await without_a_card(), 0, True
    while has_ended:
        ends += 1
        for is_heard in (False, True):
            await business.join(f"account {ends} {is_heard}", "")
            await business.page("essential")
            quote = await business.quoted("pro", kind, by_page=True)
            has_ended = False
            try:
                await accept(business.parts([ends], after=True), business.account, quote.id, "ann", BACK)
            except Ends:
                has_ended = True
            if is_heard:
                await business.settle()
            business.clock.ms += PATIENCE_MS
            assert await turn(business.parts()) <= has_ended
            operation = await business.sql.plan_changes.operation(quote.id)
            assert operation is not None
            wanted = {"status": "open", "customer": business.customer}
            open_ = list(business.stripe.pages("GET /v1/checkout/sessions", wanted))
            assert (operation.state, [each["id"] for each in open_]) == (OperationState.DONE, [operation.session])
            business.pays(operation.session)
            assert (business.invoices(), business.bought()) == ([billed], {(PRO, 1)})
            await business.settle()
            await follow(business.parts(), business.sql.trials)
            trials = [trial.state.value for trial in await business.sql.trials.listed(business.account)]
            assert trials == (["running"] if kind is ChangeKind.TRIAL else [])
    # The intent, the end of the older page between two notes, the new page between two notes, the end, and nothing.
    assert ends == 9


async def test_the_tax_follows_from_the_address_on_the_page() -> None:
    """The quote has none for a customer without an address; the page asks, and the invoice has it."""
    business = await without_a_card(TAXED)
    quote = await business.quoted("pro")
    _, operation = await business.accepted(quote)
    address = {"address": {"country": "FR"}}
    business.stripe.call("POST /v1/customers/{customer}", address, business.customer)
    business.pays(operation.session)

    assert (quote.total.minor, quote.tax_minor) == (14900, 0)
    assert business.invoices() == [17880]
    assert business.at_stripe()["automatic_tax"]["enabled"]


async def test_scenario_4_a_quote_has_the_tax_of_the_change() -> None:
    """Essential to Pro on February 10 in France: 950 of tax on 4750, 5700 together."""
    business = Changing(START_MS)
    await business.begin(TAXED)
    business.stripe.call("POST /v1/customers/{customer}", {"address": {"country": "FR"}}, business.customer)
    await business.changed("essential")
    await business.settle()
    business.clock.ms += 9 * DAY_MS
    business.stripe.simulator.catch_up()
    quote, _ = await business.changed("pro")

    assert (quote.subtotal_minor, quote.tax_minor, quote.total.minor, quote.ours_minor) == (4750, 950, 5700, 4750)
    assert quote.words.startswith("You will be charged $57.00 today for the remaining 19 days")
    assert "The charge has $9.50 of tax" in quote.words
    assert (business.invoices(), quote.is_differing) == ([9480, 5700], False)


async def test_the_portal_has_only_what_the_product_follows() -> None:
    """One configuration serves all sessions."""
    business = await without_a_card()
    parts = business.parts()
    whole = await portal_page(parts, ACME, BACK, only_card=False)
    card = await portal_page(parts, ACME, BACK, only_card=True)
    (made,) = business.stripe.pages("GET /v1/billing_portal/configurations", {})
    enabled = {name for name, feature in made["features"].items() if feature["enabled"]}

    assert enabled == {"customer_update", "invoice_history", "payment_method_update"}
    assert isinstance(whole, str)
    assert isinstance(card, str)
    assert whole != card
    nobody = await portal_page(parts, "nobody", BACK, only_card=False)
    assert isinstance(nobody, Refusal)
    assert nobody.code is RefusalCode.NO_CUSTOMER


@pytest.mark.parametrize(
    "url",
    ["", "billing", "javascript:alert(1)", "https://", "ftp://a.example", "https://a b", f"https://{'a' * 2048}"],
    ids=["none", "no scheme", "script", "no host", "other scheme", "space", "long"],
)
def test_an_address_to_come_back_to_is_one_of_the_web(url: str) -> None:
    with pytest.raises(InvalidInput, match="return_url"):
        check_return_url(url)


async def test_a_trial_without_a_card_begins_on_the_page() -> None:
    business = await without_a_card()
    operation = await business.page("pro", ChangeKind.TRIAL)
    business.pays(operation.session, "")

    assert business.at_stripe()["status"] == "trialing"


async def test_a_draft_whose_tax_has_no_address_is_listed_until_it_is_final() -> None:
    """The renewal finds an address that no tax follows from: nobody is charged, and a person hears of it."""
    business = Changing(START_MS)
    await business.begin(TAXED)
    route = "POST /v1/customers/{customer}"
    business.stripe.call(route, {"address": {"country": "FR"}}, business.customer)
    await business.changed("pro")
    business.stripe.call(route, {"address": {"country": "ZZ"}}, business.customer)
    business.clock.ms += 28 * DAY_MS + 2 * HOUR_MS
    business.stripe.simulator.catch_up()
    await business.settle()
    (found,) = await business.sql.unfinalized.listed()

    assert (found.account, found.error) == (ACME, "customer_tax_location_invalid")
    assert business.stripe.call("GET /v1/invoices/{invoice}", {}, found.invoice)["status"] == "draft"
    business.stripe.call(route, {"address": {"country": "FR"}}, business.customer)
    business.stripe.call("POST /v1/invoices/{invoice}/finalize", {"auto_advance": True}, found.invoice)
    await business.settle()
    assert await business.sql.unfinalized.count() == 0
    assert business.invoices() == [17880, 17880]
