"""Faust's transport for the embedded log, with one process per group and without a broker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from faust.transport import base
from faust.types import TP

from pipeline.logs.embedded import SqliteLog
from pipeline.runner.consumer import Fetched, Hooks, RunnerConsumer, SilentProducer
from schemas.log import Bounds


class EmbeddedConsumer(RunnerConsumer, base.Consumer):
    """The only member of the group, which gets all partitions of its topics."""

    def __init__(self, transport: EmbeddedTransport, *args: Any, **kwargs: Any) -> None:
        super().__init__(transport, *args, **kwargs)
        self._log = transport.log
        self._fetch_bytes_max = transport.fetch_bytes_max
        self._assigned: set[TP] = set()
        self._generation = 0

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Take all partitions of `topics`.

        The rebalance runs in another task, because Faust's conductor awaits `subscribe` and the rebalance awaits the
        conductor.
        """
        pairs = {TP(topic, number) for topic in topics for number in range(await self._log.partition_count(topic))}
        if pairs != self._assigned:
            self.add_future(self._rebalance(pairs))

    async def _rebalance(self, pairs: set[TP]) -> None:
        """The calls that a Kafka group coordinator would cause, in the same order."""
        self.app.on_rebalance_start()
        await self.on_partitions_revoked(set(self._assigned))
        self._assigned = pairs
        self._generation += 1
        self.app.consumer_generation_id = self._generation
        await self.on_partitions_assigned(pairs, self._generation)

    def assignment(self) -> set[TP]:
        return self._assigned

    async def fetch(self, positions: Mapping[TP, int], timeout_s: float) -> Fetched:
        records_max = self.app.conf.broker_max_poll_records
        wanted = {(pair.topic, pair.partition): offset for pair, offset in positions.items()}
        deadline = self.loop.time() + timeout_s
        batch = await self._log.read_many(wanted, records_max, self._fetch_bytes_max)
        while not batch.records and (left_s := deadline - self.loop.time()) > 0 and not self.should_stop:
            await self._log.wait_changed(batch.version, left_s)
            batch = await self._log.read_many(wanted, records_max, self._fetch_bytes_max)
        records = {TP(*key): fetched for key, fetched in batch.records.items()}
        after = {pair: fetched[-1].next_offset for pair, fetched in records.items()}
        ends = {pair: (await self._log.bounds(*pair)).next for pair in positions}
        return records, after, ends

    async def bounds(self, pair: TP) -> Bounds:
        return await self._log.bounds(pair.topic, pair.partition)

    async def committed(self, pair: TP) -> int | None:
        return await self._log.committed(self.app.conf.id, pair.topic, pair.partition)

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        await self._log.commit(self.app.conf.id, {(pair.topic, pair.partition): n for pair, n in offsets.items()})
        return True

    def _new_topicpartition(self, topic: str, partition: int) -> TP:
        return TP(topic, partition)

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Never used: `perform_seek` sets the positions."""
        return {}

    async def _seek(self, partition: TP, offset: int) -> None:
        raise NotImplementedError("positions are set at the assignment only")

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        raise NotImplementedError

    async def position(self, tp: TP) -> int | None:
        """The next offset to fetch."""
        return self._positions.get(tp)

    async def highwaters(self, *partitions: TP) -> Mapping[TP, int]:
        return {pair: (await self.bounds(pair)).next for pair in partitions}

    async def earliest_offsets(self, *partitions: TP) -> Mapping[TP, int]:
        return {pair: (await self.bounds(pair)).first for pair in partitions}

    def topic_partitions(self, topic: str) -> int | None:
        """The number of assigned partitions of `topic`."""
        return sum(pair.topic == topic for pair in self._assigned) or None

    def key_partition(self, topic: str, key: bytes | None, partition: int | None = None) -> int | None:
        raise NotImplementedError

    async def create_topic(self, topic: str, partitions: int, replication: int, **_options: Any) -> None:
        """Does nothing: `Log.create_topics` creates the topics."""

    def close(self) -> None:
        """Does nothing: the runner closes the log."""


class EmbeddedTransport(base.Transport):
    """Gives the runner's log and hooks to the consumer."""

    Consumer: ClassVar[Any] = EmbeddedConsumer
    Producer: ClassVar[Any] = SilentProducer
    default_port = 0
    driver_version = "embedded-sqlite"

    def __init__(self, url: Any, app: Any, *, hooks: Hooks, log: SqliteLog, fetch_bytes_max: int) -> None:
        super().__init__(url, app)
        self.hooks = hooks
        self.log = log
        self.fetch_bytes_max = fetch_bytes_max
