"""The comparisons of the side tables in `make torture`: each finds one spoiled row, hash, event or binding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from aggregators.mirror import mirror_rows
from schemas.billing_events import ObjectKind, ObjectName
from schemas.side_tables import AuditRow
from sinks.sql.audit import chain_hash
from tests.torture.billing import audited_once, bindings_sent, chained, events_once, mirrored
from tests.torture.compare import Compared
from tests.torture.stripe import form

MINUTE_MS = 60_000
FUTURE_MS = 5 * MINUTE_MS
LINKED = {"cus_1": "acme"}
Spoil = Callable[[Any], object]


def customer(number: int) -> tuple[ObjectName, dict[str, Any]]:
    """A customer in Stripe's list."""
    name = ObjectName(ObjectKind.CUSTOMER, f"cus_{number}")
    return name, {"object": "customer", "id": name.id, "created": 1_700_000_000, "email": "a@example.com"}


@pytest.mark.parametrize(
    ("spoil", "differing"),
    [
        pytest.param(lambda _: None, 0, id="equal"),
        pytest.param(lambda rows: rows[0].update(email="b@example.com"), 1, id="a column differs"),
        pytest.param(lambda rows: rows.pop(), 1, id="a row is missing"),
        pytest.param(lambda rows: rows.append({**rows[0], "id": "cus_9"}), 1, id="a row is nowhere at Stripe"),
        pytest.param(lambda rows: rows.append({**rows[0], "id": "cus_9", "deleted": 1}), 0, id="a deleted row stays"),
        pytest.param(lambda rows: rows[0].update(deleted=1), 1, id="a living row is called deleted"),
    ],
)
def test_the_mirror_has_the_rows_of_what_stripe_lists(spoil: Spoil, differing: int) -> None:
    listing = [customer(1), customer(2)]
    rows = [dict(row) for each in listing for row in mirror_rows(*each)["stripe_customers"]]
    spoil(rows)
    assert mirrored(listing, {"stripe_customers": rows}).differing == differing


def event(number: int, of: str = "cus_1", thing: str = "subscription") -> dict[str, Any]:
    """An event in Stripe's list."""
    named = {"id": of} if thing == "customer" else {"id": f"x_{number}", "customer": of}
    return {"id": f"evt_{number}", "data": {"object": {"object": thing, **named}}}


EVENTS = [event(1), event(2, thing="customer"), event(3, of="cus_2"), event(4, thing="payment_method")]


@pytest.mark.parametrize(
    ("spoil", "differing"),
    [
        pytest.param(lambda _: None, 0, id="each once"),
        pytest.param(lambda rows: rows.pop(0), 1, id="one is missing"),
        pytest.param(lambda rows: rows.append(rows[0]), 1, id="one is there twice"),
        pytest.param(lambda rows: rows[0].update(outcome="held"), 1, id="one of a linked customer is held"),
        pytest.param(lambda rows: rows[2].update(outcome="applied"), 1, id="one of nobody was not held"),
        pytest.param(lambda rows: rows[0].update(event_id="evt_9"), 2, id="one is not Stripe's"),
        pytest.param(lambda rows: rows.pop(), 0, id="a payment method need not come"),
    ],
)
def test_every_event_that_concerns_the_mirror_is_processed_once(spoil: Spoil, differing: int) -> None:
    outcomes = ("applied", "unchanged", "held", "applied")
    rows = [{"event_id": each["id"], "outcome": told} for each, told in zip(EVENTS, outcomes, strict=True)]
    spoil(rows)
    assert events_once(EVENTS, rows, LINKED).differing == differing


@pytest.mark.parametrize(
    ("causes", "differing"),
    [
        pytest.param(["evt_1", "evt_2", "account link"], 0, id="each once"),
        pytest.param(["evt_1", "evt_2", "evt_4"], 0, id="a payment method too"),
        pytest.param(["evt_1"], 1, id="one is missing"),
        pytest.param(["evt_1", "evt_2", "evt_2"], 1, id="one is there twice"),
        pytest.param(["evt_1", "evt_2", "evt_4", "evt_4"], 1, id="a payment method twice"),
        pytest.param(["evt_1", "evt_2", "evt_9"], 1, id="one is not Stripe's"),
    ],
)
def test_every_event_of_a_linked_customer_is_audited_once(causes: list[str], differing: int) -> None:
    rows = [{"account": "acme", "cause": cause} for cause in causes]
    assert audited_once(EVENTS, rows, LINKED).differing == differing


def test_an_audit_row_in_another_account_is_a_difference() -> None:
    rows = [{"account": "acme", "cause": "evt_1"}, {"account": "globex", "cause": "evt_2"}]
    assert audited_once(EVENTS, rows, LINKED).differing == 1


def chain() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Two accounts and their audit rows, as the product hashes them."""
    rows, accounts = [], []
    for account in ("acme", "żółw"):
        head = ""
        for seq in (1, 2, 3):
            row = AuditRow(account, seq, 7, "stripe", f"evt_{seq}", "customer", "cus_1", None, '{"a":"é\\n"}', "why")
            head = chain_hash(head, row)
            named = row._asdict()
            rows.append({**named, "before_json": named.pop("before"), "after_json": named.pop("after"), "hash": head})
        accounts.append({"account": account, "audit_seq": 3, "audit_hash": head})
    return accounts, rows


@pytest.mark.parametrize(
    ("spoil", "at_least"),
    [
        pytest.param(lambda rows: rows[1].update(hash="0" * 64), 2, id="a hash"),
        pytest.param(lambda rows: rows[1].update(reason="another"), 1, id="a reason"),
        pytest.param(lambda rows: rows[1].update(after_json=None), 1, id="a change"),
        pytest.param(lambda rows: rows.pop(0), 2, id="the first row is gone"),
        pytest.param(lambda rows: rows.pop(1), 2, id="a row in the middle is gone"),
        pytest.param(lambda rows: rows.pop(), 2, id="the last row is gone"),
        pytest.param(lambda rows: rows.append({**rows[2], "seq": 4}), 2, id="a row that the account does not know"),
    ],
)
def test_a_spoiled_audit_is_found(spoil: Spoil, at_least: int) -> None:
    accounts, rows = chain()
    whole = chained(accounts, rows)
    assert (whole.rows, whole.differing) == (8, 0)
    spoil(rows)
    assert chained(accounts, rows).differing >= at_least


def binding(number: int, minute: int, billing: str = "free", **fields: Any) -> dict[str, Any]:
    """A row of `account_bindings`, sent in minute 100."""
    customer = "cus_1" if billing == "mapped" else ""
    return {
        "account": "acme", "number": number, "effective_from_ms": minute * MINUTE_MS, "anchor_ms": 0,
        "interval": "month", "interval_count": 1, "billing": billing, "stripe_customer": customer,
        "sent_ms": 100 * MINUTE_MS, **fields,
    }  # fmt: skip


PLAN = [binding(1, 0), binding(2, 60, "mapped"), binding(3, 900), binding(4, 950, "mapped")]


def sent(logged: list[dict[str, Any]], plan: list[dict[str, Any]] | None = None) -> Compared:
    """The comparison of one account."""
    return bindings_sent(["acme"], plan or PLAN, {"acme": logged}, FUTURE_MS)


@pytest.mark.parametrize(
    "logged",
    [
        pytest.param([PLAN[0], {**PLAN[1], "stripe_customer": "cus_2"}, *PLAN[2:]], id="one says something else"),
        pytest.param([PLAN[0], *PLAN[2:]], id="one is missing"),
        pytest.param(PLAN[:3], id="the last is missing"),
        pytest.param(PLAN[:2], id="two are missing that take effect later"),
        pytest.param([PLAN[0], PLAN[1], PLAN[1], *PLAN[2:]], id="one is there twice"),
        pytest.param([PLAN[0], PLAN[2], PLAN[1], PLAN[3]], id="two are exchanged"),
        pytest.param([*PLAN, binding(5, 999)], id="one was never planned"),
        pytest.param([], id="none"),
    ],
)
def test_a_spoiled_binding_is_found(logged: list[dict[str, Any]]) -> None:
    assert sent(PLAN).differing == 0
    assert sent(logged).differing > 0


@pytest.mark.parametrize(
    ("run", "differing"),
    [
        pytest.param([binding(3, 99), binding(4, 100, "mapped")], 0, id="paused and resumed before it was sent"),
        pytest.param([binding(3, 99), binding(4, 106, "mapped")], 0, id="to the end of what can be counted"),
        pytest.param([binding(3, 99), binding(4, 107, "mapped")], 2, id="free for a minute"),
        pytest.param([binding(3, 99), binding(4, 100, "mapped", anchor_ms=MINUTE_MS)], 2, id="another anchor"),
        pytest.param([binding(3, 99), binding(4, 100, "mapped", sent_ms=None)], 2, id="not marked as sent"),
        pytest.param([binding(3, 99)], 1, id="no return"),
    ],
)
def test_only_a_run_that_changed_nothing_may_be_left_out(run: list[dict[str, Any]], differing: int) -> None:
    later = binding(5, 900)
    assert sent([*PLAN[:2], later], [*PLAN[:2], *run, later]).differing >= differing
    assert (sent([*PLAN[:2], later], [*PLAN[:2], *run, later]).differing > 0) == (differing > 0)


def test_parameters_become_stripes_form() -> None:
    params = {"items": [{"price": "p_1"}, {"price": "p_2"}], "recurring": {"interval": "month"}, "flag": True, "n": 3}
    assert dict(form(params)) == {
        "items[0][price]": "p_1", "items[1][price]": "p_2", "recurring[interval]": "month", "flag": "true", "n": "3",
    }  # fmt: skip
