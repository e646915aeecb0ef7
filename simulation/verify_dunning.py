"""Compares the cases of failed payments with Stripe's invoices. The rules are those of docs/dunning.md."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from schemas.billing_events import ObjectKind

if TYPE_CHECKING:
    from simulation.world import World

_Body = Mapping[str, Any]
# From this catalog on, who does not pay loses the plan at once.
_STRICT_FROM = 2


def verify_dunning(world: World) -> None:
    """Each failed payment is of one case, and each case is what its invoices make it."""
    bodies = {name.id: world.account.read(name) or {} for name in world.account.listing()}
    invoices = {key: body for key, body in bodies.items() if body["object"] == ObjectKind.INVOICE}
    cases = {row["id"]: row for row in world.tables.rows("dunning_cases")}
    case_of = {row["invoice_id"]: row["case_id"] for row in world.tables.rows("dunning_invoices")}
    owned: defaultdict[str, list[_Body]] = defaultdict(list)
    for invoice, case in case_of.items():
        owned[case].append(invoices[invoice])
    linked = _linked(world)
    for invoice, body in invoices.items():
        subscription = bodies.get(_subscription_of(body), {})
        if _has_failed(body, subscription) and body["customer"] in linked and invoice not in case_of:
            world.fail("dunning", f"{invoice} of {body['customer']} was not paid, and is of no case")
    active = [row["version"] for row in world.tables.rows("catalog_versions") if row["state"] == "active"]
    for case, row in cases.items():
        subscription = bodies.get(row["subscription_id"], {})
        if subscription.get("customer") not in linked:
            continue
        if problem := _problem(row, owned[case], subscription):
            world.fail("dunning", f"{case} of {row['account']}: {problem}")
        elif row["closed_ms"] is None and active[0] >= _STRICT_FROM and row["downgrade_ms"] is None:
            world.fail("dunning", f"{case} of {row['account']} still has the plan")


def _problem(row: _Body, owned: Sequence[_Body], subscription: _Body) -> str:
    """What is wrong with a case; "" if nothing is."""
    first_ms = min(1_000 * body["status_transitions"]["finalized_at"] for body in owned)
    if row["opened_ms"] != first_ms:
        return f"opened at {row['opened_ms']}, and its first failure was at {first_ms}"
    statuses = [body["status"] for body in owned]
    is_owed = "open" in statuses or ("uncollectible" in statuses and subscription["status"] != "active")
    if row["closed_ms"] is None and not is_owed:
        return f"open, and its invoices are {statuses}"
    if row["outcome"] == "recovered" and ("open" in statuses or "paid" not in statuses):
        return f"recovered, and its invoices are {statuses}"
    if row["outcome"] == "written_off" and "open" in statuses:
        return f"nobody wrote it off, and its invoices are {statuses}"
    return ""


def _has_failed(invoice: _Body, subscription: _Body) -> bool:
    """Whether a subscription's open invoice could not be collected. The first payment of a subscription, and that of a
    change that waits for it, are none."""
    began = subscription.get("status") not in (None, "incomplete", "incomplete_expired")
    waits = subscription.get("pending_update") and subscription["latest_invoice"] == invoice["id"]
    return bool(invoice["status"] == "open" and invoice["attempt_count"] and began and not waits)


def _subscription_of(invoice: _Body) -> str:
    details = (invoice["parent"] or {}).get("subscription_details") or {}
    return str(details.get("subscription") or "")


def _linked(world: World) -> set[str]:
    """The customers that an account is linked to now."""
    newest: dict[str, str] = {}
    for row in sorted(world.tables.rows("account_customers"), key=lambda row: row["starts_ms"]):
        newest[row["account"]] = row["customer_id"]
    return set(newest.values()) - {""}
