"""The gateway's answers about usage: live, and over time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aggregators.instants import format_instant_ms
from aggregators.periods import period_at
from pipeline.http.dependencies import LiveUsage
from schemas.analytics import RelayPosition
from schemas.clock import DAY_MS
from schemas.periods import AccountState, Billing, Binding
from schemas.rollup import TotalKey
from sinks.redis.fake import FakeAccounts, FakeLiveView, FakeServer
from tests.worlds.deployment import World
from tests.worlds.gateway import NOW, NOW_MS, Gateway, event, running
from tests.worlds.relay import relay


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway whose stores and log all work."""
    async with running(tmp_path) as running_gateway:
        yield running_gateway


async def test_the_current_period_is_answered_from_the_live_view_with_exact_values(gateway: Gateway) -> None:
    """Events go through the gateway and the real processor. The answer has 0 only if the usage is 0."""
    await gateway.post([
        event("1"), event("2"), event("1"),
        event("3", type="storage.sampled", data={"gigabytes": "1.250", "tier": "hot"}),
        event("4", type="api.request", data={"method": "GET", "region": "eu", "user": "u1"}),
    ])  # fmt: skip
    await gateway.world.fold_all()

    answer = await gateway.get("/v1/accounts/acme/usage")

    assert answer.status_code == 200
    document = answer.json()
    assert {each["meter"]: each["value"] for each in document.pop("meters")} == {
        "api_requests": "1", "tokens": "14", "storage_gb": "1.25", "lowest_balance": None,
        "active_users": "1", "seats": None,
    }  # fmt: skip
    assert document == {
        "account": "acme",
        "period_start": "2026-11-01T00:00:00Z",
        "period_end": "2026-12-01T00:00:00Z",
        "state": "open",
        "complete_up_to": NOW,
    }


@pytest.mark.parametrize(
    ("paying", "later_usage_in"),
    [
        pytest.param(None, "2026-12-01T00:00:00Z", id="nobody was named"),
        pytest.param(Billing.MAPPED, "2026-12-01T00:00:00Z", id="the same payer"),
        pytest.param(Billing.FREE, None, id="another payer"),
    ],
)
async def test_a_current_period_that_was_closed_early_says_where_later_usage_is_counted(
    gateway: Gateway, paying: Billing | None, later_usage_in: str | None
) -> None:
    """A limit that reads the current period would not see the usage. The pointer is what the fold then does."""
    december_ms = NOW_MS + 10 * DAY_MS - (NOW_MS + 10 * DAY_MS) % DAY_MS
    if paying is not None:
        await gateway.bind("acme", effective_from_ms=0, billing=Billing.MAPPED, stripe_customer="cus_a")
        customer = "cus_a" if paying is Billing.MAPPED else ""
        await gateway.bind("acme", effective_from_ms=december_ms, billing=paying, stripe_customer=customer)
    gateway.world.clock.ms += 20 * 60_000
    now = format_instant_ms(gateway.world.clock.ms)
    await gateway.post(event("1", time=now))
    await gateway.close_period("acme", gateway.world.clock.ms)
    await gateway.post(event("2", time=now))
    await gateway.world.fold_all()

    current = (await gateway.get("/v1/usage/current", account="acme")).json()
    await relay(gateway)
    periods = await gateway.get(
        "/v1/usage/periods", meter="tokens", account="acme", from_="2026-12-01T00:00:00Z", to="2027-01-01T00:00:00Z"
    )

    assert (current["state"], current["later_usage_in"]) == ("closed", later_usage_in)
    assert {each["meter"]: each["value"] for each in current["meters"]}["tokens"] == "7"
    assert [row["period_start"] for row in periods.json()["periods"]] == [later_usage_in] * (later_usage_in is not None)


async def test_live_usage_reports_deferred_events_and_is_complete_up_to_their_arrival(
    gateway: Gateway,
) -> None:
    """The gateway accepts an event older than the dedup window. The event affects no other account's answer."""
    old = await gateway.post(event("old", time="2026-11-02T00:00:00Z"))
    gateway.world.clock.ms += 60_000
    await gateway.post([event("1"), event("2", subject="other")])
    await gateway.world.fold_all()

    waiting = (await gateway.get("/v1/accounts/acme/usage")).json()
    other = (await gateway.get("/v1/accounts/other/usage")).json()

    assert old.json()["accepted"] == 1
    assert (waiting["deferred"], waiting["complete_up_to"]) == (1, NOW)
    assert {each["meter"]: each["value"] for each in waiting["meters"]}["tokens"] == "7"
    assert "deferred" not in other
    assert other["complete_up_to"] > NOW


async def test_an_account_may_have_any_name_in_a_path(gateway: Gateway) -> None:
    """The customer chooses the name: slashes and umlauts are encoded in the path."""
    await gateway.post(event("1", subject="a/b ü"))
    await gateway.world.fold_all()

    answer = await gateway.get("/v1/accounts/a%2Fb%20%C3%BC/usage")

    assert answer.json()["account"] == "a/b ü"
    assert {each["meter"]: each["value"] for each in answer.json()["meters"]}["tokens"] == "7"


async def test_live_usage_before_anything_was_counted_is_unavailable_not_zero(gateway: Gateway) -> None:
    """An answer of zero would be a claim."""
    answer = await gateway.get("/v1/accounts/acme/usage")

    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "not_counted_yet"


@pytest.mark.parametrize(
    "path", ["/v1/accounts/other/usage", "/v1/usage?meter=tokens&account=other&from=x&to=y"], ids=["live", "over time"]
)
async def test_a_key_of_one_account_cannot_read_another(gateway: Gateway, path: str) -> None:
    """I12."""
    answer = await gateway.get(path, key="acme")

    assert answer.status_code == 403


async def test_usage_over_time_is_grouped_sorted_and_states_its_completeness(gateway: Gateway) -> None:
    """The whole answer, in the caller's time zone."""
    large = {"usage": {"tokens": 5}, "model": "large"}
    await gateway.post([
        event("1"), event("2", data=large), event("3", time="2026-11-20T22:59:59Z"),
        event("4", subject="other", data=large),
    ])  # fmt: skip
    await relay(gateway)

    answer = await gateway.get(
        "/v1/usage", meter="tokens", account="acme", from_="2026-11-20T00:00:00Z", to="2026-11-22T00:00:00Z",
        window="day", timezone="Europe/Berlin", group_by="model",
    )  # fmt: skip

    assert answer.status_code == 200
    assert answer.json() == {
        "meter": "tokens",
        "unit": "",
        "aggregation": "sum",
        "account": "acme",
        "from": "2026-11-20T00:00:00Z",
        "to": "2026-11-22T00:00:00Z",
        "window": "day",
        "timezone": "Europe/Berlin",
        "group_by": ["model"],
        "complete_up_to": NOW,
        "rows": [
            {"window_start": "2026-11-19T23:00:00Z", "groups": {"model": "small"}, "value": "7"},
            {"window_start": "2026-11-20T23:00:00Z", "groups": {"model": "large"}, "value": "5"},
            {"window_start": "2026-11-20T23:00:00Z", "groups": {"model": "small"}, "value": "7"},
        ],
    }


async def test_usage_of_all_accounts_is_complete_only_up_to_the_slowest_partition(gateway: Gateway) -> None:
    """If a partition was never relayed, the completeness is unknown, not good."""
    asked = {"meter": "tokens", "from_": "2026-11-21T00:00:00Z", "to": "2026-11-22T00:00:00Z"}
    await gateway.clickhouse.save_relayed(RelayPosition(0, 5, NOW_MS))

    one_missing = await gateway.get("/v1/usage", **asked)
    await gateway.clickhouse.save_relayed(RelayPosition(1, 5, NOW_MS - 60_000))
    both = await gateway.get("/v1/usage", **asked)

    assert one_missing.json()["complete_up_to"] is None
    assert both.json()["complete_up_to"] == "2026-11-21T10:29:00Z"


async def test_a_key_of_one_account_asks_for_its_own_account_by_default(gateway: Gateway) -> None:
    """The key may not read all accounts."""
    answer = await gateway.get(
        "/v1/usage", key="acme", meter="tokens", from_="2026-11-21T00:00:00Z", to="2026-11-22T00:00:00Z"
    )

    assert answer.json()["account"] == "acme"


@pytest.mark.parametrize(
    ("changes", "status", "field"),
    [
        pytest.param({"meter": ""}, 400, "meter", id="no meter"),
        pytest.param({"meter": "nothing"}, 404, "meter", id="unknown meter"),
        pytest.param({"from_": "2026-11-21"}, 400, "from", id="a date"),
        pytest.param({"from_": "2026-11-21T00:30:00Z"}, 400, "from", id="half an hour"),
        pytest.param({"to": "2026-11-21T00:00:00Z"}, 400, "to", id="empty range"),
        pytest.param({"to": "2026-11-21T00:00:00 02:00"}, 400, "to", id="a plus that became a space"),
        pytest.param({"to": "9999-12-31T00:00:00Z"}, 400, "to", id="year 9999"),
        pytest.param({"from_": "2000-01-01T00:00:00Z", "window": "hour"}, 400, "to", id="too many hours"),
        pytest.param({"window": "week"}, 400, "window", id="unknown window"),
        pytest.param({"timezone": "Mars/Olympus"}, 400, "timezone", id="unknown zone"),
        pytest.param({"timezone": "../../etc/passwd"}, 400, "timezone", id="path as a zone"),
        pytest.param({"timezone": "Asia/Kolkata"}, 400, "timezone", id="zone off by half an hour"),
        pytest.param({"group_by": "colour"}, 400, "group_by", id="unknown dimension"),
        pytest.param({"group_by": "model,model"}, 400, "group_by", id="dimension twice"),
        pytest.param({"metre": "x"}, 400, "metre", id="unknown parameter"),
        pytest.param({"account": "a" * 257}, 400, "account", id="long account"),
    ],
)
async def test_a_bad_query_is_refused_with_its_parameter(
    gateway: Gateway, changes: dict[str, str], status: int, field: str
) -> None:
    """The caller learns what to correct."""
    asked = {"meter": "tokens", "from_": "2026-11-21T00:00:00Z", "to": "2026-11-22T00:00:00Z", **changes}

    answer = await gateway.get("/v1/usage", **asked)

    assert answer.status_code == status
    assert answer.json()["error"]["field"] == field


class CutMeanwhile(FakeAccounts):
    """A live view in which a late binding moves an account's usage to another period after the first read."""

    def __init__(self, server: FakeServer, times: int) -> None:
        super().__init__(server)
        self._times = times

    async def accounts(self, partition: int, accounts: Sequence[str]) -> Any:
        """The accounts as they are; afterwards the usage moves."""
        result = await super().accounts(partition, accounts)
        if self._times:
            self._times -= 1
            state = self._server.at(partition)
            assert state.checkpoint is not None
            (old,) = [key for key in state.totals if key.account == "acme"]
            days = 10 + self._times
            binding = Binding(effective_from_ms=0, anchor_ms=days * DAY_MS)
            state.accounts["acme"] = AccountState(bindings=(binding,))
            period = period_at(state.accounts["acme"], NOW_MS)
            state.totals[TotalKey("acme", period.start_ms)] = state.totals.pop(old)
            state.checkpoint = msgspec.structs.replace(state.checkpoint, next_offset=state.checkpoint.next_offset + 1)
        return result


@pytest.mark.parametrize(("times", "status"), [(0, 200), (1, 200), (3, 200), (9, 503)])
async def test_usage_that_is_restated_between_two_reads_is_never_answered_as_zero(
    tmp_path: Path, times: int, status: int
) -> None:
    """A zero with a current `complete_up_to` would let a customer exceed any limit."""
    store = FakeLiveView()
    world = World(NOW_MS, store=store)
    live = LiveUsage(CutMeanwhile(store.server, times), store.deferred, store.totals)
    async with running(tmp_path, world, live=live) as gateway:
        await gateway.post([event("1"), event("2")])
        await gateway.world.fold_all()

        answer = await gateway.get("/v1/accounts/acme/usage")

    assert answer.status_code == status
    if status == 200:
        assert {each["meter"]: each["value"] for each in answer.json()["meters"]}["tokens"] == "14"
