"""Compares the mirror in the side tables with Stripe's lists, column by column.

The columns are read from Stripe's objects a second time here: a mistake in the mirror's own reading shows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Final

from reconciler.causes import Cause, Pair
from reconciler.report import Findings, Row
from reconciler.views import Views
from schemas.billing_events import OLD_CHANGE_NO_MORE, ObjectKind
from schemas.clock import DAY_MS, MINUTE_MS, SECOND_MS, Clock
from schemas.errors import InvalidInput, OperatorNeeded, Refused, Transient
from schemas.invoices import StripeInvoices
from schemas.side_tables import PARTS_OF, TABLE_OF, SideTables
from schemas.side_tables import Row as MirrorRow

# The walker reads Stripe's list of events every quarter of an hour, and a step of the mirror takes minutes.
DELAY_MS: Final = 30 * MINUTE_MS
# Older invoices, credit notes, refunds and disputes change no more, and are too many.
INVOICES_MS: Final = 62 * DAY_MS
KNOWN_AT_ONCE: Final = 1_000
RESYNC: Final = "run `tidemark billing resync`; if it stays, the role mirror is stuck"
NO_TABLES: Final = "there are no side tables: TIDEMARK_SQL_URL names no PostgreSQL server"
_KINDS: Final = tuple(ObjectKind)

_Column = str | Callable[[Mapping[str, Any]], object]


def _pause(body: Mapping[str, Any]) -> object:
    return _at(body, "status_details.paused.subscription.type") or _at(body, "pause_collection.behavior")


def _discounts(body: Mapping[str, Any]) -> object:
    return [_id(each) for each in body.get("discounts") or ()]


def _phases(body: Mapping[str, Any]) -> object:
    return [
        [
            phase["start_date"] * SECOND_MS,
            None if phase["end_date"] is None else phase["end_date"] * SECOND_MS,
            [[_id(item["price"]), item.get("quantity")] for item in phase["items"]],
        ]
        for phase in body["phases"]
    ]


def _quantity(body: Mapping[str, Any]) -> object:
    text = str(body.get("quantity_decimal") or ("" if body.get("quantity") is None else body["quantity"]))
    return (text.rstrip("0").rstrip(".") if "." in text else text) or None


def _is_proration(body: Mapping[str, Any]) -> object:
    parent = body["parent"] or {}
    kinds = (parent.get("subscription_item_details"), parent.get("invoice_item_details"))
    return int(any(each and each.get("proration") for each in kinds))


def _sum(path: str) -> Callable[[Mapping[str, Any]], object]:
    return lambda body: sum(each["amount"] for each in body.get(path) or ())


_OF_PAYMENT: Final[Mapping[str, _Column]] = {
    "payment_intent_id": "payment_intent", "status": "status", "reason": "reason", "currency": "currency",
    "amount_minor": "amount", "created_ms": "created",
}  # fmt: skip
# Where a column is in Stripe's object; `_ms` columns are in seconds there.
_COLUMNS: Final[Mapping[str, Mapping[str, _Column]]] = {
    "stripe_customers": {
        "email": "email", "currency": "currency", "default_payment_method": "invoice_settings.default_payment_method",
        "country": "address.country", "tax_exempt": "tax_exempt", "created_ms": "created",
    },
    "subscriptions": {
        "customer_id": "customer", "status": "status", "billing_mode": "billing_mode.type",
        "collection_method": "collection_method", "currency": "currency", "anchor_ms": "billing_cycle_anchor",
        "start_ms": "start_date", "trial_end_ms": "trial_end", "cancel_at_ms": "cancel_at", "ended_ms": "ended_at",
        "pause_reason": _pause, "schedule_id": "schedule", "pending_update_until_ms": "pending_update.expires_at",
        "latest_invoice_id": "latest_invoice", "default_payment_method": "default_payment_method",
        "discounts_json": _discounts, "cancellation_reason": "cancellation_details.reason",
    },
    "subscription_items": {
        "price_id": "price", "meter_id": "price.recurring.meter", "usage_type": "price.recurring.usage_type",
        "interval": "price.recurring.interval", "interval_count": "price.recurring.interval_count",
        "quantity": "quantity", "period_start_ms": "current_period_start", "period_end_ms": "current_period_end",
    },
    "subscription_schedules": {
        "customer_id": "customer", "subscription_id": "subscription", "status": "status",
        "end_behavior": "end_behavior", "phases_json": _phases,
    },
    "invoices": {
        "customer_id": "customer", "subscription_id": "parent.subscription_details.subscription", "status": "status",
        "billing_reason": "billing_reason", "currency": "currency", "subtotal_minor": "subtotal",
        "tax_minor": _sum("total_taxes"), "total_minor": "total", "remaining_minor": "amount_remaining",
        "attempt_count": "attempt_count", "next_attempt_ms": "next_payment_attempt", "created_ms": "created",
        "finalizes_ms": "automatically_finalizes_at", "finalized_ms": "status_transitions.finalized_at",
        "paid_ms": "status_transitions.paid_at", "hosted_url": "hosted_invoice_url", "number": "number",
        "paid_minor": "amount_paid", "voided_ms": "status_transitions.voided_at",
        "uncollectible_ms": "status_transitions.marked_uncollectible_at",
    },
    "invoice_lines": {
        "item_id": "parent.subscription_item_details.subscription_item", "price_id": "pricing.price_details.price",
        "is_proration": _is_proration, "quantity": _quantity, "amount_minor": "amount",
        "discount_minor": _sum("discount_amounts"), "tax_minor": _sum("taxes"), "start_ms": "period.start",
        "end_ms": "period.end",
    },
    "stripe_credit_grants": {
        "customer_id": "customer", "name": "name", "category": "category", "currency": "amount.monetary.currency",
        "amount_minor": "amount.monetary.value", "available_minor": "available", "priority": "priority",
        "source": "metadata.tidemark_grant", "created_ms": "created", "effective_ms": "effective_at",
        "expires_ms": "expires_at", "voided_ms": "voided_at",
    },
    "credit_notes": {
        "customer_id": "customer", "invoice_id": "invoice", "number": "number", "status": "status", "reason": "reason",
        "currency": "currency", "tax_minor": _sum("total_taxes"), "total_minor": "total", "created_ms": "created",
        "effective_ms": "effective_at", "voided_ms": "voided_at",
    },
    "credit_note_lines": {
        "invoice_line_id": "invoice_line_item", "amount_minor": "amount", "discount_minor": "discount_amount",
        "tax_minor": _sum("taxes"),
    },
    "refunds": _OF_PAYMENT,
    "disputes": _OF_PAYMENT,
}  # fmt: skip
_PARTS: Final = {ObjectKind.SUBSCRIPTION: "items", ObjectKind.INVOICE: "lines", ObjectKind.CREDIT_NOTE: "lines"}
_FAILURES: Final = (Transient, Refused, OperatorNeeded, InvalidInput)


@dataclass(frozen=True, slots=True)
class MirrorComparison:
    """Compares the kinds of objects one after the other, the newest objects of each first."""

    views: Views
    clock: Clock
    findings: Findings

    async def run(self, reads_max: int) -> None:
        """Compare with about `reads_max` calls to Stripe at most. What was not read is `unchecked`.

        If the reads do not suffice for all, another kind has the first turn each day. May raise `Transient`.
        """
        stripe, tables = self.views.invoices, self.views.tables
        if stripe is None:
            return
        if tables is None:
            add = self.findings.add if self.views.no_tables else self.findings.absent
            add(Row(Pair.MIRROR, Cause.UNCHECKED, detail=self.views.no_tables or NO_TABLES))
            return
        now_ms, first_read = self.clock.now_ms(), stripe.reads
        try:
            changed = await stripe.changed_since(now_ms - DELAY_MS)
            turn = now_ms // DAY_MS % len(_KINDS)
            for kind in (*_KINDS[turn:], *_KINDS[:turn]):
                await self._kind(stripe, tables, kind, changed, now_ms - INVOICES_MS, first_read + reads_max)
        except _FAILURES as error:
            self.findings.add(Row(Pair.MIRROR, Cause.UNCHECKED, detail=str(error)))
        finally:
            self.findings.stripe_reads += stripe.reads - first_read

    async def _kind(
        self,
        stripe: StripeInvoices,
        tables: SideTables,
        kind: ObjectKind,
        changed: AbstractSet[str],
        from_ms: int,
        last_read: int,
    ) -> None:
        listed: set[str] = set()
        after, is_first = "", True
        while after or is_first:
            if stripe.reads >= last_read:
                detail = f"over the limit of reads of Stripe: {len(listed)} of the {kind}s were compared"
                self.findings.add(Row(Pair.MIRROR, Cause.UNCHECKED, detail=detail))
                return
            is_first = False
            bodies, after = await stripe.page(kind, after, from_ms)
            ids = [str(body["id"]) for body in bodies]
            listed.update(ids)
            rows = await tables.mirrored(kind, ids)
            for body in bodies:
                self._compare(kind, body, rows, changed)
        await self._extra(tables, kind, listed, changed, from_ms)

    def _compare(
        self,
        kind: ObjectKind,
        body: Mapping[str, Any],
        rows: Mapping[str, Sequence[MirrorRow]],
        changed: AbstractSet[str],
    ) -> None:
        identifier, name = str(body["id"]), TABLE_OF[kind]
        customer = identifier if kind is ObjectKind.CUSTOMER else _id(body.get("customer"))
        own = next((row for row in rows[name] if row["id"] == identifier), None)
        if own is None or own["deleted"]:
            self._add(Cause.MISSING, kind, identifier, customer, "the mirror lacks it", changed)
            return
        columns = _differing(name, body, own)
        # Stripe lists the payment methods of one customer only, so they are not compared.
        if kind in _PARTS:
            part, column = PARTS_OF[kind]
            ours = {row["id"]: row for row in rows[part] if row[column] == identifier}
            theirs = {each["id"]: each for each in body[_PARTS[kind]]["data"]}
            if ours.keys() != theirs.keys():
                columns.append(f"{part}: other rows")
            for key in ours.keys() & theirs.keys():
                columns += [f"{part}.{each}" for each in _differing(part, theirs[key], ours[key])]
        if not columns:
            self.findings.equal(Pair.MIRROR, 1)
            return
        detail = f"the mirror differs in {', '.join(sorted(set(columns)))}"
        self._add(Cause.DIFFERING, kind, identifier, customer, detail, changed)

    async def _extra(
        self, tables: SideTables, kind: ObjectKind, listed: Collection[str], changed: AbstractSet[str], from_ms: int
    ) -> None:
        """Objects that only the mirror has. Stripe lists no deleted ones, and the mirror keeps their rows."""
        after = ""
        while known := await tables.known(kind, after, limit=KNOWN_AT_ONCE):
            after = known[-1][0].id
            suspects = {name.id: owner for name, owner in known if name.id not in listed}
            rows = (await tables.mirrored(kind, list(suspects)))[TABLE_OF[kind]]
            for row in rows:
                is_old = kind in OLD_CHANGE_NO_MORE and int(row["created_ms"] or 0) < from_ms
                if not row["deleted"] and not is_old:
                    identifier = str(row["id"])
                    self._add(Cause.EXTRA, kind, identifier, suspects[identifier], "Stripe does not list it", changed)

    def _add(
        self, cause: Cause, kind: ObjectKind, identifier: str, customer: str, detail: str, changed: AbstractSet[str]
    ) -> None:
        if identifier in changed or customer in changed:
            detail = f"{kind} {identifier}: {detail}, but Stripe changed it a moment ago"
            self.findings.add(Row(Pair.MIRROR, Cause.IN_FLIGHT, stripe_customer=customer, detail=detail))
            return
        detail = f"{kind} {identifier}: {detail}; {RESYNC}"
        self.findings.add(Row(Pair.MIRROR, cause, stripe_customer=customer, detail=detail))


def _differing(table: str, body: Mapping[str, Any], row: MirrorRow) -> list[str]:
    """The columns whose values differ. The values stay here: they may be personal."""
    return [
        column for column, place in _COLUMNS[table].items() if _expected(column, place, body) != _found(column, row)
    ]


def _expected(column: str, place: _Column, body: Mapping[str, Any]) -> object:
    value = _at(body, place) if isinstance(place, str) else place(body)
    return value * SECOND_MS if column.endswith("_ms") and isinstance(value, int) else value


def _found(column: str, row: MirrorRow) -> object:
    value = row[column]
    if not column.endswith("_json"):
        return value
    parsed: Any = json.loads(str(value or "null"))
    if column == "discounts_json":
        return [_id(each) for each in parsed or ()]
    if column != "phases_json":
        return parsed
    return [
        [phase["start_ms"], phase["end_ms"], [[item["price"], item["quantity"]] for item in phase["prices"]]]
        for phase in parsed or ()
    ]


def _at(body: Mapping[str, Any], path: str) -> object:
    value: Any = body
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return _id(value) if isinstance(value, Mapping) else value


def _id(value: Any) -> str:
    return str(value["id"]) if isinstance(value, Mapping) else str(value or "")
