"""Operations that end anywhere, lose answers, or run beside others, go on and charge once.

Each change is played with a process that ends after each of its writing calls, and with Stripe's events at the mirror
before another process goes on, or after.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import pytest

from pipeline.changes.operating import KEY_LASTS_MS, PATIENCE_MS, accept, carry_on, turn
from schemas.clock import DAY_MS
from schemas.errors import Transient
from schemas.periods import Interval
from schemas.plan_changes import ChangeKind, Operation, OperationState, Refusal, RefusalCode
from stripe_simulator.faults import Fault, FaultKind
from tests.worlds.changing import CATALOG, EARLY, Changing
from tests.worlds.ending import Ends

START_MS: Final = int(datetime(2027, 2, 1, tzinfo=UTC).timestamp()) * 1_000
ESSENTIAL: Final = "essential.v1.location.month.usd"
PRO: Final = "pro.v1.location.month.usd"
YEARLY: Final = "pro.v1.location.year.usd"
METERED: Final = ("metered.v1.location.month.usd", "metered.v1.calls.month.usd")
Bought = set[tuple[str, int | None]]


class Change(NamedTuple):
    """A change of a row. `before`: what an account subscribes to; `pending`: a change that is made first; `invoices`:
    of the change, exact but for `slack`, which the seconds until another process goes on may cost; `bought` and
    `schedules`: after it, the latter as states with numbers of phases."""

    row: int
    before: tuple[str, ...]
    wanted: dict[str, Any]
    invoices: list[int]
    bought: Bought
    schedules: list[tuple[str, int]]
    pending: dict[str, Any] | None = None
    trial_days: int = 0
    slack: int = 0
    is_paused: bool = False
    catalog: str = CATALOG
    calls: int = 0


DOWN: Final = {"plan": "essential"}
CHANGES: Final = {
    "2": Change(2, (), {"plan": "pro"}, [14900], {(PRO, 1)}, []),
    "3": Change(3, (), {"plan": "pro", "kind": ChangeKind.TRIAL}, [0], {(PRO, 1)}, []),
    "4": Change(4, (PRO,), {"plan": "pro"}, [14900], {(PRO, 1)}, [], trial_days=14),
    # A discount of 50 % of what is left: five of fourteen days.
    "4 early": Change(4, (PRO,), {"plan": "pro"}, [12240], {(PRO, 1)}, [], trial_days=14, catalog=EARLY, calls=2),
    "5": Change(5, (PRO,), DOWN, [7900], {(ESSENTIAL, 1)}, [], trial_days=14),
    "6": Change(6, (ESSENTIAL,), {"plan": "pro"}, [4750], {(PRO, 1)}, []),
    "7": Change(
        7, METERED, {"plan": "scale"}, [19000], {("scale.v1.location.month.usd", 1), (METERED[1], None)},
        [("active", 2)],
    ),
    "8": Change(8, (PRO,), DOWN, [], {(PRO, 1)}, [("active", 2)]),
    "9": Change(9, (PRO,), {"kind": ChangeKind.UNDO}, [], {(PRO, 1)}, [("released", 2)], pending=DOWN),
    "10": Change(10, (PRO,), {"plan": "metered"}, [], {(PRO, 1)}, [("active", 2)], pending=DOWN),
    "11": Change(
        11, (PRO,), {"plan": "scale"}, [10246],
        {("scale.v1.location.month.usd", 1), ("scale.v1.calls.month.usd", None)}, [("released", 2)], pending=DOWN,
    ),
    "12": Change(12, (PRO,), {"plan": "pro", "interval": Interval.YEAR}, [144689], {(YEARLY, 1)}, [], slack=1),
    "13": Change(13, (YEARLY,), {"plan": "pro", "interval": Interval.MONTH}, [], {(YEARLY, 1)}, [("active", 2)]),
    "14": Change(14, (PRO,), {"kind": ChangeKind.CANCEL}, [], {(PRO, 1)}, []),
    "14 scheduled": Change(14, (PRO,), {"kind": ChangeKind.CANCEL}, [], {(PRO, 1)}, [("active", 1)], pending=DOWN),
    "15": Change(
        15, (PRO,), {"kind": ChangeKind.UNDO}, [], {(PRO, 1)}, [], pending={"kind": ChangeKind.CANCEL}
    ),
    "16": Change(
        16, (PRO,), {"kind": ChangeKind.CANCEL_NOW, "by_operator": True}, [-10111], {(PRO, 1)}, [], slack=1
    ),
    # The pause left a credit of 5361 for 19 of 28 days.
    "18": Change(18, (ESSENTIAL,), {"plan": "pro"}, [9539], {(PRO, 1)}, [], is_paused=True),
    "24": Change(24, (PRO,), {"plan": "pro", "quantities": {"locations": 2}}, [10110], {(PRO, 2)}, []),
}  # fmt: skip


# The calls of Stripe by row, where there is more than one, and those that find nothing to do between their notes.
CALLS: Final = {7: 3, 8: 2, 11: 2, 13: 2, 18: 2}
IDLE: Final = {2: 1, 3: 1}


class Customer(NamedTuple):
    """One account of a world with its customer and subscription."""

    account: str
    customer: str
    subscription: str


async def begun(change: Change, accounts: int = 1) -> tuple[Changing, list[Customer]]:
    """Accounts that have had the same for nine days, and maybe a pending change."""
    business, found = Changing(START_MS), []
    await business.begin(change.catalog)
    trial = {"trial_period_days": change.trial_days} if change.trial_days else {}
    for number in range(accounts):
        await business.join(f"account {number}")
        if change.before:
            await business.subscribed(*change.before, **trial)
        found.append(Customer(business.account, business.customer, business.subscription))
    await business.settle()
    business.clock.ms += 9 * DAY_MS
    business.stripe.simulator.catch_up()
    for each in found if change.is_paused else ():
        business.stripe.call("POST /v1/subscriptions/{subscription}/pause", {}, each.subscription)
    return business, found


async def quoted(business: Changing, who: Customer, change: Change) -> tuple[str, int]:
    """A quote for the change of one account; returns its id and the number of invoices before."""
    business.account, business.customer, business.subscription = who
    if change.pending is not None:
        await business.changed(**change.pending)
        await business.settle()
    quote = await business.quoted(**change.wanted)
    assert quote.decided.row == change.row
    return quote.id, len(business.invoices())


async def is_done(business: Changing, change: Change, quote: str, before: int) -> None:
    """The change was made once."""
    operation = await business.sql.plan_changes.operation(quote)
    kept = await business.sql.plan_changes.quote(business.account, quote)
    assert kept is not None
    assert operation is not None
    assert (operation.state, operation.detail) == (OperationState.DONE, "")
    if change.row in (2, 3):
        rows = list(business.stripe.pages("GET /v1/subscriptions", {"customer": business.customer}))
        business.subscription = str(rows[0]["id"])
        assert len(rows) == 1
    made = business.invoices()[before:]
    assert (len(made), business.bought(), business.schedules()) == (
        len(change.invoices), change.bought, change.schedules,
    )  # fmt: skip
    assert 0 <= sum(made) - sum(change.invoices) <= change.slack
    assert not kept.is_differing
    if change.invoices and change.row != 16:
        assert [kept.charged_minor] == made
    trail = [row for row in await business.tables.audit(business.account) if row.entity_id == operation.id]
    assert [row.actor for row in trail] == ["ann", "stripe"]


@pytest.mark.parametrize("name", CHANGES)
async def test_a_change_whose_process_ends_after_any_call_is_made_once(name: str) -> None:
    """For each writing call of SQL and Stripe: the process ends after it, events come before another process goes on or
    after, and the change is made once. An end before a call is an end after the one before."""
    change = CHANGES[name]
    # The intent, for each call the note before, itself and the note after, the end, and a process that does not end.
    ends_max = 3 * (change.calls or CALLS.get(change.row, 1)) + 2 * IDLE.get(change.row, 0) + 3
    business, customers = await begun(change, 2 * ends_max)
    ends, has_ended = 0, True
    while has_ended:
        ends += 1
        for is_heard in (False, True):
            quote, before = await quoted(business, customers.pop(), change)
            has_ended = False
            try:
                await accept(business.parts([ends], after=True), business.account, quote, "ann", by_operator=True)
            except Ends:
                has_ended = True
            if is_heard:
                await business.settle()
            business.clock.ms += PATIENCE_MS
            assert await turn(business.parts()) <= has_ended
            business.clock.ms -= PATIENCE_MS
            await is_done(business, change, quote, before)
    await business.settle()
    assert ends == ends_max


@pytest.mark.parametrize("name", CHANGES)
async def test_a_change_whose_answers_are_lost_is_made_once(name: str) -> None:
    """Stripe carries each call out and answers with a failure, which it repeats under the same key."""
    change = CHANGES[name]
    business, customers = await begun(change)
    quote, before = await quoted(business, customers[0], change)
    method = "DELETE" if change.row == 16 else "POST"
    fault = Fault(FaultKind.SERVER_ERROR_AFTER_COMMIT, count=3, path="/v1/subscription", method=method)
    business.stripe.simulator.faults.add(fault)
    for _ in range(5):
        await accept(business.parts(), business.account, quote, "ann", by_operator=True)
    assert business.stripe.simulator.faults.happened

    await is_done(business, change, quote, before)


async def test_two_changes_at_once_are_one_and_a_refusal() -> None:
    """The second one finds the first in SQL, whatever Stripe says at that time."""
    business, (who,) = await begun(CHANGES["6"])
    first, _ = await quoted(business, who, CHANGES["6"])
    second = (await business.quoted("scale")).id
    with pytest.raises(Ends):
        await accept(business.parts([1], after=True), who.account, first, "ann")
    found = await accept(business.parts(), who.account, second, "bob")

    assert isinstance(found, Refusal)
    assert (found.code, first in found.message) == (RefusalCode.IN_FLIGHT, True)
    business.clock.ms += PATIENCE_MS
    assert (await turn(business.parts()), business.bought()) == (1, {(PRO, 1)})


async def test_the_same_quote_accepted_twice_is_one_change() -> None:
    business, (who,) = await begun(CHANGES["6"])
    quote, before = await quoted(business, who, CHANGES["6"])
    first, second = [await accept(business.parts(), who.account, quote, name) for name in ("ann", "bob")]

    assert first == second
    await is_done(business, CHANGES["6"], quote, before)


async def left(business: Changing, quote: str, call: int) -> Operation:
    """An operation whose process ended after a writing call, 23 hours ago."""
    with pytest.raises(Ends):
        await accept(business.parts([call], after=True), business.account, quote, "ann", by_operator=True)
    business.clock.ms += KEY_LASTS_MS
    operation = await business.sql.plan_changes.operation(quote)
    assert operation is not None
    return operation


async def test_a_call_of_yesterday_is_found_and_not_sent_again() -> None:
    """Stripe has forgotten the key, and its list of events names it."""
    business, (who,) = await begun(CHANGES["6"])
    quote, before = await quoted(business, who, CHANGES["6"])
    found = await carry_on(business.parts(), await left(business, quote, 3))

    assert found.state is OperationState.DONE
    await is_done(business, CHANGES["6"], quote, before)


async def test_a_subscription_of_yesterday_is_told_from_its_invoice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call causes several events within a second, and Stripe promises no order of them."""
    business, (who,) = await begun(CHANGES["2"])
    quote, before = await quoted(business, who, CHANGES["2"])
    # After Stripe made the subscription.
    operation = await left(business, quote, 5)
    real = business.client.events

    async def mixed(since_s: int, until_s: int) -> list[dict[str, object]]:
        found = await real(since_s, until_s)
        return sorted(found, key=lambda event: not str(event["type"]).startswith("invoice."))

    monkeypatch.setattr(business.client, "events", mixed)
    found = await carry_on(business.parts(), operation)

    assert found.subscription == business.subscriptions()[0]["id"]
    await is_done(business, CHANGES["2"], quote, before)


async def test_a_call_of_yesterday_that_never_arrived_is_not_sent() -> None:
    business, (who,) = await begun(CHANGES["6"])
    quote, _ = await quoted(business, who, CHANGES["6"])
    found = await carry_on(business.parts(), await left(business, quote, 2))

    assert (found.state, found.detail) == (
        OperationState.FAILED, "operation: Stripe never carried the call out: ask for a new quote",
    )  # fmt: skip
    assert business.bought() == {(ESSENTIAL, 1)}
    assert (await business.changed("pro"))[1].state is OperationState.DONE


async def test_a_doubt_stays_while_stripe_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    business, (who,) = await begun(CHANGES["6"])
    quote, _ = await quoted(business, who, CHANGES["6"])
    operation = await left(business, quote, 3)

    async def silent(*_: Any) -> str | None:
        raise Transient("no answer")

    with monkeypatch.context() as away:
        away.setattr(business.client, "carried_out", silent)
        assert (await carry_on(business.parts(), operation)).state is OperationState.UNKNOWN
        assert await business.sql.plan_changes.oldest_open_ms() == operation.made_ms
    assert (await carry_on(business.parts(), operation)).state is OperationState.DONE
    assert await business.sql.plan_changes.oldest_open_ms() is None


async def test_a_schedule_that_cannot_be_filled_is_released() -> None:
    business, (who,) = await begun(CHANGES["8"])
    quote, _ = await quoted(business, who, CHANGES["8"])
    business.stripe.simulator.test.store.remove("price", business.prices[f"tm.{ESSENTIAL}"])
    found = await accept(business.parts(), who.account, quote, "ann")

    assert not isinstance(found, Refusal)
    assert found[1].state is OperationState.FAILED
    assert [state for state, _ in business.schedules()] == ["released"]


async def test_a_declined_upgrade_of_an_ended_trial_changes_nothing() -> None:
    """The refusal that Stripe stored is the answer, also the second time."""
    change = CHANGES["4"]
    business, (who,) = await begun(change)
    quote, _ = await quoted(business, who, change)
    business.use_card("pm_card_chargeCustomerFail")
    with pytest.raises(Ends):
        await accept(business.parts([2], after=True), who.account, quote, "ann")
    found = await accept(business.parts(), who.account, quote, "ann")

    assert not isinstance(found, Refusal)
    assert (found[1].state, "card" in found[1].detail) == (OperationState.FAILED, True)
    assert business.at_stripe()["status"] == "trialing"


async def test_who_is_behind_does_not_fail_what_another_process_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second click is at the first call, and finds the subscription that the first one has made with the second."""
    business, (who,) = await begun(CHANGES["2"])
    quote, before = await quoted(business, who, CHANGES["2"])
    real = business.client.open_sessions

    async def overtaken(customer: str) -> Any:
        monkeypatch.setattr(business.client, "open_sessions", real)
        with pytest.raises(Ends):
            # After the process noted that the subscription was made.
            await accept(business.parts([5], after=True), who.account, quote, "ann")
        assert len(business.subscriptions()) == 1
        return await real(customer)

    monkeypatch.setattr(business.client, "open_sessions", overtaken)
    found = await accept(business.parts(), who.account, quote, "ann")

    assert not isinstance(found, Refusal)
    assert found[1].state is OperationState.DONE
    await is_done(business, CHANGES["2"], quote, before)


@pytest.mark.parametrize("name", ["16", "9"])
async def test_what_another_process_has_just_ended_is_no_failure(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both looked, and both ask Stripe: the second one is told that there is nothing to end."""
    business, (who,) = await begun(CHANGES[name])
    quote, before = await quoted(business, who, CHANGES[name])
    call = "cancel" if name == "16" else "release"
    real = getattr(business.client, call)

    async def twice(*arguments: Any) -> Any:
        await real(*arguments)
        return await real(*arguments)

    monkeypatch.setattr(business.client, call, twice)
    found = await accept(business.parts(), who.account, quote, "ann", by_operator=True)

    assert not isinstance(found, Refusal)
    assert (found[1].state, found[1].detail) == (OperationState.DONE, "")
    monkeypatch.undo()
    await is_done(business, CHANGES[name], quote, before)
