"""A Stripe object as JSON becomes the rows of the mirror tables (`schemas.side_tables.MIRROR_COLUMNS`).

The fields are those of API version 2026-10-28.endive, the version of stripe-python 16.1.0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Final

from aggregators.instants import days_from_civil
from schemas.billing_events import ObjectKind, ObjectName
from schemas.clock import DAY_MS, SECOND_MS
from schemas.currencies import currency_exponent
from schemas.errors import InvalidInput
from schemas.periods import INSTANT_MAX_MS, INTERVAL_COUNT_MAX, Interval
from schemas.side_tables import PARTS_OF, TABLE_OF, Row
from schemas.stripe_credits import GRANT_KEY

Rows = Mapping[str, Sequence[Row]]

# A column of 64 bits.
_INTEGER_MAX: Final = (1 << 63) - 1
_DECIMAL_DIGITS_MAX: Final = 40
# That of a binding's customer; Stripe's ids are at most as long (docs.stripe.com/upgrades).
_ID_CHARACTERS_MAX: Final = 255


def mirror_rows(name: ObjectName, body: Mapping[str, object] | None) -> Rows:
    """All rows of an object by table: one of its own table, and those of its parts.

    `body` None is an object that Stripe does not have: no rows, and the store marks the row it has as deleted. A
    deleted customer has a row without what names a person. Raises `InvalidInput` with the object's id and the field if
    the body is another object, if a list in it is cut, or if a field has another type than Stripe documents.
    """
    if body is None:
        return {}
    fields = _Fields(name.id, body)
    if (fields.text("object"), fields.text("id")) != (name.kind.value, name.id):
        raise fields.wrong("id", f"is that of another object than the {name.kind} that was asked for")
    row, parts = _READERS[name.kind](fields)
    rows: dict[str, Sequence[Row]] = {TABLE_OF[name.kind]: [row]}
    if name.kind in PARTS_OF:
        rows[PARTS_OF[name.kind][0]] = parts
    return rows


class _Fields:
    """Reads the fields of one JSON object. Every method raises `InvalidInput` for a field of another type.

    A path such as `parent.subscription_details` goes through nested objects; a null on the way is a null at the end.
    """

    def __init__(self, name: str, body: Mapping[str, object], path: str = "") -> None:
        self._name = name
        self._body = body
        self._path = path

    def wrong(self, path: str, problem: str) -> InvalidInput:
        """The error of a field."""
        return InvalidInput(f"{self._name} {self._path}{path}", problem)

    def maybe(self, path: str) -> object:
        """The value at a path, None if it or an object before it is null or absent."""
        value: object = self._body
        for key in path.split("."):
            if value is None:
                return None
            if not isinstance(value, Mapping):
                raise self.wrong(path, "has no JSON object before its last part")
            value = value.get(key)
        return value

    def maybe_text(self, path: str) -> str | None:
        value = self.maybe(path)
        if value is not None and not isinstance(value, str):
            raise self.wrong(path, "is not a text")
        # PostgreSQL stores neither a zero character nor half of a surrogate pair.
        if value is not None and any(ch == "\0" or "\ud800" <= ch <= "\udfff" for ch in value):
            raise self.wrong(path, "has a character that cannot be stored")
        return value

    def text(self, path: str) -> str:
        value = self.maybe_text(path)
        if value is None:
            raise self.wrong(path, "is missing")
        return value

    def maybe_integer(self, path: str) -> int | None:
        value = self.maybe(path)
        if value is not None and (type(value) is not int or not -_INTEGER_MAX <= value <= _INTEGER_MAX):
            raise self.wrong(path, "is not an integer of 64 bits")
        return value if isinstance(value, int) else None

    def integer(self, path: str) -> int:
        value = self.maybe_integer(path)
        if value is None:
            raise self.wrong(path, "is missing")
        return value

    def maybe_ms(self, path: str) -> int | None:
        """A time in seconds as ms."""
        value = self.maybe_integer(path)
        if value is not None and not 0 <= value <= INSTANT_MAX_MS // SECOND_MS:
            raise self.wrong(path, "is not a time in seconds from 1970 to 9999")
        return None if value is None else value * SECOND_MS

    def ms(self, path: str) -> int:
        self.integer(path)
        return self.maybe_ms(path) or 0

    def flag(self, path: str) -> int:
        """A boolean as 0 or 1; 0 if it is null or absent."""
        value = self.maybe(path)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(path, "is not a boolean")
        return int(bool(value))

    def maybe_id(self, path: str) -> str | None:
        """An id, whether the object is expanded or not."""
        value = self.maybe(path)
        found = self.maybe_text(f"{path}.id" if isinstance(value, Mapping) else path)
        if found is not None and not 1 <= len(found) <= _ID_CHARACTERS_MAX:
            raise self.wrong(path, f"does not have 1 to {_ID_CHARACTERS_MAX} characters")
        return found

    def id(self, path: str) -> str:
        value = self.maybe_id(path)
        if value is None:
            raise self.wrong(path, "is missing")
        return value

    def each(self, path: str) -> list[_Fields]:
        """The objects of an array; none if it is null or absent."""
        rows = self.maybe(path)
        if not isinstance(rows, list | None):
            raise self.wrong(path, "is not an array")
        found = []
        for number, row in enumerate(rows or ()):
            if not isinstance(row, Mapping):
                raise self.wrong(f"{path}[{number}]", "is not a JSON object")
            found.append(_Fields(self._name, row, f"{self._path}{path}[{number}]."))
        return found

    def list_of(self, path: str) -> list[_Fields]:
        """The objects of one of Stripe's lists, which must have all its pages."""
        if self.maybe(path) is None:
            raise self.wrong(path, "is missing")
        if self.flag(f"{path}.has_more"):
            raise self.wrong(path, "has more pages than were read")
        return self.each(f"{path}.data")

    def ids(self, path: str) -> list[str]:
        """The ids of an array whose objects may be expanded."""
        rows = self.maybe(path)
        if not isinstance(rows, list | None):
            raise self.wrong(path, "is not an array")
        wrapped = [_Fields(self._name, {"id": row}, f"{self._path}{path}[{n}].") for n, row in enumerate(rows or ())]
        return [row.id("id") for row in wrapped]

    def maybe_decimal(self, path: str) -> str | None:
        """A decimal as text without final zeros. Stripe's JSON has a text, the SDK a `Decimal`."""
        value = self.maybe(path)
        if value is None:
            return None
        try:
            number = Decimal(value) if isinstance(value, str | Decimal) else Decimal("nan")
        except InvalidOperation:
            number = Decimal("nan")
        # The exponent is checked first: the digits of 1E+999999999 would fill the memory.
        if not number.is_finite() or abs(number.adjusted()) > _DECIMAL_DIGITS_MAX or len(str(number)) > 64:
            raise self.wrong(path, "is not a decimal")
        digits = format(number, "f")
        return digits.rstrip("0").rstrip(".") if "." in digits else digits

    def sum_of(self, path: str, field: str) -> int:
        """The sum of an integer field of the objects of an array."""
        return sum(row.integer(field) for row in self.each(path))

    def inclusive(self, path: str) -> int:
        """The sum of the taxes of an array that are a part of the amount."""
        return sum(row.integer("amount") for row in self.each(path) if row.maybe_text("tax_behavior") == "inclusive")


_Read = tuple[Row, Sequence[Row]]


def _customer(fields: _Fields) -> _Read:
    deleted = fields.flag("deleted")
    return {
        "id": fields.text("id"),
        "email": fields.maybe_text("email"),
        "currency": fields.maybe_text("currency"),
        "default_payment_method": fields.maybe_id("invoice_settings.default_payment_method"),
        "country": fields.maybe_text("address.country"),
        "tax_exempt": fields.maybe_text("tax_exempt"),
        "created_ms": fields.maybe_ms("created") if deleted else fields.ms("created"),
        "deleted": deleted,
    }, [_payment_method(each, fields.text("id")) for each in fields.each("payment_methods.data")]


def _payment_method(fields: _Fields, customer: str) -> Row:
    """A payment method. A card is good until the end of its last month, in UTC here."""
    month, year = fields.maybe_integer("card.exp_month"), fields.maybe_integer("card.exp_year")
    expires_ms = None
    if month is not None and year is not None and 1 <= month <= 12 and 1970 <= year <= 9_000:
        expires_ms = days_from_civil(year + month // 12, month % 12 + 1, 1) * DAY_MS
    return {"id": fields.id("id"), "customer_id": customer, "type": fields.maybe_text("type"), "expires_ms": expires_ms}


def _subscription(fields: _Fields) -> _Read:
    items = fields.list_of("items")
    paused = fields.maybe_text("status_details.paused.subscription.type")
    return {
        "id": fields.text("id"),
        "customer_id": fields.id("customer"),
        "status": fields.text("status"),
        "billing_mode": fields.text("billing_mode.type"),
        "collection_method": fields.text("collection_method"),
        "currency": fields.text("currency"),
        "anchor_ms": fields.ms("billing_cycle_anchor"),
        "start_ms": fields.ms("start_date"),
        "trial_end_ms": fields.maybe_ms("trial_end"),
        "cancel_at_ms": fields.maybe_ms("cancel_at"),
        "ended_ms": fields.maybe_ms("ended_at"),
        "pause_reason": paused or fields.maybe_text("pause_collection.behavior"),
        "schedule_id": fields.maybe_id("schedule"),
        "pending_update_until_ms": fields.maybe_ms("pending_update.expires_at"),
        "latest_invoice_id": fields.maybe_id("latest_invoice"),
        "default_payment_method": fields.maybe_id("default_payment_method"),
        "discounts_json": _json(_discounts(fields)),
        "deleted": 0,
        "cancellation_reason": fields.maybe_text("cancellation_details.reason"),
    }, [_item(item, fields.text("id")) for item in items]


def _discounts(fields: _Fields) -> list[object]:
    """The discounts of a subscription with their coupons; the id alone of one whose coupon the answer does not have."""
    rows = fields.maybe("discounts")
    whole = isinstance(rows, list) and all(isinstance(row, Mapping) and row.get("source") for row in rows)
    return [_discount(each) for each in fields.each("discounts")] if whole else list(fields.ids("discounts"))


def _discount(fields: _Fields) -> object:
    if not isinstance(fields.maybe("source.coupon"), Mapping):
        return fields.text("id")
    percent = fields.maybe("source.coupon.percent_off")
    return {
        "id": fields.text("id"),
        "coupon": fields.id("source.coupon"),
        "percent": None if percent is None else format(Decimal(str(percent)).normalize(), "f"),
        "amount_minor": fields.maybe_integer("source.coupon.amount_off"),
        "currency": fields.maybe_text("source.coupon.currency"),
        "duration": fields.text("source.coupon.duration"),
        "start_ms": fields.ms("start"),
        "end_ms": fields.maybe_ms("end"),
    }


def _item(fields: _Fields, subscription: str) -> Row:
    return {
        "id": fields.text("id"),
        "subscription_id": subscription,
        "price_id": fields.id("price"),
        "meter_id": fields.maybe_id("price.recurring.meter"),
        "usage_type": fields.text("price.recurring.usage_type"),
        "interval": _interval(fields, "price.recurring.interval"),
        "interval_count": _interval_count(fields, "price.recurring.interval_count"),
        "quantity": fields.maybe_integer("quantity"),
        "period_start_ms": fields.ms("current_period_start"),
        "period_end_ms": fields.ms("current_period_end"),
    }


def _interval(fields: _Fields, path: str) -> str:
    text = fields.text(path)
    if text not in set(Interval):
        raise fields.wrong(path, f"is none of {', '.join(Interval)}")
    return text


def _interval_count(fields: _Fields, path: str) -> int:
    count = fields.integer(path)
    if not 1 <= count <= INTERVAL_COUNT_MAX:
        raise fields.wrong(path, f"is not from 1 to {INTERVAL_COUNT_MAX}")
    return count


def _schedule(fields: _Fields) -> _Read:
    phases = [_phase(phase) for phase in fields.each("phases")]
    if not phases:
        raise fields.wrong("phases", "is empty")
    return {
        "id": fields.text("id"),
        "customer_id": fields.id("customer"),
        "subscription_id": fields.maybe_id("subscription"),
        "status": fields.text("status"),
        "end_behavior": fields.text("end_behavior"),
        "phases_json": _json(phases),
        "deleted": 0,
    }, ()


def _phase(fields: _Fields) -> dict[str, object]:
    """A phase as JSON: when, whether it moves the anchor, and which prices in which quantity."""
    return {
        "start_ms": fields.ms("start_date"),
        "end_ms": fields.maybe_ms("end_date"),
        "trial_end_ms": fields.maybe_ms("trial_end"),
        "anchor": fields.maybe_text("billing_cycle_anchor"),
        "prices": [
            {"price": item.id("price"), "quantity": item.maybe_integer("quantity")} for item in fields.each("items")
        ],
    }


def _invoice(fields: _Fields) -> _Read:
    currency = fields.text("currency")
    return {
        "id": fields.text("id"),
        "customer_id": fields.id("customer"),
        "subscription_id": fields.maybe_id("parent.subscription_details.subscription"),
        "status": fields.text("status"),
        "billing_reason": fields.maybe_text("billing_reason"),
        "currency": currency,
        "exponent": currency_exponent(currency),
        "subtotal_minor": fields.integer("subtotal"),
        "tax_minor": fields.sum_of("total_taxes", "amount"),
        "total_minor": fields.integer("total"),
        "remaining_minor": fields.integer("amount_remaining"),
        "attempt_count": fields.integer("attempt_count"),
        "next_attempt_ms": fields.maybe_ms("next_payment_attempt"),
        "created_ms": fields.ms("created"),
        "finalizes_ms": fields.maybe_ms("automatically_finalizes_at"),
        "finalized_ms": fields.maybe_ms("status_transitions.finalized_at"),
        "paid_ms": fields.maybe_ms("status_transitions.paid_at"),
        "hosted_url": fields.maybe_text("hosted_invoice_url"),
        "deleted": 0,
        "decline_code": fields.maybe_text("last_payment_error.decline_code"),
        "finalization_error": _finalization_error(fields),
        "number": fields.maybe_text("number"),
        "paid_minor": fields.integer("amount_paid"),
        "voided_ms": fields.maybe_ms("status_transitions.voided_at"),
        "uncollectible_ms": fields.maybe_ms("status_transitions.marked_uncollectible_at"),
    }, [_line(line, fields.text("id")) for line in fields.list_of("lines")]


def _finalization_error(fields: _Fields) -> str | None:
    """Why a draft cannot become final. Stripe keeps the last error of an invoice that has become so."""
    if fields.text("status") != "draft":
        return None
    return fields.maybe_text("last_finalization_error.code") or fields.maybe_text("last_finalization_error.type")


def _line(fields: _Fields, invoice: str) -> Row:
    quantity = fields.maybe_integer("quantity")
    return {
        "id": fields.text("id"),
        "invoice_id": invoice,
        "item_id": fields.maybe_id("parent.subscription_item_details.subscription_item"),
        "price_id": fields.maybe_id("pricing.price_details.price"),
        "is_proration": fields.flag("parent.subscription_item_details.proration")
        | fields.flag("parent.invoice_item_details.proration"),
        "quantity": fields.maybe_decimal("quantity_decimal") or (None if quantity is None else str(quantity)),
        "amount_minor": fields.integer("amount"),
        "discount_minor": fields.sum_of("discount_amounts", "amount"),
        "tax_minor": fields.sum_of("taxes", "amount"),
        "start_ms": fields.ms("period.start"),
        "end_ms": fields.ms("period.end"),
        "inclusive_tax_minor": fields.inclusive("taxes"),
        "credit_minor": sum(
            each.integer("amount")
            for each in fields.each("pretax_credit_amounts")
            if each.maybe_text("type") == "credit_balance_transaction"
        ),
    }


def _credit_grant(fields: _Fields) -> _Read:
    """A credit grant. `prices_json`: the prices whose usage it pays, an empty list for all metered ones."""
    currency = fields.text("amount.monetary.currency")
    return {
        "id": fields.text("id"),
        "customer_id": fields.id("customer"),
        "name": fields.maybe_text("name"),
        "category": fields.text("category"),
        "currency": currency,
        "exponent": currency_exponent(currency),
        "amount_minor": fields.integer("amount.monetary.value"),
        "available_minor": fields.maybe_integer("available"),
        "priority": fields.maybe_integer("priority"),
        "prices_json": _json([price.id("id") for price in fields.each("applicability_config.scope.prices")]),
        "source": fields.maybe_text(f"metadata.{GRANT_KEY}"),
        "created_ms": fields.ms("created"),
        "effective_ms": fields.maybe_ms("effective_at"),
        "expires_ms": fields.maybe_ms("expires_at"),
        "voided_ms": fields.maybe_ms("voided_at"),
        "deleted": 0,
    }, ()


def _credit_note(fields: _Fields) -> _Read:
    currency = fields.text("currency")
    refunds = [
        {"refund": each.id("refund"), "amount_minor": each.integer("amount_refunded")}
        for each in fields.each("refunds")
        if each.maybe("refund") is not None
    ]
    return {
        "id": fields.text("id"),
        "customer_id": fields.id("customer"),
        "invoice_id": fields.id("invoice"),
        "number": fields.maybe_text("number"),
        "status": fields.text("status"),
        "reason": fields.maybe_text("reason"),
        "currency": currency,
        "exponent": currency_exponent(currency),
        "tax_minor": fields.sum_of("total_taxes", "amount"),
        "total_minor": fields.integer("total"),
        "refunds_json": _json(refunds),
        "created_ms": fields.ms("created"),
        "effective_ms": fields.maybe_ms("effective_at"),
        "voided_ms": fields.maybe_ms("voided_at"),
        "deleted": 0,
    }, [_credit_note_line(line, fields.text("id")) for line in fields.list_of("lines")]


def _credit_note_line(fields: _Fields, note: str) -> Row:
    return {
        "id": fields.text("id"),
        "credit_note_id": note,
        "invoice_line_id": fields.maybe_id("invoice_line_item"),
        "amount_minor": fields.integer("amount"),
        "discount_minor": fields.integer("discount_amount"),
        "tax_minor": fields.sum_of("taxes", "amount"),
        "inclusive_tax_minor": fields.inclusive("taxes"),
    }


def _given_back(fields: _Fields) -> _Read:
    """A refund or a dispute: the same columns."""
    currency = fields.text("currency")
    return {
        "id": fields.text("id"),
        "customer_id": fields.maybe_id("customer"),
        "invoice_id": fields.maybe_id("invoice"),
        "payment_intent_id": fields.maybe_id("payment_intent"),
        "status": fields.maybe_text("status"),
        "reason": fields.maybe_text("reason"),
        "currency": currency,
        "exponent": currency_exponent(currency),
        "amount_minor": fields.integer("amount"),
        "created_ms": fields.ms("created"),
        "deleted": 0,
    }, ()


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


_READERS: Final = {
    ObjectKind.CUSTOMER: _customer,
    ObjectKind.SUBSCRIPTION: _subscription,
    ObjectKind.SCHEDULE: _schedule,
    ObjectKind.INVOICE: _invoice,
    ObjectKind.CREDIT_GRANT: _credit_grant,
    ObjectKind.CREDIT_NOTE: _credit_note,
    ObjectKind.REFUND: _given_back,
    ObjectKind.DISPUTE: _given_back,
}
