"""The pages that a payer sees: checkout, an invoice, and the portal with the card."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stripe_simulator import payments
from stripe_simulator.errors import ApiError, no_such
from stripe_simulator.invoicing import lines_of
from stripe_simulator.mode import Call, Mode
from stripe_simulator.pages import html as ui
from stripe_simulator.pages.html import ROOT, Html, Sent, attempt, h, join
from stripe_simulator.resources import invoices, payment_methods, portal_configurations, sessions
from stripe_simulator.resources.payment_methods import CARDS, MESSAGES, card_error
from stripe_simulator.resources.subscription_changes import ENDED, items_of
from stripe_simulator.resources.tax import RATES
from stripe_simulator.simulator import Simulator
from stripe_simulator.store import Object

# The two codes of an error by which a bank asks the cardholder.
ASKS: Final = ("authentication_required", "invoice_payment_intent_requires_action")
_REFUSED: Final = MESSAGES[ASKS[0]]
_CARD: Final = {"number": "4242 4242 4242 4242", "expiry": "12 / 34", "cvc": "123"}
_TITLES: Final = {"subscription": "Subscribe", "payment": "Pay", "setup": "Save a card"}


def routes(simulator: Simulator) -> list[Route]:
    """The routes of the hosted pages, below `/_simulator`. A page is found in either mode by the id of its object."""

    def route(name: str, kind: str, run: Callable[[Mode, Object, Request, Sent], Response]) -> Route:
        def find(request: Request, sent: Sent) -> Response:
            for mode in (simulator.test, simulator.live):
                if body := mode.store.edit(kind, request.path_params["id"]):
                    return run(mode, body, request, sent)
            raise no_such("page", request.path_params["id"], "id")

        return ui.route(simulator, f"/{name}/{{id}}", find)

    return [
        route("checkout", sessions.KIND, _checkout),
        route("invoice", "invoice", _invoice),
        route("portal", sessions.PORTAL, _portal),
        Route("/invoice/{id}/pdf", lambda request: ui.back(f"{ROOT}/invoice/{request.path_params['id']}")),
    ]


def _checkout(mode: Mode, session: Object, _request: Request, sent: Sent) -> Response:
    done = str(session["success_url"]).replace("{CHECKOUT_SESSION_ID}", session["id"])
    if session["status"] == "complete":
        return ui.page("Checkout", h("h1", "This checkout is paid."), h("p", ui.link("Continue", done)))
    if session["status"] != "open":
        return ui.page("Checkout", h("h1", "This checkout has expired."))
    payer = {"email": sent.get("email") or session["customer_email"], "name": sent.get("name") or None}

    def complete(method: Object | None, agreed: bool) -> None:
        sessions.complete(mode, mode.fetch(session["object"], session["id"]), method, payer, agreed=agreed)

    if sessions.asks_for_country(mode, session):
        return _country(mode, session, sent, done)
    if sent and sent["action"] == "start":
        error = attempt(mode, lambda: complete(None, agreed=False))
        problem, asks = error.message if error else "", Html()
    else:
        problem, asks = _pay(mode, sent, complete)
    if sent and not problem and not asks:
        return ui.back(done)
    request_body, currency = sessions.request_of(mode, session["id"]), session["currency"]
    total, title = ui.money(session["amount_total"], currency), _TITLES[session["mode"]]
    rows = [(line["description"], ui.money(line["amount"], currency)) for line in request_body["lines"]]
    days = request_body["subscription"].get("trial_period_days")
    if tax := (session["total_details"] or {}).get("amount_tax"):
        rows.append(("Tax", ui.money(tax, currency)))
    summary = "" if session["mode"] == "setup" else join(
        ui.table(("What", "Amount"), rows, "Nothing is due today."),
        h("p", "Due today ", h("strong", total), class_="total"),
        h("p", f"Free for {days} days, then billed automatically.") if days else "",
    )  # fmt: skip
    more = "" if session["customer"] else ui.template("payer", email=payer["email"] or "", name=payer["name"] or "")
    cancel = h("p", ui.link("Cancel", session["cancel_url"])) if session["cancel_url"] else ""
    form = asks or _card_form(mode, f"{title} – {total}" if session["amount_total"] else title, sent, more)
    if not asks and not sessions.needs_card(session):
        form = join(form, ui.template("action", label="Start without a card", action="start", field="card", value=""))
    return _hosted(mode, title, summary, ui.notice(problem), form, cancel, form_to=done)


def _country(mode: Mode, session: Object, sent: Sent, done: str) -> Response:
    """The page before a checkout with automatic tax: where the payer lives decides the amount."""
    problem = ""
    if sent:
        error = attempt(mode, lambda: sessions.move_payer(mode, session, sent.get("country", "")))
        if error is None:
            return ui.back(f"{ROOT}/checkout/{session['id']}")
        problem = error.message
    options = [h("option", f"{code}, {rate} % of tax", value=code) for code, rate in RATES.items()]
    options.append(h("option", "US, no tax", value="US"))
    form = ui.template("country", options=join(*options))
    cancel = h("p", ui.link("Cancel", session["cancel_url"])) if session["cancel_url"] else ""
    return _hosted(mode, "Where do you live?", ui.notice(problem), form, cancel, form_to=done)


def _invoice(mode: Mode, invoice: Object, request: Request, sent: Sent) -> Response:
    if invoice["status"] == "draft":
        raise no_such("page", invoice["id"], "id")

    def pay(method: Object, _agreed: bool) -> None:
        # The card belongs to the customer only if the payment does not fail.
        owned = mode.store.put({**method, "customer": invoice["customer"]})
        try:
            invoices.pay(mode, Call("", {"payment_method": owned["id"]}, (invoice["id"],)))
        except ApiError as error:
            if error.code not in ASKS:
                mode.store.put(method)
            raise

    problem, is_open = "", invoice["status"] in ("open", "uncollectible")
    intent = payments.intent_of(mode, invoice["customer"], invoice["id"]) or {"status": ""}
    asks = is_open and intent["status"] == "requires_action"
    if sent:
        if asks and sent["action"] in ("confirm", "refuse"):
            agrees = sent["action"] == "confirm"
            error = attempt(mode, lambda: payments.authenticate(mode, intent, agrees=agrees))
            problem = error.message if error else "" if agrees else _REFUSED
        else:
            problem, _ = _pay(mode, sent, pay, keep=True)
        if not problem:
            return ui.back(request.url.path)
        invoice, asks = mode.fetch("invoice", invoice["id"]), False
    currency = invoice["currency"]
    rows: list[tuple[object, str]] = [
        (line["description"], ui.money(line["amount"], currency)) for line in lines_of(mode, invoice)
    ]
    for name, amount in {
        "Subtotal": invoice["subtotal"],
        "Discounts": -sum(entry["amount"] for entry in invoice["total_discount_amounts"]),
        "Tax": sum(entry["amount"] for entry in invoice["total_taxes"]),
        "Total": invoice["total"],
        "Paid": invoice["amount_paid"],
    }.items():
        if amount or name == "Total":
            rows.append((h("em", name), ui.money(amount, currency)))
    is_open = invoice["status"] in ("open", "uncollectible")
    verb, amount = ("Due", invoice["amount_remaining"]) if is_open else ("Paid", invoice["amount_paid"])
    shown = ui.money(amount, currency)
    due = h("p", f"{verb} ", h("strong", shown), " ", ui.badge(invoice["status"]), class_="total")
    payer = invoice["customer_name"] or invoice["customer_email"] or invoice["customer"]
    facts = h("p", f"{ui.time(invoice['effective_at'])[:10]}, for {payer}")
    body = (_question("", sent) if asks else _card_form(mode, f"Pay {shown}", sent)) if is_open else ""
    lines = ui.table(("What", "Amount"), rows, "No lines.")
    return _hosted(mode, f"Invoice {invoice['number']}", facts, due, lines, ui.notice(problem), body)


def _portal(mode: Mode, session: Object, request: Request, sent: Sent) -> Response:
    customer, problem, asks, path = session["customer"], "", Html(), request.url.path
    if sent and sent["action"] in ("cancel", "keep"):
        is_set, subscription = sent["action"] == "cancel", sent.get("subscription", "")
        error = attempt(mode, lambda: sessions.cancel_at_period_end(mode, customer, subscription, is_set=is_set))
        if error is None:
            return ui.back(path)
        problem = error.message
    elif sent:
        unpaid: list[Object] = []

        def replace(method: Object, agreed: bool) -> None:
            unpaid[:] = sessions.replace_card(mode, customer, method, agreed=agreed)

        problem, asks = _pay(mode, sent, replace)
        if not problem and not asks and not unpaid:
            return ui.back(f"{path}?saved")
        if unpaid:
            problem = f"The card is saved. The payment of {unpaid[0]['number']} failed: try another card."
    if mode.store.get("customer", customer) is None:
        raise no_such("customer", customer, "id")
    method = mode.store.get("payment_method", payments.default_method(mode, customer) or "")
    card = "{brand} ···· {last4}, expires {exp_month:02}/{exp_year}".format_map(method["card"]) if method else ""
    bills = [
        (ui.link(invoice["number"], f"{ROOT}/invoice/{invoice['id']}"), ui.time(invoice["created"])[:10],
         ui.money(invoice["amount_due"], invoice["currency"]), ui.badge(invoice["status"]))
        for invoice in mode.store.newest("invoice", "customer", customer) if invoice["number"]
    ]  # fmt: skip
    if session["flow"]:
        # One thing to do, and back.
        return _hosted(
            mode, "Your card", ui.notice(problem),
            ui.notice("The new card is saved." if "saved" in request.query_params and not sent else "", "good"),
            h("p", card or "No card is saved."), asks or _card_form(mode, "Save this card", sent),
            h("p", ui.link("Back", session["return_url"])) if session["return_url"] else "",
        )  # fmt: skip
    may_cancel = portal_configurations.may_cancel(mode, session["configuration"])
    plans = [
        _plan(mode, body, may_cancel=may_cancel) for body in mode.store.newest("subscription", "customer", customer)
    ]
    return _hosted(
        mode, "Your subscription", ui.notice(problem),
        ui.notice("The new card is saved." if "saved" in request.query_params and not sent else "", "good"),
        *(plans or [h("p", "There is no subscription.", class_="empty")]),
        h("h2", "Card"), h("p", card or "No card is saved."), asks or _card_form(mode, "Save this card", sent),
        h("h2", "Invoices"), ui.table(("Invoice", "Date", "Amount", "Status"), bills, "No invoice yet."),
        h("p", ui.link("Back", session["return_url"])) if session["return_url"] else "",
    )  # fmt: skip


def _plan(mode: Mode, body: Object, *, may_cancel: bool) -> Html:
    """A subscription, maybe with the button that cancels it at the end of the period or keeps it."""
    items = items_of(mode, body["id"])
    names = [(mode.store.get("product", item["price"]["product"]) or {"name": "?"})["name"] for item in items]
    what = ", ".join(f"{item.get('quantity') or 1} × {name}" for name, item in zip(names, items, strict=True))
    if body["status"] in ENDED:
        return h("section", h("strong", what), " ", ui.badge(body["status"]), class_="plan")
    end = ui.time(body["cancel_at"] or max(item["current_period_end"] for item in items))[:10]
    text, label, action = (f"Renews on {end}.", "Cancel at the end of the period", "cancel")
    if body["cancel_at"] is not None:
        text, label, action = (f"Ends on {end}.", "Keep the plan", "keep")
    change: Html = Html()
    if may_cancel:
        change = ui.template("action", label=label, action=action, field="subscription", value=body["id"])
    return h("section", h("p", h("strong", what), " ", ui.badge(body["status"])), h("p", text), change, class_="plan")


def _pay(mode: Mode, sent: Sent, pay: Callable[[Object, bool], Any], *, keep: bool = False) -> tuple[str, Html]:
    """Pay with the card of the form: what went wrong in words, and the question to the cardholder.

    `pay` gets the payment method, and whether the cardholder has confirmed. Nothing happens without a form.
    """
    if not sent or sent["action"] == "refuse":
        return _REFUSED if sent else "", Html()
    method: Object = {}
    agreed = sent["action"] == "confirm"

    def prepare() -> None:
        method.update(mode.fetch("payment_method", sent.get("method", "")) if agreed else _method(mode, sent))
        if method["customer"]:
            raise card_error("card_declined")

    error = attempt(mode, prepare) or attempt(mode, lambda: pay(method, agreed), keep=keep)
    if error and error.code in ASKS and not agreed:
        return "", _question(method["id"], sent)
    return error.message if error else "", Html()


def _method(mode: Mode, sent: Sent) -> Object:
    """A new payment method of the form. Raises `ApiError` (402) for a card that cannot be."""
    number = re.sub(r"[ -]", "", sent.get("number", ""))
    expiry = re.fullmatch(r"\s*([0-9]{1,2})\s*/?\s*((?:20)?[0-9]{2})\s*", sent.get("expiry", ""))
    if not re.fullmatch(r"[0-9]{12,19}", number):
        raise card_error("incorrect_number")
    if expiry is None:
        raise card_error("invalid_expiry_month")
    if not re.fullmatch(r"[0-9]{3,4}", sent.get("cvc", "")):
        raise card_error("incorrect_cvc")
    card = {"number": number, "exp_month": int(expiry[1]), "exp_year": 2_000 + int(expiry[2]) % 100}
    return payment_methods.create(mode, Call("", {"type": "card", "card": card}))


def _question(method: str, sent: Sent) -> Html:
    """What the bank of the cardholder asks."""
    return ui.template("question", method=method, email=sent.get("email", ""), name=sent.get("name", ""))


def _card_form(mode: Mode, submit: str, sent: Sent, more: object = "") -> Html:
    cards = [
        (card.number, card.decline_code.replace("_", " ") or ("asks to confirm" if card.authentication else "succeeds"))
        for card in CARDS.values()
    ]
    # In test mode a person pays by clicking.
    known = {} if mode.livemode else _CARD
    values = {name: sent.get(name, known.get(name, "")) for name in ("number", "expiry", "cvc")}
    return ui.template("card", submit=submit, more=more, cards=ui.table(("Number", "Charges"), cards, ""), **values)


def _hosted(mode: Mode, title: str, *children: object, form_to: str = "") -> Response:
    banner = "" if mode.livemode else h("p", ui.badge("test mode"))
    return ui.page(title, h("article", h("h1", title), banner, *children), form_to=form_to)
