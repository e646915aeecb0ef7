"""Two checkouts that were both completed: one subscription stays, and a person hears of the other."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import pytest

from pipeline.changes.duplicates import heal
from schemas.checkout import ACCOUNT_KEY, OPERATION_KEY
from schemas.clock import MINUTE_MS
from schemas.duplicates import Duplicate, DuplicateState
from schemas.errors import InvalidInput, Transient
from tests.worlds.changing import ACME, BACK, Changing

START_MS: Final = int(datetime(2027, 2, 1, tzinfo=UTC).timestamp()) * 1_000


async def bought_twice(**marks: str) -> tuple[Changing, str, str]:
    """An account whose customer paid two pages; the second has these marks. Returns the two subscriptions."""
    business = Changing(START_MS)
    await business.begin(card="")
    first = business.pays((await business.page("pro")).session)
    business.clock.ms += MINUTE_MS
    business.stripe.simulator.catch_up()
    session = business.stripe.call(
        "POST /v1/checkout/sessions",
        {
            "mode": "subscription", "customer": business.customer, "success_url": BACK,
            "line_items": [{"price": business.prices["tm.essential.v1.location.month.usd"], "quantity": 1}],
            "subscription_data": {"metadata": marks},
        },
    )  # fmt: skip
    second = business.pays(session["id"])
    await business.settle()
    return business, first, second


OURS: Final = {ACCOUNT_KEY: ACME, OPERATION_KEY: "op_1"}


async def healed(business: Changing) -> list[Duplicate]:
    await heal(business.parts(), business.sql.duplicates)
    await business.settle()
    return list(await business.sql.duplicates.listed())


def statuses(business: Changing) -> dict[str, Any]:
    return {each["id"]: each["status"] for each in business.subscriptions()}


async def test_the_newer_of_two_checkouts_is_canceled_and_a_refund_proposed() -> None:
    """What was paid for it becomes a credit; a person decides whether it goes back to the card."""
    business, first, second = await bought_twice(**OURS)
    (found,) = await healed(business)
    balance = business.stripe.call("GET /v1/customers/{customer}", {}, business.customer)["balance"]

    assert statuses(business) == {first: "active", second: "canceled"}
    assert (found.subscription, found.kept, found.account) == (second, first, ACME)
    assert (found.state, found.amount_minor, found.currency, found.exponent) == (
        DuplicateState.REFUND_PROPOSED, 7900, "usd", 2,
    )  # fmt: skip
    assert (business.invoices(), balance) == ([14900, 7900, -7900], -7900)
    assert await healed(business) == [found]
    trail = [row for row in await business.tables.audit(ACME) if row.entity_id == second and row.cause != ""]
    assert "duplicate subscription" in {row.cause for row in trail}

    done = await business.sql.duplicates.settle(second, "ann", "refunded", business.clock.now_ms())
    assert (done.state, done.settled_by, done.reason) == (DuplicateState.SETTLED, "ann", "refunded")
    assert await business.sql.duplicates.counts() == {DuplicateState.SETTLED: 1}


async def test_a_second_subscription_of_somebody_else_is_shown_and_stays() -> None:
    """Nothing that was made in the dashboard, or by another program, is taken back in silence."""
    business, first, second = await bought_twice()
    (found,) = await healed(business)

    assert (found.state, statuses(business)) == (DuplicateState.FOREIGN, {first: "active", second: "active"})
    assert await healed(business) == [found]


async def test_a_lost_process_leaves_the_row_and_the_next_one_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stripe does not answer, then it has canceled already."""
    business, first, second = await bought_twice(**OURS)
    real = business.client.cancel

    async def silent(*arguments: Any) -> None:
        await real(*arguments)
        raise Transient("no answer")

    with monkeypatch.context() as away:
        away.setattr(business.client, "cancel", silent)
        (found,) = await healed(business)
    assert found.state is DuplicateState.FOUND
    business.clock.ms += MINUTE_MS
    (found,) = await healed(business)

    assert (found.state, found.amount_minor) == (DuplicateState.REFUND_PROPOSED, 7900)
    assert statuses(business) == {first: "active", second: "canceled"}
    assert business.invoices() == [14900, 7900, -7900]


async def test_one_subscription_after_the_other_is_no_duplicate() -> None:
    business, first, _ = await bought_twice(**OURS)
    business.stripe.call("DELETE /v1/subscriptions/{subscription_exposed_id}", {}, first)
    assert await healed(business) == []
    assert sorted(statuses(business).values()) == ["active", "canceled"]


async def test_who_settles_says_why() -> None:
    business, _, second = await bought_twice()
    await healed(business)
    store, now_ms = business.sql.duplicates, business.clock.now_ms()
    with pytest.raises(InvalidInput, match="reason"):
        await store.settle(second, "ann", " ", now_ms)
    with pytest.raises(InvalidInput, match="no second subscription"):
        await store.settle("sub_1", "ann", "known", now_ms)


async def test_a_row_that_cannot_be_handled_keeps_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    business, _, _ = await bought_twice(**OURS)
    real, mine = business.client.subscriptions, business.customer
    await business.join("other")
    await business.subscribed("pro.v1.location.month.usd")
    business.clock.ms += MINUTE_MS
    business.stripe.simulator.catch_up()
    second = await business.subscribed("essential.v1.location.month.usd", metadata=OURS)
    await business.settle()

    async def fails(customer: str) -> Any:
        if customer == mine:
            raise KeyError("a shape that nobody knows")
        return await real(customer)

    monkeypatch.setattr(business.client, "subscriptions", fails)
    assert [each.subscription for each in await healed(business)] == [second]


async def test_what_is_known_hides_no_other_customer() -> None:
    """A second subscription that a person leaves as it is takes no place among those that are looked for."""
    business, _, first = await bought_twice()
    await business.join("other")
    await business.subscribed("pro.v1.location.month.usd")
    business.clock.ms += MINUTE_MS
    business.stripe.simulator.catch_up()
    second = await business.subscribed("essential.v1.location.month.usd")
    await business.settle()
    store, now_ms, found = business.sql.duplicates, business.clock.now_ms(), []
    while suspects := await store.suspects(now_ms, 1):
        (suspect,) = suspects
        found.append(suspect.subscription)
        await store.note(suspect._replace(state=DuplicateState.FOREIGN), now_ms)

    assert sorted(found) == sorted([first, second])
