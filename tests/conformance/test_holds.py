"""What the store of holds promises, on PostgreSQL and on the simulation's fake."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
import pytest_asyncio

from aggregators.catalog_plan import catalog_hash
from pipeline.access.checks import AccessChecks, Counted
from pipeline.access.holds import HoldRequest
from schemas.catalog_changes import CatalogPlan, KnownPlan, PlanState
from schemas.clock import DAY_MS, SECOND_MS
from schemas.errors import InvalidInput
from schemas.holds import KEPT_MS, SETTLE_MS, Hold, Holds, HoldState, Taken
from sinks.sql import holds as sql_holds
from sinks.sql.side_tables import SqlSideTables
from sinks.sql.store import PostgresSideTables
from tests.services.postgres import LOG_ID, SCOPE, last_link_pays
from tests.unit.catalog.files import SMALL, catalog_of

NOW_MS = 1_795_257_000_000
TOKENS = frozenset({"tokens"})
CATALOG = catalog_of(SMALL)


def hold(number: int = 1, quantity: str = "10", **changes: Any) -> Hold:
    """A hold of a minute."""
    made = Hold(f"hold_{number}", "acme", "tokens", Decimal(quantity), NOW_MS, NOW_MS + 60_000, is_metered=True)
    return made._replace(**changes)


def up_to(room: int, quantity: int = 10) -> Callable[[Decimal], bool]:
    """Whether a limit of `room` has room for a quantity."""
    return lambda held: held + quantity <= room


@pytest_asyncio.fixture
async def store(side_tables: SqlSideTables) -> Holds:
    """The empty store."""
    return side_tables.holds


async def take(store: Holds, made: Hold, room: int = 100, up_to_ms: int | None = NOW_MS, now_ms: int = NOW_MS) -> Taken:
    return await store.take(made, TOKENS, up_to(room, int(made.quantity)), up_to_ms, now_ms)


async def test_holds_are_taken_until_the_limit_has_no_room(store: Holds) -> None:
    taken = [await take(store, hold(number), room=25) for number in range(4)]

    assert [each.hold is not None for each in taken] == [True, True, False, False]
    assert [each.held for each in taken] == [0, 10, 20, 20]
    assert taken[0].hold == await store.get("hold_0") == hold(0)


async def test_a_smaller_quantity_still_fits(store: Holds) -> None:
    await take(store, hold(1, "20"), room=25)
    assert (await take(store, hold(2, "6"), room=25)).hold is None
    assert (await take(store, hold(3, "5"), room=25)).hold is not None


async def test_other_accounts_and_features_do_not_share_a_limit(store: Holds) -> None:
    await take(store, hold(1), room=10)
    await take(store, hold(2, account="globex"), room=10)
    other = await store.take(hold(3, feature="calls"), frozenset({"calls"}), up_to(10), NOW_MS, NOW_MS)
    both = await store.take(hold(4), frozenset({"calls", "tokens"}), up_to(100), NOW_MS, NOW_MS)

    assert other.hold is not None
    assert both.held == 20


ENDS: dict[str, tuple[str | None, int, HoldState, int, int]] = {
    # What the caller says, and when; the state; what counts while usage is complete up to then, and a while later.
    "used": ("7", 1_000, HoldState.USED, 7, 0),
    "used with all": ("10", 60_000, HoldState.USED, 10, 0),
    "released": ("0", 1_000, HoldState.RELEASED, 0, 0),
    "nothing is said": (None, 60_001, HoldState.EXPIRED, 10, 0),
    "used too late": ("7", 60_001, HoldState.EXPIRED, 10, 0),
    "released late": ("0", 60_001, HoldState.RELEASED, 0, 0),
}


@pytest.mark.parametrize(("used", "after_ms", "state", "counts", "later"), ENDS.values(), ids=ENDS)
async def test_a_hold_counts_until_its_usage_is_certain(
    store: Holds, used: str | None, after_ms: int, state: HoldState, counts: int, later: int
) -> None:
    await take(store, hold(1))
    now_ms = NOW_MS + after_ms
    ended = await store.get("hold_1") if used is None else await store.end("hold_1", Decimal(used), now_ms)
    assert ended is not None
    until_ms = min(now_ms, NOW_MS + 60_000)
    held = [
        int((await take(store, hold(2), room=0, up_to_ms=up_to_ms, now_ms=now_ms + DAY_MS)).held)
        for up_to_ms in (until_ms + SETTLE_MS, until_ms + SETTLE_MS + 1)
    ]

    assert ended.state(now_ms) is state
    assert held == [counts, later]


async def test_usage_that_is_behind_keeps_a_hold_for_as_long(store: Holds) -> None:
    await take(store, hold(1))
    await store.end("hold_1", Decimal(4), NOW_MS + 1)
    found = [
        (await take(store, hold(2), room=0, up_to_ms=up_to_ms, now_ms=NOW_MS + DAY_MS - 1)).held
        for up_to_ms in (NOW_MS - DAY_MS, NOW_MS, NOW_MS + 60_000, None)
    ]
    assert found == [4, 4, 0, 4]


async def test_seats_that_are_used_are_in_the_callers_own_count(store: Holds) -> None:
    seats = hold(1, feature="seats", is_metered=False)
    await store.take(seats, frozenset({"seats"}), up_to(10), None, NOW_MS)
    await store.end("hold_1", Decimal(10), NOW_MS)
    found = [
        (await store.take(seats._replace(id="hold_2"), frozenset({"seats"}), up_to(0), None, NOW_MS + later_ms)).held
        for later_ms in (0, SETTLE_MS, SETTLE_MS + 1)
    ]
    assert found == [10, 10, 0]


async def test_the_same_end_again_changes_nothing(store: Holds) -> None:
    await take(store, hold(1))
    first = await store.end("hold_1", Decimal(7), NOW_MS + 1)
    for used in (Decimal(7), Decimal(3), Decimal(0)):
        assert await store.end("hold_1", used, NOW_MS + 5) == first
    for name in ("hold_9", "hold_\0", "", "höld"):
        assert await store.get(name) is None
        assert await store.end(name, Decimal(0), NOW_MS) is None


async def test_no_more_is_used_than_was_held(store: Holds) -> None:
    await take(store, hold(1))
    with pytest.raises(InvalidInput, match="only 10 are held"):
        await store.end("hold_1", Decimal("10.5"), NOW_MS)


async def test_the_same_key_gives_the_same_hold(store: Holds) -> None:
    first = await take(store, hold(1, key="job 1"), room=10)
    again = await take(store, hold(2, key="job 1"), room=10)
    other = await take(store, hold(3, account="globex", key="job 1"), room=10)

    assert (again.hold, again.is_repeated) == (first.hold, True)
    assert other.hold is not None
    assert other.hold.id == "hold_3"
    await store.end("hold_1", Decimal(0), NOW_MS)
    assert (await take(store, hold(4, key="job 1"), room=10)).hold == await store.get("hold_1")


@pytest.mark.parametrize(
    "change", [{"quantity": Decimal(9)}, {"feature": "calls"}, {"expires_ms": NOW_MS + 1}], ids=str
)
async def test_a_key_of_another_request_is_refused(store: Holds, change: dict[str, Any]) -> None:
    await take(store, hold(1, key="job 1"))
    with pytest.raises(InvalidInput, match="was sent before"):
        await take(store, hold(2, key="job 1", **change))


async def test_open_holds_are_bounded(store: Holds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_holds, "OPEN_MAX", 2)
    await take(store, hold(1))
    await take(store, hold(2))
    with pytest.raises(InvalidInput, match="open holds"):
        await take(store, hold(3))
    await store.end("hold_1", Decimal(0), NOW_MS)
    assert (await take(store, hold(4))).hold is not None


async def test_who_has_holds_is_known(store: Holds) -> None:
    await take(store, hold(1))
    await take(store, hold(2, account="globex"))
    await store.end("hold_2", Decimal(1), NOW_MS + 5)

    assert await store.holders(NOW_MS + 5, 10) == {"acme": NOW_MS + 60_000, "globex": NOW_MS + 5}
    assert await store.holders(NOW_MS + 6, 10) == {"acme": NOW_MS + 60_000}
    assert await store.holders(NOW_MS, 1) is None
    assert [each.id for each in await store.open("acme", NOW_MS + 60_000)] == ["hold_1"]
    assert await store.open("acme", NOW_MS + 60_001) == []


async def test_old_holds_are_swept(store: Holds) -> None:
    for number in range(3):
        await take(store, hold(number))
    await store.end("hold_0", Decimal(1), NOW_MS)

    assert await store.sweep(NOW_MS + KEPT_MS, 10) == 0
    assert await store.sweep(NOW_MS + KEPT_MS + 1, 10) == 1
    assert await store.sweep(NOW_MS + DAY_MS * 2, 1) == 1
    assert await store.sweep(NOW_MS + DAY_MS * 2, 10) == 1
    assert await store.get("hold_1") is None


class Log:
    """The usage of one account: what was sent, and up to when a worker has counted it."""

    def __init__(self) -> None:
        self.now = NOW_MS
        self.sent: list[tuple[int, int]] = []
        self.complete_up_to_ms = NOW_MS

    def now_ms(self) -> int:
        return self.now

    async def sleep(self, duration_s: float) -> None:
        raise NotImplementedError

    def send(self, quantity: int) -> None:
        self.sent.append((self.now, quantity))

    @property
    def total(self) -> int:
        return sum(quantity for _, quantity in self.sent)

    async def usage(self, _account: str, _meter: str, *, fresh: bool = False) -> Counted:  # noqa: ARG002  # a protocol
        used = sum(quantity for at_ms, quantity in self.sent if at_ms < self.complete_up_to_ms)
        return Counted(Decimal(used), NOW_MS + DAY_MS, self.complete_up_to_ms)


LIMIT, CALLERS = 1_000, 60


async def test_callers_of_two_gateways_never_overspend_a_limit(postgres_url: str) -> None:
    """The default plan gives 1000 tokens. Each caller takes 7 again and again, and the count comes late."""
    stores = [PostgresSideTables(postgres_url, last_link_pays) for _ in range(2)]
    await stores[0].migrate(SCOPE, LOG_ID)
    plan = CatalogPlan(CATALOG, catalog_hash(CATALOG), "", "", False, (), (), (), {})
    states = {name: KnownPlan(sold, PlanState.OPEN) for name, sold in CATALOG.sold().items()}
    await stores[0].catalog.begin_catalog(plan, "ann", "a test", NOW_MS)
    await stores[0].catalog.activate_catalog(plan, states, [], NOW_MS)
    log = Log()
    gateways = [AccessChecks(each.catalog, each.entitlements, log.usage, log, holds=each.holds) for each in stores]
    for gateway in gateways:
        await gateway.refresh()
    granted = denied = 0

    async def caller(number: int) -> None:
        nonlocal granted, denied
        gateway = gateways[number % 2]
        for turn in range(4):
            answer = await gateway.check("acme", "tokens", Decimal(7), hold=HoldRequest(60))
            assert not answer.decision.reason.startswith("fallback")
            if answer.hold is None:
                denied += 1
                return
            granted += 1
            # Some of what was held is not used, and some callers are never heard of again.
            if (number + turn) % 5 == 0:
                continue
            log.send(7 - turn)
            log.now += 200
            log.complete_up_to_ms = max(log.complete_up_to_ms, log.now - number)
            assert gateway.holds is not None
            ended = await gateway.holds.end(answer.hold, Decimal(7 - turn))
            assert ended.used == 7 - turn

    await asyncio.gather(*(caller(number) for number in range(CALLERS)))
    total = log.total
    # Once all is counted, and forgotten holds are over, the rest can be held, and not one more.
    log.now += 120 * SECOND_MS
    log.complete_up_to_ms = log.now
    over, rest = [
        await gateways[0].check("acme", "tokens", Decimal(LIMIT - total + more), hold=HoldRequest(60))
        for more in (1, 0)
    ]
    for each in stores:
        await each.close()

    assert granted > 100
    assert denied
    assert total <= LIMIT
    assert (over.hold, rest.hold is None) == (None, False)
