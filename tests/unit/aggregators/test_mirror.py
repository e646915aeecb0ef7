"""Stripe's objects as rows: what each column is read from, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest

from aggregators.instants import format_instant_ms
from aggregators.mirror import mirror_rows
from schemas.billing_events import ObjectKind, ObjectName
from schemas.currencies import EXPONENTS, currency_exponent
from schemas.errors import InvalidInput
from schemas.side_tables import MIRROR_COLUMNS, PARTS_OF, TABLE_OF
from simulation.stripe_account import StripeAccount
from stripe_simulator.engine.amounts import THREE_DECIMAL, ZERO_DECIMAL, exponent
from tests.worlds.clock import ManualClock

NOW_MS = 1_795_262_400_000
MONTH_MS = 30 * 86_400_000


def change(body: Any, path: str, value: object) -> None:
    """Set a field of a nested body; a number in the path is an index."""
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    for key in parents:
        body = body[key]
    body[last] = value


class Objects:
    """One object of each kind, as the simulator has it."""

    def __init__(self) -> None:
        stripe = StripeAccount(ManualClock(NOW_MS))
        self.meter = stripe.meter()
        self.metered, self.flat = stripe.price(meter=self.meter), stripe.price(amount=2000)
        customer = stripe.customer("pm_card_createDispute")
        subscription = stripe.subscribe(customer, self.metered, self.flat)
        schedule = stripe.schedule(subscription, self.metered)
        body = stripe.read(ObjectName(ObjectKind.SUBSCRIPTION, subscription)) or {}
        paid = {"invoice": body["latest_invoice"], "amount": 300, "refund_amount": 300}
        note = stripe.call("POST /v1/credit_notes", paid)
        (dispute,) = (name.id for name in stripe.listing() if name.kind is ObjectKind.DISPUTE)
        terms = {
            "amount": {"type": "monetary", "monetary": {"currency": "usd", "value": 900}}, "customer": customer,
            "applicability_config": {"scope": {"prices": [{"id": self.metered}]}}, "category": "paid",
        }  # fmt: skip
        self.names = {
            ObjectKind.CREDIT_GRANT: str(stripe.call("POST /v1/billing/credit_grants", terms)["id"]),
            ObjectKind.CREDIT_NOTE: str(note["id"]),
            ObjectKind.REFUND: str(note["refunds"][0]["refund"]),
            ObjectKind.DISPUTE: dispute,
            ObjectKind.CUSTOMER: customer,
            ObjectKind.SUBSCRIPTION: subscription,
            ObjectKind.SCHEDULE: schedule,
            ObjectKind.INVOICE: str(body["latest_invoice"]),
        }
        self._stripe = stripe

    def body(self, kind: ObjectKind, changes: Mapping[str, object] = {}) -> dict[str, Any]:
        """The object as JSON, changed by path."""
        body = self._stripe.read(ObjectName(kind, self.names[kind]))
        assert body is not None
        for path, value in changes.items():
            change(body, path, value)
        return body

    def rows(self, kind: ObjectKind, changes: Mapping[str, object] = {}) -> dict[str, list[dict[str, Any]]]:
        """The rows of the changed object."""
        rows = mirror_rows(ObjectName(kind, self.names[kind]), self.body(kind, changes))
        return {table: [dict(row) for row in found] for table, found in rows.items()}


@pytest.fixture
def objects() -> Objects:
    """A fresh account."""
    return Objects()


@pytest.mark.parametrize("kind", ObjectKind, ids=str)
def test_rows_have_exactly_the_columns_of_their_tables(objects: Objects, kind: ObjectKind) -> None:
    methods = {"data": [{"id": "pm_1", "type": "card", "card": {"exp_month": 2, "exp_year": 2027}}]}
    rows = objects.rows(kind, {"payment_methods": methods} if kind is ObjectKind.CUSTOMER else {})

    assert rows.keys() == {TABLE_OF[kind], *PARTS_OF.get(kind, ())[:1]}
    for table, found in rows.items():
        assert found
        for row in found:
            assert tuple(row) == MIRROR_COLUMNS[table]
            assert all(value is None or type(value) in (int, str) for value in row.values())


def test_a_subscription_and_its_items(objects: Objects) -> None:
    rows = objects.rows(ObjectKind.SUBSCRIPTION)
    (row,) = rows["subscriptions"]
    metered, flat = sorted(rows["subscription_items"], key=lambda item: item["usage_type"] != "metered")

    assert row == {
        "id": objects.names[ObjectKind.SUBSCRIPTION], "customer_id": objects.names[ObjectKind.CUSTOMER],
        "status": "active", "billing_mode": "flexible", "collection_method": "charge_automatically",
        "currency": "usd", "anchor_ms": NOW_MS, "start_ms": NOW_MS, "trial_end_ms": None, "cancel_at_ms": None,
        "ended_ms": None, "pause_reason": None, "schedule_id": objects.names[ObjectKind.SCHEDULE],
        "pending_update_until_ms": None, "latest_invoice_id": objects.names[ObjectKind.INVOICE],
        "default_payment_method": None, "discounts_json": "[]", "deleted": 0,
        "cancellation_reason": None,
    }  # fmt: skip
    assert (metered["price_id"], metered["meter_id"], metered["quantity"]) == (objects.metered, objects.meter, None)
    assert (flat["price_id"], flat["meter_id"], flat["quantity"]) == (objects.flat, None, 1)
    assert (flat["interval"], flat["interval_count"]) == ("month", 1)
    assert (flat["period_start_ms"], flat["period_end_ms"]) == (NOW_MS, NOW_MS + MONTH_MS)


def test_an_invoice_and_its_line(objects: Objects) -> None:
    rows = objects.rows(ObjectKind.INVOICE)
    (row,), (line,) = rows["invoices"], rows["invoice_lines"]

    assert (row["subscription_id"], row["status"]) == (objects.names[ObjectKind.SUBSCRIPTION], "paid")
    assert (row["currency"], row["exponent"], row["subtotal_minor"], row["total_minor"]) == ("usd", 2, 2000, 2000)
    assert (row["finalized_ms"], row["paid_ms"], row["remaining_minor"]) == (NOW_MS, NOW_MS, 0)
    assert (line["amount_minor"], line["quantity"], line["price_id"], line["is_proration"]) == (
        2000,
        "1",
        objects.flat,
        0,
    )
    assert (line["start_ms"], line["end_ms"]) == (NOW_MS, NOW_MS + MONTH_MS)


def test_a_schedule_keeps_what_its_phases_say(objects: Objects) -> None:
    (row,) = objects.rows(ObjectKind.SCHEDULE)["subscription_schedules"]

    assert str(row["phases_json"]).count('"start_ms"') == 2
    assert f'"start_ms":{NOW_MS + MONTH_MS}' in str(row["phases_json"])


def test_what_was_given_back(objects: Objects) -> None:
    """A refund and a dispute name the invoice that was paid, although Stripe's objects do not."""
    (note,), (line,) = objects.rows(ObjectKind.CREDIT_NOTE).values()
    (refund,) = objects.rows(ObjectKind.REFUND)["refunds"]
    (dispute,) = objects.rows(ObjectKind.DISPUTE)["disputes"]
    invoice, customer = objects.names[ObjectKind.INVOICE], objects.names[ObjectKind.CUSTOMER]

    assert {(row["invoice_id"], row["customer_id"]) for row in (note, refund, dispute)} == {(invoice, customer)}
    assert (note["total_minor"], line["amount_minor"], line["invoice_line_id"]) == (300, 300, None)
    assert note["refunds_json"] == f'[{{"amount_minor":300,"refund":"{refund["id"]}"}}]'
    assert (refund["amount_minor"], refund["status"]) == (300, "succeeded")
    assert (dispute["amount_minor"], dispute["status"], dispute["reason"]) == (2000, "needs_response", "fraudulent")


def test_a_discount_has_its_coupon(objects: Objects) -> None:
    """Where the answer has it; see the case of the ids alone below."""
    coupon = {
        "id": "c", "percent_off": 12.5, "amount_off": None, "currency": None, "duration": "repeating",
    }  # fmt: skip
    discount = {"id": "di_1", "source": {"coupon": coupon}, "start": 1_800_000_000, "end": 1_800_086_400}
    (row,) = objects.rows(ObjectKind.SUBSCRIPTION, {"discounts": [discount]})["subscriptions"]
    assert json.loads(row["discounts_json"]) == [
        {
            "id": "di_1", "coupon": "c", "percent": "12.5", "amount_minor": None, "currency": None,
            "duration": "repeating", "start_ms": 1_800_000_000_000, "end_ms": 1_800_086_400_000,
        }
    ]  # fmt: skip


def test_what_taxes_and_credits_are_in_a_line(objects: Objects) -> None:
    """A tax that is a part of the amount is told apart from one that comes on top."""
    line = objects.body(ObjectKind.INVOICE)["lines"]["data"][0]
    taxes = [{"amount": 30, "tax_behavior": "inclusive"}, {"amount": 4, "tax_behavior": "exclusive"}]
    drawn = [{"amount": 5, "type": "credit_balance_transaction"}, {"amount": 7, "type": "discount"}]
    changes = {"lines.data.0": {**line, "taxes": taxes, "pretax_credit_amounts": drawn}}
    (row,) = objects.rows(ObjectKind.INVOICE, changes)["invoice_lines"]
    assert (row["tax_minor"], row["inclusive_tax_minor"], row["credit_minor"]) == (34, 30, 5)


@pytest.mark.parametrize(
    ("kind", "changes", "column", "value"),
    [
        pytest.param(ObjectKind.CUSTOMER, {"address": {"country": "DE"}}, "country", "DE", id="country"),
        pytest.param(
            ObjectKind.CUSTOMER, {"invoice_settings.default_payment_method": {"id": "pm_1"}},
            "default_payment_method", "pm_1", id="expanded",
        ),
        pytest.param(
            ObjectKind.SUBSCRIPTION,
            {"status_details": {"paused": {"subscription": {"type": "pause_requested"}}}, "pause_collection": None},
            "pause_reason", "pause_requested", id="paused",
        ),
        pytest.param(
            ObjectKind.SUBSCRIPTION, {"pause_collection": {"behavior": "void"}}, "pause_reason", "void",
            id="collection paused",
        ),
        pytest.param(
            ObjectKind.SUBSCRIPTION, {"discounts": ["di_1", {"id": "di_2"}]}, "discounts_json", '["di_1","di_2"]',
            id="discounts",
        ),
        pytest.param(
            ObjectKind.SUBSCRIPTION, {"pending_update": {"expires_at": 1_800_000_000}}, "pending_update_until_ms",
            1_800_000_000_000, id="a pending update",
        ),
        pytest.param(ObjectKind.INVOICE, {"total_taxes": [{"amount": 3}, {"amount": 4}]}, "tax_minor", 7, id="taxes"),
        pytest.param(ObjectKind.INVOICE, {"currency": "jpy"}, "exponent", 0, id="no decimals"),
        pytest.param(ObjectKind.INVOICE, {"currency": "isk"}, "exponent", 2, id="Stripe's decimals, not ISO's"),
        pytest.param(ObjectKind.INVOICE, {"currency": "kwd"}, "exponent", 3, id="three decimals"),
        pytest.param(
            ObjectKind.INVOICE, {"parent": {"subscription_details": None}}, "subscription_id", None, id="no parent"
        ),
    ],
)  # fmt: skip
def test_where_a_column_comes_from(
    objects: Objects, kind: ObjectKind, changes: Mapping[str, object], column: str, value: object
) -> None:
    (row,) = objects.rows(kind, changes)[TABLE_OF[kind]]

    assert row[column] == value


@pytest.mark.parametrize(
    ("changes", "column", "value"),
    [
        pytest.param({"quantity_decimal": "1.50"}, "quantity", "1.5", id="text"),
        pytest.param({"quantity_decimal": Decimal("1E+3")}, "quantity", "1000", id="the SDK's decimal"),
        pytest.param({"quantity_decimal": Decimal("0.000000000001")}, "quantity", "0.000000000001", id="12 places"),
        pytest.param({"quantity_decimal": None, "quantity": None}, "quantity", None, id="no quantity"),
        pytest.param({"quantity_decimal": None}, "quantity", "1", id="only a whole quantity"),
        pytest.param({"taxes": [{"amount": 5}], "discount_amounts": [{"amount": 2}]}, "tax_minor", 5, id="tax"),
        pytest.param({"taxes": [], "discount_amounts": [{"amount": 2}]}, "discount_minor", 2, id="discount"),
        pytest.param(
            {"parent": {"invoice_item_details": {"proration": True}}}, "is_proration", 1, id="a proration's item"
        ),
    ],
)  # fmt: skip
def test_where_a_line_s_column_comes_from(
    objects: Objects, changes: Mapping[str, object], column: str, value: object
) -> None:
    body = {f"lines.data.0.{path}": to for path, to in changes.items()}
    (line,) = objects.rows(ObjectKind.INVOICE, body)["invoice_lines"]

    assert line[column] == value


ITEM = "items.data.0"


@pytest.mark.parametrize(
    ("kind", "path", "value", "said"),
    [
        (ObjectKind.CUSTOMER, "id", "cus_other", "id: is that of another object"),
        (ObjectKind.CUSTOMER, "object", "account", "id: is that of another object"),
        (ObjectKind.CUSTOMER, "email", 7, "email: is not a text"),
        (ObjectKind.CUSTOMER, "email", "a\0b", "email: has a character that cannot be stored"),
        (ObjectKind.CUSTOMER, "email", "\ud800", "email: has a character that cannot be stored"),
        (ObjectKind.CUSTOMER, "deleted", "true", "deleted: is not a boolean"),
        (ObjectKind.CUSTOMER, "address", "Berlin", "address.country: has no JSON object before its last part"),
        (ObjectKind.SUBSCRIPTION, "customer", None, "customer: is missing"),
        (ObjectKind.SUBSCRIPTION, "customer", "c" * 256, "customer: does not have 1 to 255 characters"),
        (ObjectKind.SUBSCRIPTION, "trial_end", "soon", "trial_end: is not an integer of 64 bits"),
        (ObjectKind.SUBSCRIPTION, "trial_end", True, "trial_end: is not an integer of 64 bits"),
        (ObjectKind.SUBSCRIPTION, "trial_end", 1 << 63, "trial_end: is not an integer of 64 bits"),
        (ObjectKind.SUBSCRIPTION, "trial_end", -1, "trial_end: is not a time in seconds from 1970 to 9999"),
        (ObjectKind.SUBSCRIPTION, "trial_end", 1 << 50, "trial_end: is not a time in seconds from 1970 to 9999"),
        (ObjectKind.SUBSCRIPTION, "billing_cycle_anchor", None, "billing_cycle_anchor: is missing"),
        (ObjectKind.SUBSCRIPTION, "items", None, "items: is missing"),
        (ObjectKind.SUBSCRIPTION, "items.has_more", True, "items: has more pages than were read"),
        (ObjectKind.SUBSCRIPTION, "items.data", {}, "items.data: is not an array"),
        (ObjectKind.SUBSCRIPTION, ITEM, 1, "items.data[0]: is not a JSON object"),
        (
            ObjectKind.SUBSCRIPTION,
            f"{ITEM}.price",
            "price_1",
            "price.recurring.meter: has no JSON object",
        ),
        (
            ObjectKind.SUBSCRIPTION,
            f"{ITEM}.price.recurring.interval",
            "eon",
            "price.recurring.interval: is none of day",
        ),
        (ObjectKind.SUBSCRIPTION, f"{ITEM}.price.recurring.interval_count", 0, "_count: is not from 1 to 1200"),
        (ObjectKind.SUBSCRIPTION, "discounts", "di_1", "discounts: is not an array"),
        (ObjectKind.SCHEDULE, "phases", [], "phases: is empty"),
        (ObjectKind.SCHEDULE, "phases", "two", "phases: is not an array"),
        (ObjectKind.INVOICE, "lines.has_more", True, "lines: has more pages than were read"),
        (ObjectKind.INVOICE, "total", "20.00", "total: is not an integer of 64 bits"),
        (ObjectKind.INVOICE, "total", 20.5, "total: is not an integer of 64 bits"),
        (ObjectKind.INVOICE, "lines.data.0.quantity_decimal", "many", "quantity_decimal: is not a decimal"),
        (ObjectKind.INVOICE, "lines.data.0.quantity_decimal", "1E+999999999", "quantity_decimal: is not a decimal"),
        (ObjectKind.INVOICE, "lines.data.0.quantity_decimal", 1.5, "quantity_decimal: is not a decimal"),
        (ObjectKind.INVOICE, "total_taxes", [{"amount": None}], "total_taxes[0].amount: is missing"),
    ],
)
def test_a_field_of_another_type_is_refused_by_object_and_field(
    objects: Objects, kind: ObjectKind, path: str, value: object, said: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        objects.rows(kind, {path: value})

    assert said in str(refused.value)
    assert objects.names[kind] in str(refused.value)


def test_a_deleted_customer_keeps_nothing_that_names_a_person(objects: Objects) -> None:
    customer = objects.names[ObjectKind.CUSTOMER]
    body = {"id": customer, "object": "customer", "deleted": True}

    (row,) = mirror_rows(ObjectName(ObjectKind.CUSTOMER, customer), body)["stripe_customers"]

    assert {name: value for name, value in row.items() if value is not None} == {"id": customer, "deleted": 1}


@pytest.mark.parametrize(
    ("card", "expires"),
    [
        ({"exp_month": 2, "exp_year": 2027}, "2027-03-01T00:00:00Z"),
        ({"exp_month": 12, "exp_year": 2027}, "2028-01-01T00:00:00Z"), ({"exp_month": 13, "exp_year": 2027}, None),
        ({"exp_month": 2, "exp_year": 9_001}, None), (None, None),
    ],
    ids=["February", "December", "no month", "no year", "no card"],
)  # fmt: skip
def test_when_a_card_expires(objects: Objects, card: object, expires: str | None) -> None:
    methods = {"data": [{"id": "pm_1", "type": "card", "card": card}]}
    (row,) = objects.rows(ObjectKind.CUSTOMER, {"payment_methods": methods})["payment_methods"]
    shown = row["expires_ms"] and format_instant_ms(row["expires_ms"])
    assert (row["id"], row["customer_id"], shown) == ("pm_1", objects.names[ObjectKind.CUSTOMER], expires)


@pytest.mark.parametrize("kind", ObjectKind, ids=str)
def test_an_absent_object_has_no_rows(kind: ObjectKind) -> None:
    assert mirror_rows(ObjectName(kind, "it_1"), None) == {}


def test_exponents_are_those_of_the_simulator() -> None:
    """Two lists that share no code."""
    assert ZERO_DECIMAL | THREE_DECIMAL <= EXPONENTS.keys()
    for currency in (*EXPONENTS, "new"):
        assert currency_exponent(currency) == exponent(currency)
