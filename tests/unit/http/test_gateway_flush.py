"""`POST /v1/accounts/{account}/flush`: who may flush an account, and what the answer says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aggregators.instants import format_instant_ms
from tests.worlds.deployment import World
from tests.worlds.gateway import NOW_MS, Gateway, running


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with running(tmp_path, World(NOW_MS)) as running_gateway:
        yield running_gateway


async def flush(gateway: Gateway, account: str, key: str = "admin") -> tuple[int, dict[str, object]]:
    answer = await gateway.client.post(f"/v1/accounts/{account}/flush", headers=gateway.bearer(key))
    return answer.status_code, answer.json()


async def test_flush_answers_with_its_instant_before_a_worker_has_folded_it(gateway: Gateway) -> None:
    """The account's state says the same afterwards."""
    gateway.world.clock.ms += 1_234
    status, answer = await flush(gateway, "a%2Fb")

    assert (status, answer["account"], answer["instant"]) == (202, "a/b", format_instant_ms(NOW_MS + 1_234))
    await gateway.world.fold_all()
    partition = answer["partition"]
    assert isinstance(partition, int)
    assert (await gateway.world.store.accounts.account(partition, "a/b")).flushed_ms == NOW_MS + 1_234
    record = (await gateway.world.records(partition))[-1]
    assert record.offset == answer["offset"]


@pytest.mark.parametrize(
    ("account", "key", "expected"),
    [
        ("acme", "", (401, "unauthorized")),
        ("acme", "read", (403, "forbidden")),
        ("acme", "ingest", (403, "forbidden")),
        ("other", "acme", (403, "forbidden")),
        ("", "admin", (400, "bad_parameter")),
        ("a" * 257, "admin", (400, "bad_parameter")),
    ],
    ids=["no key", "read", "ingest", "key of another account", "no name", "long name"],
)
async def test_refused_flush_writes_nothing(
    gateway: Gateway, account: str, key: str, expected: tuple[int, str]
) -> None:
    before = [len(await gateway.world.records(partition)) for partition in range(gateway.world.partitions)]
    status, answer = await flush(gateway, account, key)

    error = answer["error"]
    assert isinstance(error, dict)
    assert (status, error["code"]) == expected
    after = [len(await gateway.world.records(partition)) for partition in range(gateway.world.partitions)]
    assert after == before


async def test_key_of_the_account_may_flush_it(gateway: Gateway) -> None:
    assert (await flush(gateway, "acme", "acme"))[0] == 202
