"""The Faust consumer of both transports. The consumer reads from the runner's offsets and loses no record.

Faust's code for positions and acknowledgements is replaced, because Faust commits past unacknowledged records and drops
fetched records around a rebalance. In this consumer

- the runner sets the fetch position at every assignment;
- fetched records go to the runner at once, and Faust sees none of them: it has no streams and no agents;
- a partition with a full queue is left out of the next fetch and does not block the other partitions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any, NoReturn, Protocol

from faust.app.base import App
from faust.tables.manager import TableManager
from faust.transport.base import Producer
from faust.types import TP

from schemas.log import Bounds, Record

# Records, positions after the records, and log ends, by partition.
Fetched = tuple[dict[TP, list[Record]], dict[TP, int], dict[TP, int]]


class Hooks(Protocol):
    """The consumer's calls of the runner, in the runner's event loop."""

    async def on_assigned(self, pair: TP) -> int:
        """Prepare for the records of `pair` and return the offset to read from. An exception ends the process."""
        ...

    async def on_revoked(self, pairs: Iterable[TP]) -> None:
        """Wait for the running steps of `pairs` and drop the queued records."""
        ...

    async def fetchable(self, pairs: set[TP], timeout_s: float) -> set[TP]:
        """The pairs whose queues have room. If no queue has room, waits up to `timeout_s`."""
        ...

    def deliver(self, pair: TP, records: Sequence[Record]) -> None:
        """Queue the records of one fetch. They follow the records of the fetch before, or begin at the offset that
        `on_assigned` returned."""
        ...

    def fail(self, error: BaseException) -> None:
        """End the process with this error."""
        ...


class _NoReadOffsets(dict[TP, int | None]):
    """Hides the read offsets from Faust, which would drop records below them and invent gaps above them."""

    def __getitem__(self, _pair: TP) -> int | None:
        return None

    def __setitem__(self, _pair: TP, _offset: int | None) -> None:
        pass

    def __delitem__(self, _pair: TP) -> None:
        pass


class RunnerConsumer:
    """A mixin before the Faust consumer class of a transport. A subclass implements `fetch`, `bounds`, `committed`."""

    app: Any
    hooks: Hooks

    def __init__(self, transport: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(transport, *args, **kwargs)  # type: ignore[call-arg]  # Faust's consumer comes next
        self.hooks = transport.hooks
        # Faust's own field.
        self._read_offset: MutableMapping[TP, int | None] = _NoReadOffsets()
        self._start_lock = asyncio.Lock()
        self._unstarted: set[TP] = set()
        self._positions: dict[TP, int] = {}
        self._starts: dict[TP, int] = {}
        self.ends: dict[TP, int] = {}

    async def fetch(self, positions: Mapping[TP, int], timeout_s: float) -> Fetched:
        """Read the partitions from exactly `positions`. Waits for records up to `timeout_s`, then returns none."""
        raise NotImplementedError

    async def bounds(self, pair: TP) -> Bounds:
        """The first and the next offset of the partition in the log."""
        raise NotImplementedError

    async def committed(self, pair: TP) -> int | None:
        """The group's committed offset."""
        raise NotImplementedError

    # Assignment

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Wait for the running steps and commit their acknowledged records before the partitions are released."""
        self.stop_flow()  # type: ignore[attr-defined]  # Faust's base consumer has it
        self._unstarted.difference_update(revoked)
        async with self._start_lock:
            for pair in revoked:
                self._positions.pop(pair, None)
            await self.hooks.on_revoked(revoked)
        await self.maybe_wait_for_commit_to_finish()  # type: ignore[attr-defined]  # Faust's base consumer has it
        await self.commit()  # type: ignore[attr-defined]  # Faust's base consumer has it
        await super().on_partitions_revoked(revoked)  # type: ignore[misc]  # Faust's base consumer has it

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Note that the partitions need a start offset."""
        self._unstarted = {TP(*pair) for pair in assigned}
        await super().on_partitions_assigned(assigned, generation_id)  # type: ignore[misc]  # Faust's base consumer has it

    async def perform_seek(self) -> None:
        """Set the positions of partitions without a start offset. Faust also calls this at other times."""
        async with self._start_lock:
            for pair in sorted(self._unstarted):
                if pair not in self._unstarted:
                    continue
                try:
                    offset = await self.hooks.on_assigned(pair)
                except Exception as error:  # noqa: BLE001  any error ends the process with its message
                    # Faust would log a raised error and go on.
                    self.hooks.fail(error)
                    return
                self._unstarted.discard(pair)
                self._positions[pair] = offset
                self._starts[pair] = self._starts.get(pair, 0) + 1
                self._committed_offset[pair] = offset or None  # type: ignore[attr-defined]  # Faust's base consumer has it

    # Fetching

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Mapping[TP, list[Any]]:
        """Deliver what one fetch returns. Faust gets nothing."""
        candidates = set(self._positions) & set(active_partitions or ())
        wanted = await self.hooks.fetchable(candidates, timeout)
        # A short fetch, so that partitions with a full queue are fetched soon after their queues have room.
        timeout_s = timeout if wanted == candidates else min(timeout, 0.05)
        positions = {pair: self._positions[pair] for pair in wanted if pair in self._positions}
        if not positions:
            return {}
        starts = {pair: self._starts[pair] for pair in positions}
        fetched, after, ends = await self.fetch(positions, timeout_s)
        for pair, start in starts.items():
            if pair not in self._positions or self._starts[pair] != start:
                continue  # the partition was revoked during the fetch, and maybe assigned again
            self.ends[pair] = ends.get(pair, self.ends.get(pair, 0))
            self._positions[pair] = after.get(pair, positions[pair])
            if records := fetched.get(pair):
                # Nothing is awaited since the check above: the records reach the queue that they were fetched for.
                self.hooks.deliver(pair, records)
        return {}

    def _to_message(self, tp: TP, _record: Any) -> NoReturn:
        raise AssertionError(f"{tp}: Faust got a record")

    def highwater(self, tp: TP) -> int:
        """The partition's end at the last fetch."""
        return self.ends.get(tp, 0)

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Does nothing: readiness reports progress, and Faust's check mistakes an idle partition for a stuck one."""

    # Committing

    def acknowledge(self, pair: TP, next_offset: int) -> None:
        """Let the next commit move to `next_offset`. The runner acknowledges a partition's records in order."""
        self._acked[pair] = [next_offset]  # type: ignore[attr-defined]  # Faust's base consumer has it

    async def commit_and_end_transactions(self) -> None:
        """The last commit before the stop. Faust would leave it out if a commit of earlier offsets runs."""
        await self.maybe_wait_for_commit_to_finish()  # type: ignore[attr-defined]  # Faust's base consumer has it
        await super().commit_and_end_transactions()  # type: ignore[misc]  # Faust's base consumer has it

    def _new_offset(self, tp: TP) -> int | None:
        """The offset to commit. None if nothing was acknowledged since the last commit."""
        acked: list[int] = self._acked[tp]  # type: ignore[attr-defined]  # Faust's base consumer has it
        return acked.pop() if acked else None


class SilentProducer(Producer):
    """The producer that Faust requires. It sends nothing: all appends use `schemas.log.Log`."""

    async def flush(self) -> None:
        """Does nothing."""


class PromptTables(TableManager):
    """Faust's table manager without the sleep of a second at the start. There are no tables."""

    async def on_start(self) -> None:
        """Let the consumer subscribe."""
        await self._update_channels()
        await self.recovery.start()


class RunnerApp(App):
    """A Faust app with the transport class and options of its attributes. It creates no folders."""

    transport_class: Any = None
    transport_options: Mapping[str, Any]

    def _new_transport(self) -> Any:
        return self.transport_class(self.conf.broker_consumer, self, **self.transport_options)

    def _new_producer_transport(self) -> Any:
        return self.transport

    def _create_directories(self) -> None:
        pass
