"""From a webhook to another answer: the mirror, the versions of entitlements, and the checks of a gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from decimal import Decimal

import pytest
import pytest_asyncio

from aggregators.entitlements import resolve, settling_until_ms
from pipeline.access import changes
from pipeline.access import known as known_accounts
from pipeline.access.billed import AGE_MS_MAX, PAUSE_MS
from pipeline.access.checks import AccessChecks
from schemas.access import Reason
from schemas.catalog import FeatureType, Merge
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.entitlements import Entitled, Entitlements, EntitlementVersion, Feature, Grant, Operation, SourceKind, Span
from schemas.errors import InvalidInput, Transient
from schemas.upgrades import Billed, Money
from tests.unit.catalog.files import SMALL, catalog_of
from tests.worlds.business import ONE, TEAM, Business, subscribe
from tests.worlds.clock import ManualClock
from tests.worlds.reconciler import START_MS


@pytest_asyncio.fixture
async def business() -> Business:
    """A customer without a subscription, linked to an account."""
    business = Business()
    await business.open()
    business.price = business.stripe.price()
    await business.apply(catalog_of(SMALL), {"seat": business.price})
    business.customer = business.stripe.customer()
    await business.link("acme", business.customer)
    await business.settle()
    return business


async def test_a_denied_check_names_the_plan_that_unlocks_it(business: Business) -> None:
    denied = await business.checks.check("acme", "sso", ONE)
    subscribe(business)
    await business.settle()
    allowed = await business.checks.check("acme", "sso", ONE)

    assert denied.upgrade is not None
    assert (denied.decision.allowed, denied.decision.reason) == (False, Reason.NOT_IN_PLAN)
    assert (denied.upgrade.offer, denied.upgrade.due_now) == (TEAM, Money(0, "usd", 2))
    assert (allowed.decision.allowed, allowed.decision.reason, allowed.upgrade) == (True, Reason.INCLUDED, None)
    assert (denied.version, allowed.version) == (1, 2)


async def test_a_cancellation_takes_the_plan_away(business: Business) -> None:
    subscription = subscribe(business)
    await business.settle()
    assert await business.reason("sso") is Reason.INCLUDED
    business.stripe.cancel(subscription)
    await business.settle()
    assert await business.reason("sso") is Reason.NOT_IN_PLAN


async def test_what_was_allowed_then_and_why_is_kept(business: Business) -> None:
    before_ms = business.clock.now_ms()
    business.clock.advance(MINUTE_MS)
    subscribe(business)
    await business.settle()
    then, now = [await business.sql.entitlements.version_at("acme", at) for at in (before_ms, business.clock.now_ms())]

    assert then is not None
    assert now is not None
    assert (then.version, now.version) == (1, 2)
    assert now.cause in {event["id"] for event in business.stripe.happened()}


async def test_a_limit_counts_live_usage(business: Business) -> None:
    subscribe(business)
    await business.settle()
    business.used = Decimal(4_999)
    reasons = [await business.reason("tokens", Decimal(quantity)) for quantity in (1, 2, 4_001, 4_002)]

    assert reasons == [Reason.INCLUDED, Reason.OVERAGE_BILLED, Reason.OVERAGE_BILLED, Reason.LIMIT_REACHED]


@pytest.mark.parametrize(
    ("began_ms", "bought_ms_ago", "used"),
    [
        pytest.param(-DAY_MS, 0, 0, id="the period before the purchase"),
        pytest.param(-DAY_MS, 14 * MINUTE_MS, 0, id="still"),
        pytest.param(-DAY_MS, 15 * MINUTE_MS, 60_000, id="long after the purchase"),
        pytest.param(6 * MINUTE_MS, 14 * MINUTE_MS, 60_000, id="the period after the purchase"),
        pytest.param(-30_000, 0, 60_000, id="the minute of the purchase"),
    ],
)
async def test_usage_before_a_purchase_counts_for_nothing(
    business: Business, began_ms: int, bought_ms_ago: int, used: int
) -> None:
    """The period is cut some minutes after the purchase. Until then the old usage must not deny what was just paid."""
    business.clock.advance(DAY_MS)
    subscribe(business)
    bought_ms = business.clock.now_ms()
    await business.settle()
    business.used, business.period_start_ms = Decimal(60_000), bought_ms + began_ms
    business.clock.advance(bought_ms_ago)
    assert (await business.checks.check("acme", "tokens", ONE)).decision.used == Decimal(used)


def test_a_change_within_a_subscription_is_no_purchase() -> None:
    """A phase of a schedule begins another plan in a period that goes on; another subscription begins a period."""

    def phase(starts_ms: int, ends_ms: int | None, cause: str, value: int) -> Grant:
        plan = (SourceKind.PLAN, "team@1", Operation.SET, Decimal(value))
        return Grant("tokens", *plan, starts_ms, ends_ms, cause=cause)

    features = [Feature("tokens", FeatureType.LIMIT, Merge.MAX)]
    spans = (Span(START_MS), Span(START_MS + DAY_MS))
    first = phase(START_MS, START_MS + DAY_MS, "sub_1", 5)
    changed = resolve(features, Entitled((first, phase(START_MS + DAY_MS, None, "sub_1", 9)), spans))
    bought = resolve(features, Entitled((first, phase(START_MS + DAY_MS, None, "sub_2", 9)), spans))

    now_ms = START_MS + DAY_MS + MINUTE_MS
    assert settling_until_ms(changed, now_ms) is None
    assert settling_until_ms(bought, now_ms) == (START_MS + DAY_MS, START_MS + DAY_MS + 15 * MINUTE_MS)
    assert settling_until_ms(resolve(features, Entitled(())), now_ms) is None


async def test_an_unknown_account_has_the_default_plan(business: Business) -> None:
    assert await business.reason("tokens", account="nobody") is Reason.WITHIN_LIMIT
    assert await business.reason("sso", account="nobody") is Reason.NO_ACCOUNT


async def test_an_account_that_was_unknown_is_known_after_its_sign_up(business: Business) -> None:
    assert await business.reason("sso", account="globex") is Reason.NO_ACCOUNT
    await business.sql.entitlements.override(
        "globex",
        Grant("sso", SourceKind.OVERRIDE, "o", Operation.SET, True, 0, cause="ann", reason="a gift"),
        "ann",
        START_MS,
    )
    await business.settle()
    assert await business.reason("sso", account="globex") is Reason.INCLUDED


async def test_an_override_that_was_taken_back_no_longer_holds(business: Business) -> None:
    grant = Grant("sso", SourceKind.OVERRIDE, "o", Operation.SET, True, 0, cause="ann", reason="a gift")
    made = await business.sql.entitlements.override("acme", grant, "ann", START_MS)
    await business.settle()
    assert await business.reason("sso") is Reason.INCLUDED
    await business.sql.entitlements.revoke("acme", made.number, "ann", "a mistake", START_MS)
    await business.settle()
    assert await business.reason("sso") is Reason.NOT_IN_PLAN


async def test_another_catalog_changes_the_answer_of_those_who_have_no_plan(business: Business) -> None:
    generous = catalog_of(
        SMALL.replace("version: 1\nmeters", "version: 2\nmeters")
        .replace("version: 1\n    prices: none", "version: 2\n    prices: none")
        .replace("tokens: 1000", "tokens: 2000")
    )
    await business.apply(generous, {})
    business.clock.advance(MINUTE_MS)
    await business.settle()
    answer = await business.checks.check("acme", "tokens", ONE)

    assert answer.decision.limit == 2000


@pytest.mark.parametrize(("feature", "reason"), [("tokens", Reason.FALLBACK_DENY), ("calls", Reason.FALLBACK_ALLOW)])
async def test_without_live_usage_the_feature_says(business: Business, feature: str, reason: Reason) -> None:
    text = SMALL.replace("version: 1\nmeters", "version: 2\nmeters").replace(
        "  reporting: {type: config}\n",
        "  reporting: {type: config}\n  calls: {type: limit, merge: max, meter: calls, on_error: allow}\n",
    )
    await business.apply(catalog_of(text), {})
    business.clock.advance(MINUTE_MS)
    await business.settle()
    business.away = True

    assert await business.reason(feature) is reason


async def test_a_feature_that_the_catalog_does_not_have(business: Business) -> None:
    with pytest.raises(InvalidInput, match="no feature"):
        await business.checks.check("acme", "nothing", ONE)


async def test_no_older_version_comes_back(business: Business, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQL's answer about an account comes late, after a newer version was announced."""
    await business.settle()
    store, asked, answer = business.sql.entitlements, asyncio.Event(), asyncio.Event()
    latest = store.latest

    async def late(self: Entitlements, accounts: Sequence[str]) -> Mapping[str, EntitlementVersion]:
        found = await latest(accounts)
        monkeypatch.setattr(type(self), "latest", lambda _self, accounts: latest(accounts))
        asked.set()
        await answer.wait()
        return found

    monkeypatch.setattr(type(store), "latest", late)
    check = asyncio.create_task(business.checks.check("acme", "sso", ONE))
    await asked.wait()
    subscribe(business)
    await business.settle()
    answer.set()

    assert [(await check).version, (await business.checks.check("acme", "sso", ONE)).version] == [2, 2]


async def test_versions_arrive_whatever_the_clocks_say(business: Business) -> None:
    """The clock of the gateway is an hour ahead of that of the mirror."""
    ahead = ManualClock(START_MS + HOUR_MS)
    checks = AccessChecks(business.sql.catalog, business.sql.entitlements, business.usage, ahead)
    before = await checks.check("acme", "sso", ONE)
    await checks.refresh()
    subscribe(business)
    await business.settle()
    await checks.refresh()

    assert [before.version, (await checks.check("acme", "sso", ONE)).version] == [1, 2]


async def test_a_price_of_somebody_else_takes_nothing_away(business: Business) -> None:
    subscription = subscribe(business)
    await business.settle()
    item = business.stripe.call("GET /v1/subscriptions/{subscription_exposed_id}", {}, subscription)["items"]["data"][0]
    foreign = business.stripe.price(amount=7)
    business.stripe.change(subscription, items=[{"id": item["id"], "price": foreign}])
    await business.settle()

    assert await business.reason("sso") is Reason.INCLUDED


@pytest.mark.parametrize("is_canceled", [False, True], ids=["in force", "canceled"])
async def test_a_subscription_to_something_else_holds_nothing_back(business: Business, is_canceled: bool) -> None:
    other = business.stripe.subscribe(business.customer, business.stripe.price(amount=7))
    await business.settle()
    business.clock.advance(MINUTE_MS)
    if is_canceled:
        business.stripe.cancel(other)
    subscription = subscribe(business)
    await business.settle()
    bought = await business.reason("sso")
    grant = Grant("sso", SourceKind.OVERRIDE, "o", Operation.DENY, False, 0, cause="ann", reason="abuse")
    made = await business.sql.entitlements.override("acme", grant, "ann", START_MS)
    await business.settle()
    denied = await business.reason("sso")
    await business.sql.entitlements.revoke("acme", made.number, "ann", "settled", START_MS)
    business.stripe.cancel(subscription)
    await business.settle()

    assert [bought, denied, await business.reason("sso")] == [
        Reason.INCLUDED, Reason.DENIED_BY_OVERRIDE, Reason.NOT_IN_PLAN,
    ]  # fmt: skip


async def test_a_plan_whose_price_became_unknown_ends_with_its_subscription(business: Business) -> None:
    subscription = subscribe(business)
    await business.settle()
    item = business.stripe.call("GET /v1/subscriptions/{subscription_exposed_id}", {}, subscription)["items"]["data"][0]
    business.stripe.change(subscription, items=[{"id": item["id"], "price": business.stripe.price(amount=7)}])
    await business.settle()
    business.clock.advance(MINUTE_MS)
    business.stripe.cancel(subscription)
    await business.settle()

    assert await business.reason("sso") is Reason.NOT_IN_PLAN


@pytest.mark.parametrize("feature", ["calls", "theme"])
async def test_a_feature_that_is_newer_than_the_entitlements_is_not_given(business: Business, feature: str) -> None:
    text = SMALL.replace("version: 1\nmeters", "version: 2\nmeters").replace(
        "  reporting: {type: config}\n",
        "  reporting: {type: config}\n  calls: {type: limit, merge: max, meter: calls}\n  theme: {type: config}\n",
    )
    await business.apply(catalog_of(text), {})
    business.clock.advance(MINUTE_MS)
    await business.checks.refresh()
    answer = await business.checks.check("acme", feature, ONE)

    assert (answer.version, answer.decision.allowed, answer.decision.value in (None, "null")) == (1, False, True)


async def test_many_changes_at_once_all_arrive(business: Business, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "CHANGED_AT_ONCE", 3)
    monkeypatch.setattr(known_accounts, "READ_AT_ONCE", 2)
    names = [f"account {number}" for number in range(7)]
    for name in names:
        await business.checks.check(name, "sso", ONE)
    # SQL was away for the gateway, longer than the reads overlap.
    for name in names:
        grant = Grant("sso", SourceKind.OVERRIDE, "o", Operation.SET, True, 0, cause="ann", reason="a gift")
        await business.sql.entitlements.override(name, grant, "ann", START_MS)
        await business.renewal.turn()
        business.clock.advance(MINUTE_MS)
    await business.checks.refresh()

    assert {await business.reason("sso", account=name) for name in names} == {Reason.INCLUDED}


async def test_checks_of_an_account_that_come_together_read_it_once(
    business: Business, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, asked, answer = business.sql.entitlements, asyncio.Event(), asyncio.Event()
    latest, calls = store.latest, 0

    async def slow(_self: object, accounts: Sequence[str]) -> Mapping[str, EntitlementVersion]:
        nonlocal calls
        calls += 1
        asked.set()
        await answer.wait()
        return await latest(accounts)

    monkeypatch.setattr(type(store), "latest", slow)
    checks = [asyncio.create_task(business.checks.check("acme", "sso", ONE)) for _ in range(5)]
    await asked.wait()
    checks[0].cancel()
    answer.set()
    answers = await asyncio.gather(*checks[1:])

    assert (calls, {each.version for each in answers}) == (1, {1})


async def test_accounts_in_memory_are_bounded(business: Business) -> None:
    checks = AccessChecks(business.sql.catalog, business.sql.entitlements, business.usage, business.clock, 10)
    for number in range(50):
        await checks.check(f"account {number}", "sso", ONE)

    assert checks.accounts == 10


async def test_what_an_account_pays_is_read_once_for_a_version_and_again_later(
    business: Business, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, read = business.sql.entitlements, type(business.sql.entitlements).billed
    times: list[int] = []

    async def counting(_self: object, account: str, now_ms: int) -> Billed:
        times.append(now_ms)
        return await read(store, account, now_ms)

    monkeypatch.setattr(type(store), "billed", counting)
    counts = []
    for happens in ("nothing", "nothing", "an override", "half a minute"):
        if happens == "an override":
            grant = Grant(
                "tokens", SourceKind.OVERRIDE, "o", Operation.ADD, Decimal(5), 0, cause="ann", reason="a gift"
            )
            await store.override("acme", grant, "ann", START_MS)
            await business.settle()
        business.clock.advance(AGE_MS_MAX + 1 if happens == "half a minute" else 0)
        await business.reason("sso")
        counts.append(len(times))
    await business.reason("tokens")

    assert counts == [1, 1, 2, 3]
    assert len(times) == 3


@pytest.mark.parametrize("hears", [True, False], ids=["heard of", "not heard of"])
async def test_a_renewed_period_is_that_of_the_answer(business: Business, hears: bool) -> None:
    """Nothing of the entitlements changes, so there is no other version, whether the renewal was heard of or not."""
    items = [{"price": business.price, "quantity": 4}]
    business.stripe.call("POST /v1/subscriptions", {"customer": business.customer, "items": items})
    await business.settle()
    business.used = Decimal(9_000)
    versions, due = [], []
    for days in (0, 15, 22):
        business.clock.advance(days * DAY_MS)
        if hears:
            await business.settle()
        answer = await business.checks.check("acme", "tokens", ONE)
        assert answer.upgrade is not None
        versions.append(answer.version)
        due.append(answer.upgrade.due_now.minor)

    # The periods of 30 and 31 days began on November 10 and December 10; it is November 25, then December 17.
    assert (versions, due) == ([2, 2, 2], [500, 250, 387])


async def test_without_sql_a_denied_check_names_no_upgrade(business: Business, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQL is asked once in a while, and not by every check."""
    await business.reason("tokens")
    times: list[int] = []

    async def away(_self: object, _account: str, now_ms: int) -> Billed:
        times.append(now_ms)
        raise Transient("PostgreSQL does not answer")

    monkeypatch.setattr(type(business.sql.entitlements), "billed", away)
    answers = [await business.checks.check("acme", "sso", ONE) for _ in range(3)]
    business.clock.advance(PAUSE_MS)
    answers.append(await business.checks.check("acme", "sso", ONE))

    assert {(each.decision.reason, each.upgrade) for each in answers} == {(Reason.NOT_IN_PLAN, None)}
    assert len(times) == 2


async def test_denied_checks_that_come_together_read_once_what_is_paid(
    business: Business, monkeypatch: pytest.MonkeyPatch
) -> None:
    await business.reason("tokens")
    store, read, calls = business.sql.entitlements, type(business.sql.entitlements).billed, 0

    async def slow(_self: object, account: str, now_ms: int) -> Billed:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)
        return await read(store, account, now_ms)

    monkeypatch.setattr(type(store), "billed", slow)
    answers = await asyncio.gather(*(business.checks.check("acme", "sso", ONE) for _ in range(5)))

    assert (calls, {each.upgrade.offer for each in answers if each.upgrade}) == (1, {TEAM})
