"""A person uses the simulator's pages in a real browser: at two widths, with scripts and without."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import stripe
from playwright.sync_api import Browser

from tests.services.browser import Visitor
from tests.services.stripe import TEST_KEY, simulator_process

NEW_YEAR_S = 1_798_761_600
CARD = {"number": "4242 4242 4242 4242", "expiry": "12 / 34", "cvc": "123"}
EVIL = "<script>alert(1)</script> & Söhne"


class _Shop(BaseHTTPRequestHandler):
    """The caller of Stripe: the pages after a checkout, and the receiver of webhooks."""

    def do_GET(self) -> None:  # the library's name
        """The page after a checkout."""
        self._answer(200, b"<!DOCTYPE html><link rel=icon href=data:,><title>Shop</title><h1>Back in the shop</h1>")

    def do_POST(self) -> None:
        """A webhook: only `/up` takes it."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200 if self.path == "/up" else 500, b"")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Be silent."""


class World(NamedTuple):
    """A simulator with its client, the caller's site, and somebody at a browser."""

    url: str
    api: Any
    shop: str
    visitor: Visitor

    def go(self, path: str) -> None:
        """Open a page of the simulator."""
        self.visitor.page.goto(f"{self.url}/_simulator/{path}")

    def price(self, amount: int, **fields: Any) -> str:
        """A monthly price, or one with other fields."""
        recurring: dict[str, Any] = fields or {"recurring": {"interval": "month"}}
        params = {"currency": "usd", "unit_amount": amount, "product_data": {"name": "Pro plan"}, **recurring}
        return str(self.api.prices.create(params)["id"])

    def customer(self, card: str, **fields: Any) -> str:
        """A customer with a card."""
        customer = self.api.customers.create({"name": EVIL, "email": "bill@acme.example", **fields})["id"]
        method = self.api.payment_methods.attach(card, {"customer": customer})["id"]
        self.api.customers.update(customer, {"invoice_settings": {"default_payment_method": method}})
        return str(customer)

    def checkout(self, **params: Any) -> str:
        """A checkout session, whose page the visitor opens."""
        urls = {"success_url": f"{self.shop}/done?id={{CHECKOUT_SESSION_ID}}", "cancel_url": f"{self.shop}/canceled"}
        session = self.api.checkout.sessions.create({**urls, **params})
        self.visitor.page.goto(session["url"])
        return str(session["id"])

    def pay(self, number: str, button: str) -> None:
        """Fill the card form in and send it."""
        self.visitor.fill(**{**CARD, "number": number})
        self.visitor.press(button)


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One simulator for the module."""
    with simulator_process(tmp_path_factory.mktemp("pages")) as url:
        yield url


@pytest.fixture(scope="module")
def shop() -> Iterator[str]:
    """The caller's site, at another origin."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Shop)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(params=[(1280, True), (420, False)], ids=["wide", "narrow without scripts"])
def world(request: pytest.FixtureRequest, browser: Browser, simulator: str, shop: str) -> Iterator[World]:
    """Somebody at a browser. Fails on an error of the console or a request to another host."""
    visitor = Visitor(browser, request.param[0], scripts=request.param[1])
    bases = {"api": simulator, "connect": simulator, "files": simulator, "meter_events": simulator}
    client = stripe.StripeClient(TEST_KEY, base_addresses=bases)  # type: ignore[arg-type]  # a TypedDict of the SDK
    yield World(simulator, client.v1, shop, visitor)
    visitor.close()
    assert visitor.errors == []
    assert visitor.hosts <= {simulator.removeprefix("http://"), shop.removeprefix("http://")}


def test_checkout_subscribes_and_returns(world: World) -> None:
    """A person pays for a plan: a wrong and a declined card in words, then the caller's page."""
    price = world.price(4_900)
    session = world.checkout(mode="subscription", line_items=[{"price": price, "quantity": 2}])
    world.visitor.look("checkout")
    assert "98.00 USD" in world.visitor.text()

    world.visitor.fill(email="new@acme.example", name=EVIL)
    for number, words in (
        ("4242 4242 4242 4241", "Your card number is incorrect."),
        ("4000 0000 0000 9995", "Your card has insufficient funds."),
        ("4000 0000 0000 0341", "Your card was declined."),
    ):
        world.pay(number, "Subscribe")
        assert words in world.visitor.text()
    world.visitor.look("checkout-declined")
    assert world.api.subscriptions.list({"price": price})["data"] == []
    world.pay("4242424242424242", "Subscribe")

    assert world.visitor.page.url == f"{world.shop}/done?id={session}"
    done = world.api.checkout.sessions.retrieve(session, {"expand": ["subscription", "invoice", "customer"]})
    assert (done["status"], done["payment_status"], done["amount_total"]) == ("complete", "paid", 9_800)
    assert (done["subscription"]["status"], done["invoice"]["amount_paid"]) == ("active", 9_800)
    assert done["customer"]["email"] == "new@acme.example"
    world.go(f"checkout/{session}")
    assert "This checkout is paid." in world.visitor.text()


@pytest.mark.parametrize("number", ["4000002760003184", "4000002500003155"], ids=["always asks", "asks once"])
def test_checkout_with_a_card_that_asks(world: World, number: str) -> None:
    """The bank asks the cardholder, who refuses and then confirms; nothing is bought before."""
    session = world.checkout(mode="payment", line_items=[{"price": world.price(1_200, metadata={}), "quantity": 3}])
    world.visitor.fill(email="a@acme.example")
    world.pay(number, "Pay")
    assert "Your bank asks you to confirm" in world.visitor.text()
    world.visitor.look("bank")
    world.visitor.press("Refuse")
    assert "requires authentication" in world.visitor.text()
    assert world.api.checkout.sessions.retrieve(session)["status"] == "open"

    world.pay(number, "Pay")
    world.visitor.press("Confirm")

    assert "Back in the shop" in world.visitor.text()
    done = world.api.checkout.sessions.retrieve(session, {"expand": ["payment_intent"]})
    assert (done["status"], done["payment_intent"]["amount_received"]) == ("complete", 3_600)


def test_checkout_without_an_amount(world: World) -> None:
    """A trial and a saved card cost nothing today."""
    customer = world.customer("pm_card_visa")
    trial = world.checkout(
        mode="subscription", customer=customer, subscription_data={"trial_period_days": 14},
        line_items=[{"price": world.price(4_900), "quantity": 1}],
    )  # fmt: skip
    assert "Free for 14 days" in world.visitor.text()
    world.visitor.look("checkout-trial")
    world.pay("5555 5555 5555 4444", "Subscribe")
    setup = world.checkout(mode="setup", currency="usd", customer=customer)
    world.pay("4242424242424242", "Save a card")

    first = world.api.checkout.sessions.retrieve(trial, {"expand": ["subscription"]})
    assert (first["payment_status"], first["subscription"]["status"]) == ("no_payment_required", "trialing")
    second = world.api.checkout.sessions.retrieve(setup, {"expand": ["setup_intent"]})
    assert (second["amount_total"], second["setup_intent"]["status"]) == (None, "succeeded")


def test_checkout_of_a_trial_without_a_card(world: World) -> None:
    """Where no card is needed, a button begins the trial; a card can be given all the same."""
    customer = world.api.customers.create({"email": "a@acme.example"})["id"]
    session = world.checkout(
        mode="subscription", customer=customer, payment_method_collection="if_required",
        subscription_data={"trial_period_days": 14}, line_items=[{"price": world.price(4_900), "quantity": 1}],
    )  # fmt: skip
    world.visitor.look("checkout-without-a-card")
    world.visitor.press("Start without a card")

    assert "Back in the shop" in world.visitor.text()
    done = world.api.checkout.sessions.retrieve(session, {"expand": ["subscription"]})
    assert (done["subscription"]["status"], done["subscription"]["default_payment_method"]) == ("trialing", None)


def test_checkout_asks_for_the_country_of_the_tax(world: World) -> None:
    """The amount follows from the country, and the customer keeps it."""
    customer = world.api.customers.create({"email": "a@acme.example"})["id"]
    session = world.checkout(
        mode="subscription", customer=customer, automatic_tax={"enabled": True},
        customer_update={"address": "auto", "name": "auto"}, tax_id_collection={"enabled": True},
        line_items=[{"price": world.price(10_000), "quantity": 1}],
    )  # fmt: skip
    world.visitor.look("checkout-country")
    world.visitor.page.locator("[name=country]").select_option("FR")
    world.visitor.press("Continue")
    assert "120.00 USD" in world.visitor.text()
    world.visitor.look("checkout-tax")
    world.pay("4242424242424242", "Subscribe")

    done = world.api.checkout.sessions.retrieve(session, {"expand": ["invoice", "customer"]})
    assert (done["invoice"]["total"], done["customer"]["address"]["country"]) == (12_000, "FR")


def test_the_portal_of_a_configuration(world: World) -> None:
    """Nobody cancels where the configuration does not let them, and the flow for the card has the card alone."""
    customer = world.customer("pm_card_visa")
    world.api.subscriptions.create({"customer": customer, "items": [{"price": world.price(2_000)}]})
    features = {"payment_method_update": {"enabled": True}, "subscription_cancel": {"enabled": False}}
    made = world.api.billing_portal.configurations.create({"features": features})["id"]
    params = {"customer": customer, "configuration": made, "return_url": f"{world.shop}/account"}
    world.visitor.page.goto(world.api.billing_portal.sessions.create(params)["url"])
    assert "Renews on" in world.visitor.text()
    assert "Cancel at the end" not in world.visitor.text()

    flow = {**params, "flow_data": {"type": "payment_method_update"}}
    world.visitor.page.goto(world.api.billing_portal.sessions.create(flow)["url"])
    assert "Renews on" not in world.visitor.text()
    world.visitor.look("portal-card")
    world.pay("5555 5555 5555 4444", "Save this card")
    assert "The new card is saved." in world.visitor.text()
    world.visitor.press("Back")
    assert world.visitor.page.url == f"{world.shop}/account"


def test_checkout_can_be_left_and_expires(world: World) -> None:
    """The link back is the caller's, and an expired session takes no card."""
    session = world.checkout(mode="subscription", line_items=[{"price": world.price(100), "quantity": 1}])
    world.visitor.press("Cancel")
    assert world.visitor.page.url == f"{world.shop}/canceled"
    world.api.checkout.sessions.expire(session)
    world.go(f"checkout/{session}")
    assert "This checkout has expired." in world.visitor.text()


def test_invoice_is_paid_on_its_page(world: World) -> None:
    """Amount and lines, a decline that counts as an attempt, then the paid state."""
    customer = world.customer("pm_card_chargeCustomerFail")
    item = {"price": world.price(4_900), "quantity": 3}
    subscription = world.api.subscriptions.create({"customer": customer, "items": [item]})
    invoice = world.api.invoices.retrieve(subscription["latest_invoice"])
    assert (invoice["status"], invoice["attempt_count"]) == ("open", 1)
    world.visitor.page.goto(invoice["hosted_invoice_url"])
    assert "Due 147.00 USD" in world.visitor.text()
    assert EVIL in world.visitor.text()
    world.visitor.look("invoice")

    world.pay("4000 0000 0000 0002", "Pay")
    assert "Your card was declined." in world.visitor.text()
    assert world.api.invoices.retrieve(invoice["id"])["attempt_count"] == 2
    world.pay("4000 0027 6000 3184", "Pay")
    assert "Your bank asks you to confirm" in world.visitor.text()
    world.visitor.page.goto(invoice["hosted_invoice_url"])
    world.visitor.press("Confirm")

    assert "Paid 147.00 USD" in world.visitor.text()
    world.visitor.look("invoice-paid")
    assert world.api.invoices.retrieve(invoice["id"])["amount_paid"] == 14_700
    assert world.api.subscriptions.retrieve(subscription["id"])["status"] == "active"


def test_new_card_in_the_portal_pays_the_open_invoice_once(world: World) -> None:
    """Golden scenario 20: the old card is declined, the new one pays at once and is used from then on."""
    customer = world.customer("pm_card_chargeCustomerFail")
    item = {"price": world.price(2_000), "quantity": 1}
    subscription = world.api.subscriptions.create({"customer": customer, "items": [item]})
    portal = world.api.billing_portal.sessions.create({"customer": customer, "return_url": f"{world.shop}/account"})
    world.visitor.page.goto(portal["url"])
    world.visitor.look("portal")

    world.pay("4000 0000 0000 0069", "Save this card")
    assert "Your card has expired." in world.visitor.text()
    world.pay("4000 0000 0000 0341", "Save this card")
    assert "The card is saved. The payment of" in world.visitor.text()
    world.pay("4000 0025 0000 3155", "Save this card")
    world.visitor.press("Confirm")
    assert "The new card is saved." in world.visitor.text()
    world.visitor.look("portal-saved")

    (invoice,) = world.api.invoices.list({"customer": customer})["data"]
    assert (invoice["status"], invoice["amount_paid"]) == ("paid", 2_000)
    (paid,) = world.api.events.list({"type": "payment_intent.succeeded", "limit": 1})["data"]
    assert paid["data"]["object"]["customer"] == customer
    settings = world.api.customers.retrieve(customer)["invoice_settings"]
    card = world.api.payment_methods.retrieve(settings["default_payment_method"])["card"]
    assert card["last4"] == "3155"

    world.visitor.press("Cancel at the end of the period")
    assert world.api.subscriptions.retrieve(subscription["id"])["cancel_at_period_end"] is True
    assert "Ends on" in world.visitor.text()
    world.visitor.press("Keep the plan")
    assert world.api.subscriptions.retrieve(subscription["id"])["cancel_at_period_end"] is False
    world.visitor.press("Back")
    assert world.visitor.page.url == f"{world.shop}/account"


def test_operator_sees_and_advances(world: World) -> None:
    """Objects, an object, the timeline with deliveries, and a clock that a button advances."""
    hooks = [
        world.api.webhook_endpoints.create({"url": f"{world.shop}/{path}", "enabled_events": ["*"]})["id"]
        for path in ("up", "down")
    ]
    clock = world.api.test_helpers.test_clocks.create({"frozen_time": NEW_YEAR_S, "name": "Year 2027"})["id"]
    customer = world.customer("pm_card_visa", test_clock=clock)
    world.api.subscriptions.create({"customer": customer, "items": [{"price": world.price(4_900)}]})

    world.go("")
    world.visitor.look("objects")
    world.visitor.press("subscription")
    world.visitor.look("subscriptions")
    world.go("test/objects/customer")
    world.visitor.press(customer)
    assert EVIL in world.visitor.text()
    assert "customer.created" in world.visitor.text()
    world.visitor.look("customer")

    world.visitor.press("Clocks")
    world.visitor.look("clocks")
    for step in ("+1 hour", "+1 day", "+1 month"):
        world.visitor.press(step)
    assert "2027-02-02 01:00:00" in world.visitor.text()
    world.visitor.fill(until="2027-02-28T12:30")
    world.visitor.press("Advance")
    assert "2027-02-28 12:30:00" in world.visitor.text()
    assert len(world.api.invoices.list({"customer": customer})["data"]) == 2
    world.visitor.press("Timeline")
    world.visitor.look("timeline")
    assert "test_helpers.test_clock.ready" in world.visitor.text()
    assert f"{world.shop}/up" in world.visitor.text()
    assert ": 500" in world.visitor.text()
    world.visitor.press("Older")
    world.visitor.press("Newest")
    for hook in hooks:
        world.api.webhook_endpoints.delete(hook)


def test_operator_switches_faults(world: World) -> None:
    """A fault by a form: the API fails, the page says so, and the button ends the fault."""
    world.go("test/faults")
    assert "No fault is on" in world.visitor.text()
    world.visitor.page.locator("[name=kind]").select_option("rate_limited")
    world.visitor.fill(count="-1", path="/v1/customers")
    world.visitor.press("Switch on")
    assert "for ever" in world.visitor.text()
    world.visitor.look("faults")
    with pytest.raises(stripe.RateLimitError):
        world.api.customers.create({"name": "refused"}, {"max_network_retries": 0})
    world.visitor.press("Switch off")
    assert "No fault is on" in world.visitor.text()
    world.api.customers.create({"name": "accepted"})
    world.go("live/")
    assert "Nothing here yet" in world.visitor.text()
    world.visitor.look("empty")
    world.go("live/clocks")
    world.visitor.look("empty-clocks")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("test/object/cus_none", 404), ("test/objects/simulator.signing_keys", 404), ("invoice/in_none", 404),
        ("checkout/x", 404), ("portal/x", 404), ("test/timeline?before=x", 200), (f"test/objects/{'a' * 3_000}", 200),
    ],
    ids=["object", "secret kind", "invoice", "checkout", "portal", "cursor", "long kind"],
)  # fmt: skip
def test_page_that_is_not_there(simulator: str, path: str, status: int) -> None:
    """A page in words, never a traceback."""
    import httpx

    answer = httpx.get(f"{simulator}/_simulator/{path}", trust_env=False)

    assert (answer.status_code, answer.headers["content-type"]) == (status, "text/html; charset=utf-8")
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_form_of_another_site_is_refused(simulator: str) -> None:
    """A site that a person visits cannot switch faults in the background."""
    import httpx

    headers = {"Origin": "http://evil.example"}
    answer = httpx.post(
        f"{simulator}/_simulator/test/faults", headers=headers, data={"kind": "timeout"}, trust_env=False
    )

    assert answer.status_code == 403
    assert httpx.get(f"{simulator}/_simulator/faults", trust_env=False).json()["waiting"] == []


def test_command_prints_the_addresses_of_its_pages(tmp_path: Path) -> None:
    """`tidemark stripe-simulator` runs the simulator alone."""
    from pipeline.local.processes import LocalProcess, python

    command = [*python("pipeline.cli"), "stripe-simulator", "--port", "0"]
    with LocalProcess("the Stripe simulator", command, tmp_path / "simulator.log") as process:
        line = process.wait_line("pages for a browser at ")
        assert line.endswith("/_simulator/")
