"""The accounts with the greatest usage of a meter."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from aggregators.partitioning import partition_of
from pipeline.http.dependencies import LiveUsage
from schemas.rollup import RankingKey
from sinks.redis.fake import FakeLiveView, FakeServer, FakeTotals
from tests.worlds.deployment import World
from tests.worlds.gateway import NOW, NOW_MS, Gateway, event, running


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway whose stores and log all work."""
    async with running(tmp_path) as running_gateway:
        yield running_gateway


def samples(**gigabytes: str) -> list[dict[str, Any]]:
    """One sample of storage for each account."""
    return [
        event(account, subject=account, type="storage.sampled", data={"gigabytes": quantity, "tier": "hot"})
        for account, quantity in gigabytes.items()
    ]


async def test_the_greatest_accounts_of_all_partitions_are_answered_exactly_and_in_one_order(gateway: Gateway) -> None:
    """Decimal text with the meter's scale, and equal values by name: two calls never differ."""
    await gateway.post(samples(a="1.25", b="30", c="1.250", d="0.5", e="7.125", f="1.25"))
    await gateway.world.fold_all()

    answer = await gateway.get("/v1/usage/top", meter="storage_gb", limit="5")
    by_path = await gateway.get("/v1/meters/storage_gb/top", limit="5")

    assert {partition_of(account, 2) for account in "abcdef"} == {0, 1}
    assert answer.status_code == 200
    assert answer.json() == by_path.json()
    assert answer.json() == {
        "meter": "storage_gb",
        "unit": "",
        "aggregation": "max",
        "period_start": "2026-11-01T00:00:00Z",
        "compared": "accounts whose billing period starts at period_start",
        "complete_up_to": NOW,
        "accounts": [
            {"account": "b", "value": "30"},
            {"account": "e", "value": "7.125"},
            {"account": "a", "value": "1.25"},
            {"account": "c", "value": "1.25"},
            {"account": "f", "value": "1.25"},
        ],
    }


async def test_totals_beyond_doubles_are_sorted_exactly(gateway: Gateway) -> None:
    """The scores of the sorted set are equal; the totals are not."""
    huge = 9 * 10**17
    await gateway.post([
        event(account, subject=account, data={"usage": {"tokens": huge + more}, "model": "small"})
        for account, more in (("a", 1), ("b", 3), ("c", 2))
    ])  # fmt: skip
    await gateway.world.fold_all()

    answer = await gateway.get("/v1/usage/top", meter="tokens")

    assert [(entry["account"], entry["value"]) for entry in answer.json()["accounts"]] == [
        ("b", str(huge + 3)), ("c", str(huge + 2)), ("a", str(huge + 1)),
    ]  # fmt: skip


async def test_a_period_is_named_by_its_start(gateway: Gateway) -> None:
    """Late usage belongs to October. An unknown period is not an empty ranking: nobody counted that zero."""
    await gateway.post([event("now"), event("october", time="2026-10-31T23:00:00Z")])
    await gateway.world.fold_all()

    november = await gateway.get("/v1/usage/top", meter="tokens", period="2026-11-01T01:00:00+01:00")
    without_usage = await gateway.get("/v1/usage/top", meter="storage_gb")
    unknown = await gateway.get("/v1/usage/top", meter="tokens", period="2020-01-01T00:00:00Z")

    assert [entry["account"] for entry in november.json()["accounts"]] == ["acme"]
    assert (without_usage.status_code, without_usage.json()["accounts"]) == (200, [])
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_period")


@pytest.mark.parametrize(
    ("parameters", "status", "field"),
    [
        pytest.param({}, 400, "meter", id="no meter"),
        pytest.param({"meter": "nothing"}, 404, "meter", id="unknown meter"),
        pytest.param({"meter": "tokens", "limit": "0"}, 400, "limit", id="limit 0"),
        pytest.param({"meter": "tokens", "limit": "1001"}, 400, "limit", id="large limit"),
        pytest.param({"meter": "tokens", "limit": "9" * 5_000}, 400, "limit", id="limit of 5 000 digits"),
        pytest.param({"meter": "tokens", "limit": "ten"}, 400, "limit", id="limit in words"),
        pytest.param({"meter": "tokens", "limit": "1.5"}, 400, "limit", id="limit 1.5"),
        pytest.param({"meter": "tokens", "period": "november"}, 400, "period", id="month in words"),
        pytest.param({"meter": "tokens", "period": "2101-01-01T00:00:00Z"}, 400, "period", id="far future"),
        pytest.param({"meter": "tokens", "top": "3"}, 400, "top", id="unknown parameter"),
    ],
)
async def test_a_bad_question_is_refused_with_its_parameter_in_plain_words(
    gateway: Gateway, parameters: dict[str, str], status: int, field: str
) -> None:
    """No words of a library: "Input should be a valid integer, unable to parse string as an integer"."""
    answer = await gateway.get("/v1/usage/top", **parameters)

    assert (answer.status_code, answer.json()["error"]["field"]) == (status, field)
    assert "nput" not in answer.json()["error"]["message"]


@pytest.mark.parametrize(("key", "status"), [("", 401), ("ingest", 403), ("acme", 403), ("read", 200), ("admin", 200)])
async def test_a_key_of_one_account_does_not_see_the_names_of_others(gateway: Gateway, key: str, status: int) -> None:
    """I12."""
    await gateway.post(samples(other="1", another="1"))
    await gateway.world.fold_all()

    answer = await gateway.get("/v1/usage/top", key=key, meter="tokens")

    assert answer.status_code == status


async def test_a_partition_that_nobody_counted_makes_the_answer_unavailable(gateway: Gateway) -> None:
    """An account may be missing from the answer only if it has less."""
    answer = await gateway.get("/v1/usage/top", meter="tokens")

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_counted_yet")


class _StaleRanking(FakeTotals):
    """A ranking that names an account whose usage has moved to another period, for some reads."""

    def __init__(self, server: FakeServer, times: int) -> None:
        super().__init__(server)
        self._times = times

    async def ranking(self, partition: int, key: RankingKey, count: int) -> list[tuple[str, int]]:
        ranked: Sequence[tuple[str, int]] = await super().ranking(partition, key, count)
        self._times -= 1
        return [*ranked, ("moved", 1)] if self._times >= 0 else [*ranked]


@pytest.mark.parametrize(("times", "status"), [(0, 200), (2, 200), (99, 503)])
async def test_an_account_that_moves_meanwhile_makes_the_read_repeat(tmp_path: Path, times: int, status: int) -> None:
    """Both reads together must be of one state."""
    store = FakeLiveView()
    live = LiveUsage(store.accounts, store.deferred, _StaleRanking(store.server, times))
    async with running(tmp_path, World(NOW_MS, store=store), live=live) as gateway:
        await gateway.post(samples(a="1"))
        await gateway.world.fold_all()

        answer = await gateway.get("/v1/usage/top", meter="storage_gb")

    assert answer.status_code == status
    if status == 200:
        assert [entry["account"] for entry in answer.json()["accounts"]] == ["a"]
