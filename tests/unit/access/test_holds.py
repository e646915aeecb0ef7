"""Checks that hold a quantity for their caller, and what plain checks see of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from decimal import Decimal

import pytest
import pytest_asyncio

from pipeline.access import holds as gateway_holds
from pipeline.access.checks import AccessChecks, Answer, Counted
from pipeline.access.holds import HoldRequest
from schemas.access import Reason
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.errors import InvalidInput, Transient
from schemas.holds import HOLD_S_MAX, SETTLE_MS, Hold, HoldState
from sinks.sql import holds as sql_holds
from tests.unit.catalog.files import SMALL, catalog_of
from tests.worlds.business import ONE, Business
from tests.worlds.reconciler import START_MS

MINUTE = HoldRequest(60)
LIMIT = 1_000


@pytest_asyncio.fixture
async def business() -> Business:
    """Accounts that nobody made have the default plan: 1000 tokens and one seat."""
    business = Business()
    await business.open()
    await business.apply(catalog_of(SMALL), {})
    await business.settle()
    return business


async def held(checks: AccessChecks, quantity: int, feature: str = "tokens", request: HoldRequest = MINUTE) -> Answer:
    return await checks.check("acme", feature, Decimal(quantity), hold=request)


async def test_a_hold_takes_room_from_others(business: Business) -> None:
    business.used = Decimal(300)
    first = await held(business.checks, 600)
    second = await held(business.checks, 101)
    plain = await business.checks.check("acme", "tokens", Decimal(101))

    assert first.hold is not None
    assert second.hold is None
    assert [
        (each.decision.reason, str(each.decision.held), str(each.decision.remaining))
        for each in (first, second, plain)
    ] == [
        (Reason.WITHIN_LIMIT, "0", "700"), (Reason.LIMIT_REACHED, "600", "100"), (Reason.LIMIT_REACHED, "600", "100"),
    ]  # fmt: skip


async def test_another_gateway_sees_a_hold_after_its_refresh(business: Business) -> None:
    other = business.gateway()
    await other.refresh()
    await held(business.checks, 600)
    before = (await other.check("acme", "tokens", ONE)).decision.held
    await other.refresh()
    after = (await other.check("acme", "tokens", ONE)).decision.held

    assert [before, after] == [0, 600]


async def test_what_is_given_back_is_seen_within_the_age_of_the_usage(business: Business) -> None:
    taken = await held(business.checks, 600)
    other = business.gateway()
    await other.refresh()
    seen = [(await other.check("acme", "tokens", ONE)).decision.held]
    assert business.checks.holds is not None
    assert taken.hold is not None
    await business.checks.holds.end(taken.hold, Decimal(0))
    for age_ms in (0, gateway_holds.AGE_MS_MAX + 1):
        business.clock.advance(age_ms)
        seen.append((await other.check("acme", "tokens", ONE)).decision.held)

    assert seen == [600, 600, 0]


async def test_an_account_without_holds_asks_sql_nothing(business: Business, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(_self: object, _account: str, _since_ms: int) -> Sequence[Hold]:
        raise AssertionError("a plain check asked for holds")

    await held(business.checks, 5)
    monkeypatch.setattr(type(business.sql.holds), "open", fails)

    assert (await business.checks.check("globex", "tokens", ONE)).decision.held == 0


async def test_too_many_holders_to_know_are_asked_for_one_by_one(
    business: Business, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_holds, "HOLDERS_MAX", 1)
    for account in ("acme", "globex", "initech"):
        await business.checks.check(account, "tokens", ONE, hold=MINUTE)
    other = business.gateway()
    await other.refresh()

    assert [(await other.check(account, "tokens", ONE)).decision.held for account in ("acme", "initech", "nobody")] == [
        1,
        1,
        0,
    ]


async def test_two_features_of_one_meter_share_their_holds(business: Business) -> None:
    text = SMALL.replace("version: 1\nmeters", "version: 2\nmeters").replace(
        "  reporting: {type: config}\n",
        "  reporting: {type: config}\n  big: {type: limit, merge: max, meter: tokens}\n",
    )
    text = text.replace(
        "version: 1\n    prices: none\n    grants: {", "version: 2\n    prices: none\n    grants: {big: 2000, "
    )
    await business.apply(catalog_of(text), {})
    business.clock.advance(MINUTE_MS)
    await business.settle()
    await held(business.checks, 800, "big")

    assert (await held(business.checks, 201)).decision.reason is Reason.LIMIT_REACHED


async def test_seats_are_held_beside_the_callers_count(business: Business) -> None:
    first, second = [await business.checks.check("acme", "seats", ONE, Decimal(0), MINUTE) for _ in range(2)]

    assert first.hold is not None
    assert (second.hold, second.decision.reason) == (None, Reason.SEATS_FULL)


async def test_the_same_key_gives_the_same_hold_even_when_the_limit_is_full(business: Business) -> None:
    first = await held(business.checks, 1_000, request=HoldRequest(60, "job 1"))
    again = await held(business.gateway(), 1_000, request=HoldRequest(60, "job 1"))
    business.used = Decimal(1_000)
    full = await held(business.checks, 1_000, request=HoldRequest(60, "job 1"))

    assert first.hold == again.hold == full.hold
    assert (full.decision.allowed, full.decision.reason) == (True, Reason.WITHIN_LIMIT)


BAD: dict[str, tuple[str, int, HoldRequest, str]] = {
    "a flag": ("sso", 1, MINUTE, "hold_s"),
    "a config": ("reporting", 1, MINUTE, "hold_s"),
    "nothing": ("tokens", 0, MINUTE, "quantity"),
    "too long": ("tokens", 1, HoldRequest(HOLD_S_MAX + 1), "hold_s"),
    "negative": ("tokens", 1, HoldRequest(-1), "hold_s"),
    "a long key": ("tokens", 1, HoldRequest(60, "k" * 201), "Idempotency-Key"),
    "a key that no person reads": ("tokens", 1, HoldRequest(60, "a\0"), "Idempotency-Key"),
}


@pytest.mark.parametrize(("feature", "quantity", "request_", "field"), BAD.values(), ids=BAD)
async def test_what_cannot_be_held(
    business: Business, feature: str, quantity: int, request_: HoldRequest, field: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        await held(business.checks, quantity, feature, request_)
    assert caught.value.field == field


async def test_without_redis_nothing_is_held(business: Business) -> None:
    business.away = True
    answer = await held(business.checks, 5)

    assert (answer.hold, answer.decision.reason) == (None, Reason.FALLBACK_DENY)


async def test_more_waiting_requests_than_the_gateway_keeps_are_answered_without_a_hold(
    business: Business, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_holds, "WAITING_MAX", 0)
    answer = await held(business.checks, 5)

    assert (answer.hold, answer.decision.reason) == (None, Reason.FALLBACK_DENY)


BOUNDS: dict[str, tuple[str | None, int, int | None]] = {
    "no rate is known": (None, 1_000, None),
    "the rate times the age": ("600", 1_000, 10),
    "rounded up": ("61", 1_000, 2),
    "fresh": ("600", 0, 0),
}


@pytest.mark.parametrize(("a_minute", "age_ms", "bound"), BOUNDS.values(), ids=BOUNDS)
async def test_how_wrong_an_answer_can_be(
    business: Business, a_minute: str | None, age_ms: int, bound: int | None
) -> None:
    business.a_minute = None if a_minute is None else Decimal(a_minute)
    business.complete_up_to_ms = business.clock.now_ms() - age_ms
    plain = await business.checks.check("acme", "tokens", ONE)
    await held(business.checks, 5)
    beside = await business.checks.check("acme", "tokens", ONE)

    assert plain.overshoot_bound == bound
    assert beside.overshoot_bound == (None if bound is None else bound + 5)


@pytest.mark.parametrize(("used", "quantity", "fresh"), [(898, 1, 0), (899, 1, 1), (0, 900, 1), (1_000, 1, 1)])
async def test_near_a_limit_no_old_total_decides(business: Business, used: int, quantity: int, fresh: int) -> None:
    business.used = Decimal(used)
    await business.checks.check("acme", "tokens", Decimal(quantity))

    assert business.fresh_reads == fresh


class Skewed:
    """A clock that is ahead of another."""

    def __init__(self, business: Business, ahead_ms: int) -> None:
        self._business = business
        self._ahead_ms = ahead_ms

    def now_ms(self) -> int:
        return self._business.clock.now_ms() + self._ahead_ms

    async def sleep(self, duration_s: float) -> None:
        raise NotImplementedError


class Model:
    """Callers of one account over two gateways, whose clocks differ, and a worker that counts late.

    A caller uses a hold only until it expires, sends its events first, and then says so; or it crashes at any step.
    """

    def __init__(self, business: Business, seed: int) -> None:
        self.business, self.random, self.account = business, random.Random(seed), f"account {seed}"
        self.clock = business.clock
        self.sent: list[tuple[int, int]] = []
        self.complete_up_to_ms = self.clock.now_ms()
        self.mine: list[Hold] = []
        self.granted = self.denied = 0
        self.gateways = [
            AccessChecks(
                business.sql.catalog, business.sql.entitlements, self.usage, Skewed(business, ahead_ms),
                holds=business.sql.holds,
            )
            for ahead_ms in (-900, 900)
        ]  # fmt: skip

    async def usage(self, _account: str, _meter: str, *, fresh: bool = False) -> Counted:  # noqa: ARG002  # a protocol
        used = sum(quantity for at_ms, quantity in self.sent if at_ms < self.complete_up_to_ms)
        return Counted(Decimal(used), START_MS + DAY_MS, self.complete_up_to_ms)

    async def step(self) -> None:
        """One random thing happens."""
        kind = self.random.choice(("take", "take", "use", "use", "crash", "release", "time", "count", "count"))
        if kind == "take":
            await self.take(self.random.randint(1, 400), self.random.randint(1, 120))
        elif kind == "time":
            self.clock.advance(self.random.choice((1, 500, 2_000, 30_000)))
        elif kind == "count":
            behind_ms = self.random.choice((0, 0, 1_000, 30_000, 600_000))
            self.complete_up_to_ms = max(self.complete_up_to_ms, self.clock.now_ms() - behind_ms)
        elif self.mine:
            await self.finish(self.mine.pop(self.random.randrange(len(self.mine))), kind)

    async def take(self, quantity: int, seconds: int) -> bool:
        gateway = self.random.choice(self.gateways)
        answer = await gateway.check(self.account, "tokens", Decimal(quantity), hold=HoldRequest(seconds))
        if answer.hold is None:
            self.denied += 1
            return False
        self.granted += 1
        self.mine.append(answer.hold)
        return True

    async def finish(self, hold: Hold, kind: str) -> None:
        """Use a hold wholly or in part, crash before or after the events are sent, or give it back."""
        holds = self.random.choice(self.gateways).holds
        assert holds is not None
        if kind == "release":
            await holds.end(hold, Decimal(0))
        elif self.clock.now_ms() <= hold.expires_ms - 900:
            quantity = self.random.choice((int(hold.quantity), self.random.randint(1, int(hold.quantity))))
            if kind == "use" or self.random.random() < 0.5:
                self.sent.append((self.clock.now_ms(), quantity))
            if kind == "use":
                assert (await holds.end(hold, Decimal(quantity))).state(0) is HoldState.USED

    @property
    def promised(self) -> int:
        """What callers may still send."""
        return sum(int(hold.quantity) for hold in self.mine if self.clock.now_ms() <= hold.expires_ms - 900)

    @property
    def total(self) -> int:
        return sum(quantity for _, quantity in self.sent)


async def test_random_callers_never_overspend_a_limit_and_lose_no_room(business: Business) -> None:
    granted = denied = full = 0
    for seed in range(60):
        model = Model(business, seed)
        for _ in range(80):
            await model.step()
            assert model.total + model.promised <= LIMIT, seed
        # Everything is over and counted: the rest of the limit is free, and not one more.
        business.clock.advance(10 * MINUTE_MS)
        model.complete_up_to_ms, model.mine = business.clock.now_ms(), []
        rest = LIMIT - model.total
        assert not await model.take(rest + 1, 1), seed
        assert rest == 0 or await model.take(rest, 1), seed
        granted, denied, full = granted + model.granted, denied + model.denied, full + (model.total > LIMIT - 100)

    assert min(granted, denied) > 300
    assert full > 5


async def test_a_store_that_comes_back_takes_holds_again(business: Business, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(_self: object, *_arguments: object) -> None:
        raise Transient("PostgreSQL does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(type(business.sql.holds), "take", away)
        failed = await held(business.checks, 5)
    assert (failed.hold, failed.decision.reason) == (None, Reason.FALLBACK_DENY)
    assert (await held(business.checks, 5)).hold is not None


async def test_ended_holds_of_metered_usage_leave_room_for_holds_of_seats(
    business: Business, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_holds, "OPEN_MAX", 1)
    used = await held(business.checks, 5)
    assert business.checks.holds is not None
    assert used.hold is not None
    await business.checks.holds.end(used.hold, Decimal(5))
    business.clock.advance(MINUTE_MS)

    assert (await business.checks.check("acme", "seats", ONE, Decimal(0), MINUTE)).hold is not None


async def test_a_check_of_seats_hides_no_hold_from_a_check_of_a_limit(business: Business) -> None:
    """The usage is half a minute behind; a hold of seats counts for seconds."""
    taken = await held(business.checks, 600)
    assert business.checks.holds is not None
    assert taken.hold is not None
    await business.checks.holds.end(taken.hold, Decimal(600))
    business.clock.advance(MINUTE_MS // 2)
    await business.checks.check("acme", "seats", ONE, Decimal(0))

    assert (await business.checks.check("acme", "tokens", ONE)).decision.held == 600


async def test_a_gateway_that_could_not_read_who_has_holds_asks_for_each_account(
    business: Business, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_self: object, *_arguments: object) -> None:
        raise Transient("PostgreSQL does not answer")

    await held(business.checks, 600)
    other = business.gateway()
    monkeypatch.setattr(type(business.sql.holds), "holders", away)
    with pytest.raises(Transient):
        await other.refresh()

    assert (await other.check("acme", "tokens", ONE)).decision.held == 600


async def test_without_postgresql_an_account_is_answered_from_memory_once_its_holds_are_over(
    business: Business, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_self: object, *_arguments: object) -> None:
        raise Transient("PostgreSQL does not answer")

    await business.checks.check("acme", "tokens", ONE)
    await held(business.gateway(), 600)
    await business.checks.refresh()
    monkeypatch.setattr(type(business.sql.holds), "open", away)
    reasons = []
    for ms in (0, MINUTE_MS, SETTLE_MS + 1):
        business.clock.advance(ms)
        business.complete_up_to_ms = business.clock.now_ms()
        reasons.append((await business.checks.check("acme", "tokens", ONE)).decision.reason)

    assert reasons == [Reason.FALLBACK_DENY, Reason.FALLBACK_DENY, Reason.WITHIN_LIMIT]


async def test_usage_that_is_far_behind_has_sql_asked_for_older_holds(business: Business) -> None:
    """A gateway that starts reads who had holds in the last hour."""
    await held(business.checks, 600)
    began_ms = business.clock.now_ms()
    business.clock.advance(2 * HOUR_MS)
    other = business.gateway()
    await other.refresh()
    seen = []
    for complete_up_to_ms in (business.clock.now_ms(), began_ms):
        business.complete_up_to_ms = complete_up_to_ms
        seen.append((await other.check("acme", "tokens", ONE)).decision.held)

    assert seen == [0, 600]


async def test_a_repeated_request_names_no_upgrade(business: Business) -> None:
    for used in (0, 1_000):
        business.used = Decimal(used)
        again = await held(business.checks, 600, request=HoldRequest(60, "job 1"))

    assert (again.decision.allowed, again.upgrade) == (True, None)


async def test_a_store_that_hangs_delays_a_waiting_request_once(
    business: Business, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for a slot no longer than for an answer."""

    async def hangs(_self: object, *_arguments: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(gateway_holds, "WAIT_S_MAX", 0.01)
    monkeypatch.setattr(type(business.sql.holds), "take", hangs)
    stuck = [asyncio.ensure_future(held(business.checks, 1)) for _ in range(gateway_holds.AT_ONCE)]
    await asyncio.sleep(0)
    answer = await held(business.checks, 1)
    for each in stuck:
        each.cancel()
    await asyncio.gather(*stuck, return_exceptions=True)

    assert (answer.hold, answer.decision.reason) == (None, Reason.FALLBACK_DENY)
