"""Whatever Stripe answers to one call, exactly one account or meter waits, and all others are billed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import httpx
import pytest
import pytest_asyncio

from pipeline.billing.window import Hold
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.errors import OperatorNeeded
from schemas.periods import Billing
from schemas.reports import OutcomeStatus
from tests.worlds.hostile_answers import FOREIGN, LISTS, METERS, STATUSES, SUMS, Hostile, error
from tests.worlds.sender import POLICY, Bench, make_intent
from tests.worlds.stripe_http import StripeOverHttp, sent

METER_LIST = "/v1/billing/meters"
SEND = "/v1/billing/meter_events"


class World:
    """A sender, and the real client whose answers a test replaces."""

    def __init__(self) -> None:
        self.bench = Bench()
        self.http = StripeOverHttp(self.bench.stripe, ["tokens", "seats"])
        self.meters = self.http.client()
        self.bench.meters = self.meters
        self.bench.sender = self.bench.new_sender()

    async def publish(self) -> None:
        """Two meters of the accounts a and b."""
        for account in "ab":
            await self.bench.publish(make_intent(f"{account}-tokens", account))
            await self.bench.publish(make_intent(f"{account}-seats", account, event_name="seats", meter="seats"))

    async def run(self, rounds: int = 30, step_ms: int = 0) -> None:
        """Let the sender work."""
        await self.bench.settle(rounds, step_ms)

    async def statuses(self) -> dict[str, OutcomeStatus]:
        """The outcome of each settled intent."""
        return {name: outcome.status for name, outcome in (await self.bench.outcomes()).items()}

    def held(self) -> dict[str, int]:
        """How many intents are on hold, by reason."""
        return self.bench.sender.status().held


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    """A world that has started."""
    world = World()
    await world.bench.start()
    yield world
    await world.meters.close()


def to_account_a(answer: Hostile) -> Callable[[httpx.Request], httpx.Response | None]:
    """Answers the sends of account a's tokens."""

    def hostile(request: httpx.Request) -> httpx.Response | None:
        if request.url.path != SEND or request.method != "POST":
            return None
        event = sent(request)
        is_a = (event.stripe_customer, event.event_name) == ("cus_a", "tokens")
        return answer.response() if is_a else None

    return hostile


OTHERS = {"a-seats", "b-tokens", "b-seats"}


@pytest.mark.parametrize("answer", STATUSES + FOREIGN + LISTS, ids=lambda answer: answer.name)
async def test_answer_to_one_send_concerns_that_account_or_meter_only(world: World, answer: Hostile) -> None:
    """Nothing else waits, and the event is taken when Stripe takes it, unless Stripe named the event itself."""
    world.http.hostile = to_account_a(answer)
    await world.publish()

    await world.run()

    is_meter = answer.name == "400 no_meter"
    expected = {"a-seats", "b-seats"} if is_meter else OTHERS
    settled = await world.statuses()
    assert {name for name, status in settled.items() if status is OutcomeStatus.ACCEPTED} >= expected
    if answer.names_event:
        assert settled["a-tokens"] is OutcomeStatus.DEAD
        return
    assert "a-tokens" not in settled
    world.http.hostile = lambda _request: None
    await world.run(30, 5 * MINUTE_MS)
    assert set(world.bench.counted().values()) == {1}
    assert (await world.statuses()).get("a-tokens") is OutcomeStatus.ACCEPTED


@pytest.mark.parametrize("status", [401, 403])
async def test_stripes_refusal_of_the_key_stops_the_sink(world: World, status: int) -> None:
    """The key is the same for all accounts."""
    world.http.hostile = to_account_a(error(status))
    await world.publish()

    with pytest.raises(OperatorNeeded, match="TIDEMARK_STRIPE_API_KEY"):
        await world.run()


@pytest.mark.parametrize("fields", METERS, ids=str)
async def test_meter_with_an_unreadable_field_is_held_alone(world: World, fields: dict[str, object]) -> None:
    """The other meter of the same list is used, and the meter itself when it is right again."""
    whole = world.http.meter
    world.http.meter = lambda name: whole(name) | (fields if name == "tokens" else {})  # type: ignore[method-assign]  # a fault
    await world.publish()

    await world.run()

    assert await world.statuses() == dict.fromkeys(("a-seats", "b-seats"), OutcomeStatus.ACCEPTED)
    assert world.held() == {"meter": 2}
    world.http.meter = whole  # type: ignore[method-assign]  # the fault is over
    await world.run(30, MINUTE_MS)
    assert len(await world.statuses()) == 4


@pytest.mark.parametrize(
    "answer",
    [answer for answer in STATUSES + FOREIGN + LISTS if answer.name not in ("data {}", "data []")],
    ids=lambda answer: answer.name,
)
async def test_answer_to_the_list_of_meters_ends_nothing(world: World, answer: Hostile) -> None:
    """A meter that is known already is used, and the others when the list is right."""
    await world.bench.publish(make_intent("first", "a"))
    await world.run()
    world.http.hostile = lambda request: answer.response() if request.url.path == METER_LIST else None
    await world.publish()
    world.http.event_names.append("gigabytes")
    await world.bench.publish(make_intent("new", "c", event_name="gigabytes", meter="gigabytes"))

    await world.run(30)

    assert set(await world.statuses()) == OTHERS | {"first", "a-tokens"}
    world.http.hostile = lambda _request: None
    await world.run(60, MINUTE_MS)
    assert set((await world.statuses()).values()) == {OutcomeStatus.ACCEPTED}
    assert len(await world.statuses()) == 6


@pytest.mark.parametrize(
    "answer", [error(401), error(403), *STATUSES, *FOREIGN, *LISTS, *SUMS], ids=lambda answer: answer.name
)
async def test_answer_to_one_summary_holds_that_account_only(world: World, answer: Hostile) -> None:
    """A lost answer more than 23 h ago is looked up. A sum that cannot be read ended the sink for everybody."""
    await world.bench.publish(make_intent("lost", "a"))
    world.http.hostile = to_account_a(error(500))
    await world.run(6)
    world.bench.clock.advance(DAY_MS)

    def hostile(request: httpx.Request) -> httpx.Response | None:
        return answer.response() if request.url.path.endswith("/event_summaries") else None

    world.http.hostile = hostile
    await world.bench.publish(make_intent("next", "b"))
    await world.run(10)

    # Stripe knows no such customer, so it has nothing of the customer.
    if "resource_missing" not in answer.name:
        assert "lost" not in await world.statuses()
    assert (await world.statuses())["next"] is OutcomeStatus.ACCEPTED
    world.http.hostile = lambda _request: None
    await world.run(60, HOUR_MS // 2)
    assert (await world.statuses())["lost"] is OutcomeStatus.ACCEPTED
    assert set(world.bench.counted().values()) == {1}


async def test_reactivated_meter_is_used_without_a_restart(world: World) -> None:
    """The remedy of the documents is enough: the deactivated meter was remembered until the sink restarted."""
    world.bench.stripe.inactive.add("tokens")
    await world.publish()
    await world.run()
    held = world.held()

    world.bench.stripe.inactive.clear()
    await world.run(30, MINUTE_MS)

    assert held == {str(Hold.METER): 2}
    assert len(await world.statuses()) == 4


async def test_meter_that_is_deactivated_later_holds_its_traffic_and_makes_no_dead_letters(world: World) -> None:
    """Twenty thousand accounts of a meter must not become twenty thousand dead letters; and Stripe is asked once a
    minute, not once an account."""
    await world.publish()
    await world.run()
    world.bench.stripe.inactive.add("tokens")
    asked: list[str] = []

    def watch(request: httpx.Request) -> None:
        asked.append(request.url.path)

    world.http.hostile = watch
    for account in "abcd":
        await world.bench.publish(*(make_intent(f"{account}{number}", account, 1 + number) for number in range(25)))
    await world.run(20)

    assert world.held() == {"meter": 100}
    assert len(asked) <= 4 * 2
    world.bench.stripe.inactive.clear()
    await world.run(60, MINUTE_MS)
    assert len(await world.statuses()) == 104
    assert set((await world.statuses()).values()) == {OutcomeStatus.ACCEPTED}


async def test_usage_after_a_correction_goes_on_while_the_unknown_customers_report_is_held(world: World) -> None:
    """The binding named a customer that Stripe does not have. The operator binds the right one for later usage, and
    the report from before does not block it. The report keeps its customer (ADR 12)."""
    world.http.hostile = to_account_a(error(400, "resource_missing", "No such customer: 'cus_a'"))
    await world.publish()
    await world.run()
    held = world.held()

    world.bench.billing["a"] = (Billing.MAPPED, "cus_c")
    await world.bench.publish(make_intent("later", "a", bucket=-1))
    await world.run(30, 4 * POLICY.hold_retry_ms)

    assert held == world.held() == {"account": 1}
    assert (await world.bench.outcomes())["later"].stripe_customer == "cus_c"
    assert "a-tokens" not in await world.statuses()

    world.http.hostile = lambda _request: None
    await world.run(30, 4 * POLICY.hold_retry_ms)

    assert (await world.bench.outcomes())["a-tokens"].stripe_customer == "cus_a"
