"""Whose events the audit of an account has, and what it says of people: on PostgreSQL and on the simulation's fake."""

from __future__ import annotations

import json
from typing import cast

import pytest
from sqlalchemy import Connection, select

from schemas.billing_events import ObjectKind, ObjectName, StripeEvent
from schemas.side_tables import PERSONAL, Fetched, Outcome, Row, SideTables
from sinks.sql import audit
from sinks.sql.side_tables import SqlSideTables
from sinks.sql.tables import audit as audit_table
from tests.conformance.side_table_steps import NOW_MS, event, fetched_invoice, invoice, linked, step

CUSTOMER = ObjectName(ObjectKind.CUSTOMER, "cus_1")
MINUTE = NOW_MS // 60_000 * 60_000


async def causes(store: SideTables, account: str) -> list[str]:
    """What the audit of an account names as causes, without the links."""
    return [row.cause for row in await store.audit(account) if row.cause.startswith("evt_")]


@pytest.mark.parametrize("relinked", [False, True], ids=["to nobody", "to another customer in the same minute"])
async def test_events_of_an_unlinked_customer_wait_for_the_right_account(
    side_tables: SideTables, *, relinked: bool
) -> None:
    """They are another customer's business: the account's audit must not have them."""
    await linked(side_tables, starts_ms=100)
    await side_tables.commit(step(0, [event(1, invoice())], [fetched_invoice()]))
    await side_tables.unlink("acme", "bob", "the wrong customer", NOW_MS)
    if relinked:
        await linked(side_tables, "acme", "cus_2", MINUTE)

    outcomes = await side_tables.commit(step(1, [event(2, invoice())], [fetched_invoice(1, total_minor=5)]))

    assert outcomes == {"evt_2": Outcome.HELD}
    assert await causes(side_tables, "acme") == ["evt_1"]
    assert [held.event_id for held in await side_tables.held("cus_1")] == ["evt_2"]
    await linked(side_tables, "other", "cus_1", MINUTE)
    again = await side_tables.commit(step(2, [event(2, invoice())], [fetched_invoice(2, total_minor=5)]))
    assert again == {"evt_2": Outcome.APPLIED}
    assert (await causes(side_tables, "acme"), await causes(side_tables, "other")) == (["evt_1"], ["evt_2"])


async def test_an_account_that_is_unlinked_and_linked_again_and_again_in_a_minute(side_tables: SideTables) -> None:
    """Whoever corrects a mistake makes another one soon."""
    await linked(side_tables, starts_ms=100)
    for number in range(2, 5):
        await side_tables.unlink("acme", "bob", "the wrong customer", NOW_MS)
        await linked(side_tables, "acme", f"cus_{number}", MINUTE)
    links = [(link.customer, link.starts_ms) for link in await side_tables.links("acme")]
    assert links == [("cus_1", 100), ("", MINUTE - 1), ("cus_4", MINUTE)]
    await side_tables.unlink("acme", "bob", "it was right", NOW_MS)
    await linked(side_tables, "acme", "cus_1", MINUTE)
    outcomes = await side_tables.commit(step(0, [event(1, invoice())], [fetched_invoice()]))
    assert outcomes == {"evt_1": Outcome.APPLIED}


async def test_events_of_a_customer_that_was_replaced_stay_the_accounts(side_tables: SideTables) -> None:
    """The last invoices of the customer before bill the account's own usage."""
    await linked(side_tables, starts_ms=100)
    await linked(side_tables, "acme", "cus_2", MINUTE)
    outcomes = await side_tables.commit(step(0, [event(1, invoice())], [fetched_invoice()]))
    assert outcomes == {"evt_1": Outcome.APPLIED}
    assert await causes(side_tables, "acme") == ["evt_1"]


def fetched_customer(fetch_seq: int, email: str | None, *, deleted: int = 0) -> Fetched:
    """A customer with an address."""
    row: Row = {"id": "cus_1", "email": email, "currency": "eur", "deleted": deleted}
    return Fetched(CUSTOMER, fetch_seq, {"stripe_customers": [row]})


def changed(number: int, name: ObjectName) -> StripeEvent:
    return StripeEvent(f"evt_{number}", "customer.updated", 1_750_000_000, "cus_1", (name,))


GONE = {
    "deleted": fetched_customer(2, None, deleted=1),
    "unknown to Stripe": Fetched(CUSTOMER, 2, {}),
}


@pytest.mark.parametrize("gone", GONE.values(), ids=GONE)
async def test_nothing_that_names_a_person_is_left_when_the_customer_is_gone(
    side_tables: SideTables, gone: Fetched
) -> None:
    """The money stays. Nothing is erased from the audit, whose hashes would not fit any more."""
    page = "https://invoice.stripe.com/i/secret"
    bill = fetched_invoice(total_minor=1900)
    (row,) = bill.rows["invoices"]
    bill = bill._replace(rows={**bill.rows, "invoices": [{**row, "hosted_url": page}]})
    await linked(side_tables, starts_ms=100)
    await side_tables.commit(step(0, [changed(1, CUSTOMER)], [fetched_customer(0, "ada@example.org")]))
    await side_tables.commit(step(1, [changed(2, CUSTOMER)], [fetched_customer(1, "ada@example.com")]))
    await side_tables.commit(step(2, [event(3, invoice())], [bill]))
    await side_tables.commit(step(3, [changed(4, CUSTOMER)], [gone]))

    (customer,) = (await side_tables.mirror())["stripe_customers"]
    assert (customer["email"], customer["deleted"], customer["currency"] in ("eur", None)) == (None, 1, True)
    rows = await side_tables.audit("acme")
    said = json.dumps(rows)
    assert "ada@" not in said
    assert page not in said
    assert "1900" in said
    address = {"stripe_customers": {"cus_1": {"email": "(not kept)"}}}
    assert (json.loads(rows[2].before or ""), json.loads(rows[2].after or "")) == (address, address)
    assert {"email", "hosted_url"} == PERSONAL
    await check_chain(side_tables)


async def check_chain(store: SideTables) -> None:
    """The stored hashes are those of the stored rows."""

    def hashes(connection: Connection) -> list[str]:
        wanted = select(audit_table.c.hash).where(audit_table.c.account == "acme").order_by(audit_table.c.seq)
        return list(connection.execute(wanted).scalars())

    previous, expected = "", []
    for row in await store.audit("acme"):
        previous = audit.chain_hash(previous, row)
        expected.append(previous)
    assert await cast("SqlSideTables", store)._run(hashes) == expected
