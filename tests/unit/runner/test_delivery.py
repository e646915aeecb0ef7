"""Records go from a fetch to the queue that they were fetched for, or nowhere (S12)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from pipeline.runner.consumer import Fetched, RunnerConsumer
from schemas.log import Record
from tests.worlds.runner import until

ONE, TWO = TP("t", 1), TP("t", 2)


class Faust:
    """The parts of Faust's consumer that the mixin uses."""

    def __init__(self, transport: Any) -> None:
        self.app = transport.app
        self._acked: dict[TP, list[int]] = {}
        self._committed_offset: dict[TP, int | None] = {}

    def stop_flow(self) -> None:
        pass

    async def maybe_wait_for_commit_to_finish(self) -> bool:
        return False

    async def commit(self) -> None:
        pass

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        pass

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        pass


class Queues:
    """The runner's side: notes what is delivered, and where each partition begins."""

    def __init__(self) -> None:
        self.begin = dict.fromkeys((ONE, TWO), 0)
        self.full: set[TP] = set()
        self.delivered: list[tuple[TP, list[int]]] = []

    async def on_assigned(self, pair: TP) -> int:
        return self.begin[pair]

    async def on_revoked(self, pairs: Iterable[TP]) -> None:
        pass

    async def fetchable(self, pairs: set[TP], _timeout_s: float) -> set[TP]:
        return pairs - self.full

    def deliver(self, pair: TP, records: Sequence[Record]) -> None:
        self.delivered.append((pair, [record.offset for record in records]))

    def fail(self, error: BaseException) -> None:
        raise error


class Client(RunnerConsumer, Faust):
    """A log with ten records in each partition; a fetch returns two of each, when the gate opens."""

    def __init__(self, hooks: Queues) -> None:
        super().__init__(SimpleNamespace(hooks=hooks, app=SimpleNamespace(consumer_generation_id=1)))
        self.gate = asyncio.Event()
        self.fetches: list[Mapping[TP, int]] = []

    async def fetch(self, positions: Mapping[TP, int], timeout_s: float) -> Fetched:  # noqa: ARG002 - the protocol's
        self.fetches.append(dict(positions))
        await self.gate.wait()
        records = {
            pair: [Record("t", pair.partition, offset, 0, None, b"") for offset in (start, start + 1)]
            for pair, start in positions.items()
        }
        return records, {pair: start + 2 for pair, start in positions.items()}, dict.fromkeys(positions, 10)

    async def assign(self, *pairs: TP) -> None:
        await self.on_partitions_assigned(set(pairs))
        await self.perform_seek()


async def nothing(_client: Client) -> None:
    """No rebalance."""


async def revoke(client: Client) -> None:
    await client.on_partitions_revoked({ONE})


async def revoke_and_assign(client: Client) -> None:
    """Another member had the partition meanwhile and committed up to offset 7."""
    await client.on_partitions_revoked({ONE})
    client.hooks.begin[ONE] = 7  # type: ignore[attr-defined]  # these hooks are `Queues`
    await client.assign(ONE)


@pytest.mark.parametrize(
    ("meanwhile", "delivered", "then"),
    [
        (nothing, [(ONE, [0, 1]), (TWO, [0, 1])], {ONE: 2, TWO: 2}),
        (revoke, [(TWO, [0, 1])], {TWO: 2}),
        (revoke_and_assign, [(TWO, [0, 1])], {ONE: 7, TWO: 2}),
    ],
    ids=["no rebalance", "revoked", "revoked and assigned again"],
)
async def test_a_fetch_delivers_only_to_the_assignment_that_it_was_made_for(
    meanwhile: Callable[[Client], Any], delivered: list[tuple[TP, list[int]]], then: dict[TP, int]
) -> None:
    """I2: a later assignment begins at the position of the store, and records before it must not come again."""
    queues = Queues()
    client = Client(queues)
    await client.assign(ONE, TWO)

    fetching = asyncio.create_task(client._getmany({ONE, TWO}, 1.0))
    await until(lambda: bool(client.fetches))
    await meanwhile(client)
    client.gate.set()

    assert await fetching == {}
    assert sorted(queues.delivered) == delivered
    await client._getmany({ONE, TWO}, 1.0)
    assert client.fetches == [{ONE: 0, TWO: 0}, then]


async def test_a_partition_with_a_full_queue_is_not_fetched_and_goes_on_where_it_stood() -> None:
    """The queue is the only place where records wait, so its limit limits the memory."""
    queues = Queues()
    client = Client(queues)
    client.gate.set()
    await client.assign(ONE, TWO)

    await client._getmany({ONE, TWO}, 1.0)
    queues.full = {ONE}
    await client._getmany({ONE, TWO}, 1.0)
    queues.full = set()
    await client._getmany({ONE, TWO}, 1.0)

    assert client.fetches == [{ONE: 0, TWO: 0}, {TWO: 2}, {ONE: 2, TWO: 4}]
    assert [offsets for pair, offsets in queues.delivered if pair == ONE] == [[0, 1], [2, 3]]
