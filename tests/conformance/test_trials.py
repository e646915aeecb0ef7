"""Trials, their keys, second subscriptions and stuck invoices on PostgreSQL and on the simulation's fake."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from schemas.billing_events import ObjectKind, ObjectName
from schemas.catalog import PlanId
from schemas.catalog_changes import CatalogKind, CatalogPlan, KnownPlan, PlanState, StripeRecord
from schemas.clock import DAY_MS, MINUTE_MS
from schemas.duplicates import DuplicateState
from schemas.plan_changes import Call, CallKind, Calls, Operation, OperationState, Quote, SubscriptionView, When
from schemas.side_tables import Fetched, Row, SideTables
from schemas.trials import KEYS_KEPT_MS, Begun, TrialState, TrialTaken, TrialTerms, TrialWish
from schemas.upgrades import Money
from sinks.sql.side_tables import SqlSideTables
from tests.conformance.side_table_steps import event, step
from tests.unit.catalog.files import SMALL, catalog_of
from tests.worlds.mirrored import NOW_MS, invoice, subscription

TERMS = TrialTerms("pro@1", "paid", 30)
KEYS = {"account": "a1", "customer": "c1", "email": "e1"}


@pytest.fixture
def tables(side_tables: SideTables) -> SqlSideTables:
    return cast("SqlSideTables", side_tables)


def quote_of(account: str, number: int) -> Quote:
    view = SubscriptionView(f"cus_{account}")
    calls = Calls(3, When.NOW, (Call(CallKind.EXPIRE_CHECKOUT), Call(CallKind.CHECKOUT)), trial=TERMS)
    return Quote(
        id=f"qt_{account}{number}", account=account, request="{}", base=view, decided=calls, lines=(),
        total=Money(0, "usd", 2), due_minor=0, tax_minor=0, drift_minor=0, subtotal_minor=0, ours_minor=None,
        next_minor=None, next_ms=None, words="", made_ms=NOW_MS, expires_ms=NOW_MS + MINUTE_MS, made_by="ann",
    )  # fmt: skip


async def reserved(
    tables: SqlSideTables, account: str = "acme", number: int = 1, terms: TrialTerms = TERMS, **keys: str
) -> Operation:
    """An operation that reserves a trial."""
    quote = await tables.plan_changes.add_quote(quote_of(account, number))
    wish = TrialWish(terms, f"cus_{account}", {**KEYS, "account": account, "customer": account, **keys})
    return await tables.plan_changes.intend(quote, "ann", NOW_MS, "https://app.example", wish)


async def states(tables: SqlSideTables, account: str = "") -> list[TrialState]:
    return [trial.state for trial in await tables.trials.listed(account)]


async def done(tables: SqlSideTables, operation: Operation, session: str = "cs_1") -> Operation:
    """The page is made, and the operation ends."""
    at = await tables.plan_changes.stepped(operation, "", NOW_MS, session, "https://checkout.example")
    return await tables.plan_changes.settle(at, OperationState.DONE, "", "", None, NOW_MS)


async def test_a_page_is_kept_with_its_operation(tables: SqlSideTables) -> None:
    operation = await done(tables, await reserved(tables))

    assert (operation.return_url, operation.session, operation.url) == (
        "https://app.example", "cs_1", "https://checkout.example",
    )  # fmt: skip
    assert await tables.plan_changes.operation(operation.quote) == operation


async def test_a_key_is_taken_once_in_a_family(tables: SqlSideTables) -> None:
    """Nothing is noted of who comes second; another family has keys of its own."""
    await reserved(tables)
    with pytest.raises(TrialTaken, match="email"):
        await reserved(tables, "globex")
    assert await tables.plan_changes.operation("qt_globex1") is None
    await reserved(tables, "globex", 2, TERMS._replace(family="teams"))

    assert await states(tables, "acme") == await states(tables, "globex") == [TrialState.RESERVED]


async def test_of_many_accounts_at_once_one_takes_the_key(tables: SqlSideTables) -> None:
    found = await asyncio.gather(*(reserved(tables, f"account{number}") for number in range(6)), return_exceptions=True)

    assert sum(isinstance(each, Operation) for each in found) == 1
    assert sum(isinstance(each, TrialTaken) for each in found) == 5
    assert await states(tables) == [TrialState.RESERVED]


async def test_a_reserved_trial_goes_over_to_the_next_operation(tables: SqlSideTables) -> None:
    """One that has begun does not."""
    first = await done(tables, await reserved(tables))
    second = await done(tables, await reserved(tables, number=2), "cs_2")
    (trial,) = await tables.trials.listed()

    assert (first.id != second.id, trial.operation, trial.session) == (True, second.id, "cs_2")
    await tables.trials.begin(trial, Begun("sub_1", "trialing", NOW_MS + 30 * DAY_MS, ""), {}, NOW_MS)
    with pytest.raises(TrialTaken, match="account"):
        await reserved(tables, number=3)


async def test_an_operation_that_fails_gives_the_keys_back(tables: SqlSideTables) -> None:
    operation = await reserved(tables)
    await tables.plan_changes.settle(operation, OperationState.FAILED, "no", "", None, NOW_MS)
    assert await states(tables) == [TrialState.RELEASED]
    await reserved(tables, "globex")
    assert await tables.trials.counts() == {TrialState.RELEASED: 1, TrialState.RESERVED: 1}


async def test_a_page_that_may_be_paid_keeps_the_keys(tables: SqlSideTables) -> None:
    """The second operation fails, and the page of the first one is looked at."""
    await done(tables, await reserved(tables))
    second = await reserved(tables, number=2)
    await tables.plan_changes.settle(second, OperationState.FAILED, "no", "", None, NOW_MS)

    assert await states(tables) == [TrialState.RESERVED]
    assert [trial.session for trial in await tables.trials.due(NOW_MS, 10)] == ["cs_1"]


async def test_a_trial_is_looked_at_when_its_page_is_over_or_the_mirror_has_one(tables: SqlSideTables) -> None:
    await done(tables, await reserved(tables))
    hour_ms = 60 * MINUTE_MS
    assert [len(await tables.trials.due(NOW_MS + each, 10)) for each in (0, hour_ms)] == [0, 1]
    await tables.trials.postpone((await tables.trials.listed())[0], NOW_MS + 2 * hour_ms)
    assert await tables.trials.due(NOW_MS + hour_ms, 10) == []

    await tables.link("acme", "cus_1", 0, "ann", "", NOW_MS)
    await subscription(tables, status="trialing", customer_id="cus_acme", start_ms=NOW_MS, trial_end_ms=NOW_MS + DAY_MS)
    assert len(await tables.trials.due(NOW_MS, 10)) == 1


@pytest.mark.parametrize(
    ("policy", "state", "is_flagged"),
    [("end", TrialState.ENDING, False), ("flag", TrialState.RUNNING, True)],
    ids=["end", "flag"],
)
async def test_a_card_that_had_a_trial(
    tables: SqlSideTables, policy: str, state: TrialState, *, is_flagged: bool
) -> None:
    """It is found when a trial begins, and ends it or is shown; the same again changes nothing."""
    begun = Begun("sub_1", "trialing", NOW_MS + 30 * DAY_MS, "card")
    await done(tables, await reserved(tables))
    (first,) = await tables.trials.listed("acme")
    assert (await tables.trials.begin(first, begun, {"card": "k"}, NOW_MS)).state is TrialState.RUNNING
    terms = TERMS._replace(repeated_card=policy)
    await done(tables, await reserved(tables, "globex", terms=terms, email="e2"), "cs_2")
    (second,) = await tables.trials.listed("globex")
    found = await tables.trials.begin(second, begun._replace(subscription="sub_2"), {"card": "k"}, NOW_MS)

    assert (found.state, found.is_flagged) == (state, is_flagged)
    assert await tables.trials.begin(second, begun, {}, NOW_MS) == found
    assert await tables.trials.flagged() == is_flagged
    await tables.trials.refuse(found, NOW_MS)
    assert await states(tables, "globex") == [TrialState.REFUSED]
    entities = [row.entity for row in await tables.audit("globex")]
    assert entities.count("trial") == 2


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("active", TrialState.CONVERTED), ("past_due", TrialState.CONVERTED), ("canceled", TrialState.EXPIRED),
        ("paused", TrialState.EXPIRED), ("trialing", TrialState.RUNNING),
    ],
    ids=["active", "past due", "canceled", "paused", "trialing"],
)  # fmt: skip
async def test_what_became_of_a_trial_is_what_the_mirror_says(
    tables: SqlSideTables, status: str, state: TrialState
) -> None:
    await done(tables, await reserved(tables))
    (trial,) = await tables.trials.listed()
    await tables.trials.begin(trial, Begun("subscription_1", "trialing", NOW_MS + DAY_MS, ""), {}, NOW_MS)
    await tables.link("acme", "cus_1", 0, "ann", "", NOW_MS)
    await subscription(tables, status=status, trial_end_ms=NOW_MS + 2 * DAY_MS)
    await tables.trials.settle(NOW_MS)
    (after,) = await tables.trials.listed()

    assert (after.state, after.ends_ms) == (state, NOW_MS + 2 * DAY_MS)
    assert await tables.trials.settle(NOW_MS) == 0


async def test_old_keys_are_forgotten(tables: SqlSideTables) -> None:
    await done(tables, await reserved(tables))
    await tables.trials.settle(NOW_MS + KEYS_KEPT_MS)
    with pytest.raises(TrialTaken):
        await reserved(tables, "globex")
    await tables.trials.settle(NOW_MS + KEYS_KEPT_MS + 1)

    assert (await reserved(tables, "globex")).account == "globex"


async def sold(tables: SqlSideTables) -> None:
    """A catalog whose plans have the prices `price_1` and `price_2`."""
    catalog = catalog_of(SMALL)
    plan = CatalogPlan(catalog, "sha", "", "", in_place=False, actions=(), refusals=(), drift=(), touched={})
    (name, known), *_ = [(name, each) for name, each in catalog.sold().items() if getattr(each, "prices", ())]
    records = [
        StripeRecord(f"key_{each}", CatalogKind.PRICE, each, PlanId(name.name, name.version), "base", interval, "usd")
        for each, interval in (("price_1", "month"), ("price_2", "year"))
    ]
    await tables.catalog.begin_catalog(plan, "ann", "a test", NOW_MS)
    await tables.catalog.activate_catalog(plan, {name: KnownPlan(known, PlanState.OPEN)}, records, NOW_MS)


async def bought(tables: SqlSideTables, number: int, price: str, **columns: Any) -> None:
    """A subscription of `cus_1` to one price, in the mirror."""
    name = ObjectName(ObjectKind.SUBSCRIPTION, f"subscription_{number}")
    row: Row = {"id": name.id, "customer_id": "cus_1", "deleted": 0, "anchor_ms": 0, "start_ms": NOW_MS + number}
    item: Row = {"id": f"si_{number}", "subscription_id": name.id, "price_id": price, "quantity": 1}
    rows: dict[str, list[Row]] = {
        "subscriptions": [{**row, "status": "active", **columns}],
        "subscription_items": [item],
    }
    offset = await tables.position(9) or 0
    events = [event(1_000 + offset, name, customer="cus_1")]
    await tables.commit(step(offset, events, [Fetched(name, 0, rows)], partition=9))


async def test_a_second_subscription_to_a_plan_is_suspected_until_it_is_noted(tables: SqlSideTables) -> None:
    """The older one is kept. What has ended, and what no catalog made, is none."""
    await sold(tables)
    await tables.link("acme", "cus_1", 0, "ann", "", NOW_MS)
    await bought(tables, 1, "price_1")
    await bought(tables, 3, "price_other")
    await bought(tables, 4, "price_2", status="canceled")
    assert await tables.duplicates.suspects(NOW_MS, 10) == []

    await bought(tables, 2, "price_2")
    (found,) = await tables.duplicates.suspects(NOW_MS, 10)
    assert (found.subscription, found.kept, found.account, found.customer) == (
        "subscription_2", "subscription_1", "acme", "cus_1",
    )  # fmt: skip
    await tables.duplicates.note(found, NOW_MS)
    await tables.duplicates.note(found, NOW_MS)
    assert await tables.duplicates.suspects(NOW_MS, 10) == []
    assert await tables.duplicates.listed([DuplicateState.FOUND]) == [found]
    assert await tables.duplicates.counts() == {DuplicateState.FOUND: 1}
    causes = [row.cause for row in await tables.audit("acme") if row.entity_id == "subscription_2"]
    assert causes.count("duplicate subscription") == 1


async def test_a_decision_stays(tables: SqlSideTables) -> None:
    await sold(tables)
    await tables.link("acme", "cus_1", 0, "ann", "", NOW_MS)
    for number in (1, 2):
        await bought(tables, number, "price_1")
    (found,) = await tables.duplicates.suspects(NOW_MS, 10)
    await tables.duplicates.note(found._replace(state=DuplicateState.FOREIGN), NOW_MS)
    first = await tables.duplicates.settle(found.subscription, "ann", "both are wanted", NOW_MS + 1)
    await tables.duplicates.note(found, NOW_MS + 2)

    assert await tables.duplicates.settle(found.subscription, "bob", "again", NOW_MS + 3) == first
    assert await tables.duplicates.listed() == [first]
    assert await tables.duplicates.suspects(NOW_MS, 10) == []


async def test_a_draft_that_cannot_become_final_is_listed_until_it_is(tables: SqlSideTables) -> None:
    await tables.link("acme", "cus_1", 0, "ann", "", NOW_MS)
    draft = {"subscription_id": "subscription_1", "status": "draft", "created_ms": NOW_MS, "currency": "usd"}
    await invoice(tables, **draft, finalization_error="customer_tax_location_invalid", total_minor=5, exponent=2)
    (found,) = await tables.unfinalized.listed()

    assert (found.invoice, found.account, found.error, found.total_minor) == (
        "invoice_1", "acme", "customer_tax_location_invalid", 5,
    )  # fmt: skip
    assert await tables.unfinalized.count() == 1
    await invoice(tables, **{**draft, "status": "open"}, finalization_error=None)
    assert (await tables.unfinalized.count(), list(await tables.unfinalized.listed())) == (0, [])
