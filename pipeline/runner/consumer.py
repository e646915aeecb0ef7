"""What both transports share: a Faust consumer that reads where the runner says and loses nothing on the way.

Faust's own position and acknowledgement code is replaced, because it commits past records that were not acknowledged
and drops fetched records around a rebalance. Here

- the position to fetch from belongs to this consumer and is set by the runner at every assignment;
- every record carries the offset of the one fetched before it, so the runner sees at once if one was dropped;
- a partition whose queue is full is left out of the next fetch instead of blocking the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, NamedTuple, Protocol

from faust.app.base import App
from faust.tables.manager import TableManager
from faust.transport.base import Producer
from faust.types import TP, ConsumerMessage

from schemas.log import Bounds, Record


class Linked(NamedTuple):
    """A record and the offset of the record fetched before it since the last assignment; None for the first."""

    previous: int | None
    record: Record


class LinkedMessage(ConsumerMessage):
    """Faust's message with the record as the driver read it."""

    linked: Linked


class Hooks(Protocol):
    """What the runner does at the consumer's turning points; all run in the runner's event loop."""

    async def on_assigned(self, pair: TP, generation: int) -> int:
        """Decide where to read `pair` from and get ready for its records. What it raises ends the process."""
        ...

    async def on_revoked(self, pairs: Iterable[TP]) -> None:
        """Finish the running steps of `pairs` and drop what is queued."""
        ...

    async def fetchable(self, pairs: set[TP], timeout_s: float) -> set[TP]:
        """Those of `pairs` whose queues have room; waits up to `timeout_s` where none has."""
        ...

    def fail(self, error: BaseException) -> None:
        """End the process with this error."""
        ...


class _NoReadOffsets(dict[TP, int | None]):
    """Faust drops records below, and invents gaps above, the offset it thinks it has read; so let it know none."""

    def __getitem__(self, _pair: TP) -> int | None:
        return None

    def __setitem__(self, _pair: TP, _offset: int | None) -> None:
        pass

    def __delitem__(self, _pair: TP) -> None:
        pass


class RunnerConsumer:
    """Mixed in before Faust's consumer class of a transport, which must offer `fetch`, `bounds` and `committed`."""

    app: Any
    hooks: Hooks

    def __init__(self, transport: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(transport, *args, **kwargs)  # type: ignore[call-arg]  # Faust's consumer comes next
        self.hooks = transport.hooks
        # Faust's own fields, replaced as the module's docstring says.
        self._read_offset: MutableMapping[TP, int | None] = _NoReadOffsets()
        self._start_lock = asyncio.Lock()
        self._unstarted: set[TP] = set()
        self._positions: dict[TP, int] = {}
        self._previous: dict[TP, int | None] = {}
        self._starts: dict[TP, int] = {}
        self.ends: dict[TP, int] = {}

    async def fetch(
        self, positions: Mapping[TP, int], timeout_s: float
    ) -> tuple[dict[TP, list[Record]], dict[TP, int], dict[TP, int]]:
        """(records, positions after them, ends) of the partitions at `positions`; empty after `timeout_s`."""
        raise NotImplementedError

    async def bounds(self, pair: TP) -> Bounds:
        """First and next offset that the log holds."""
        raise NotImplementedError

    async def committed(self, pair: TP) -> int | None:
        """The group's committed offset."""
        raise NotImplementedError

    # Assignment

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Let the running steps end, commit what they acknowledged, and only then let the partitions go."""
        self.stop_flow()  # type: ignore[attr-defined]  # Faust's base consumer has it
        self._unstarted.difference_update(revoked)
        async with self._start_lock:
            for pair in revoked:
                self._positions.pop(pair, None)
                self._previous.pop(pair, None)
            await self.hooks.on_revoked(revoked)
        await self.maybe_wait_for_commit_to_finish()  # type: ignore[attr-defined]  # Faust's base consumer has it
        await self.commit()  # type: ignore[attr-defined]  # Faust's base consumer has it
        await super().on_partitions_revoked(revoked)  # type: ignore[misc]  # Faust's base consumer has it

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Remember which partitions still need a start offset."""
        self._unstarted = {TP(*pair) for pair in assigned}
        await super().on_partitions_assigned(assigned, generation_id)  # type: ignore[misc]  # Faust's base consumer has it

    async def perform_seek(self) -> None:
        """Faust calls this before it lets records flow, and at odd moments: only unstarted partitions are touched."""
        async with self._start_lock:
            for pair in sorted(self._unstarted):
                if pair not in self._unstarted:
                    continue
                try:
                    offset = await self.hooks.on_assigned(pair, self.app.consumer_generation_id)
                except Exception as error:  # noqa: BLE001  whatever it is, it ends the process with its message
                    # Not raised here, where Faust would log and go on: without a position nothing is fetched.
                    self.hooks.fail(error)
                    return
                self._unstarted.discard(pair)
                self._positions[pair] = offset
                self._previous[pair] = None
                self._starts[pair] = self._starts.get(pair, 0) + 1
                self._committed_offset[pair] = offset or None  # type: ignore[attr-defined]  # Faust's base consumer has it

    # Fetching

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Mapping[TP, list[Linked]]:
        candidates = set(self._positions) & set(active_partitions or ())
        wanted = await self.hooks.fetchable(candidates, timeout)
        # A fetch of some must not keep the others waiting once their queues have room again.
        timeout_s = timeout if wanted == candidates else min(timeout, 0.05)
        positions = {pair: self._positions[pair] for pair in wanted if pair in self._positions}
        if not positions:
            return {}
        starts = {pair: self._starts[pair] for pair in positions}
        fetched, after, ends = await self.fetch(positions, timeout_s)
        linked: dict[TP, list[Linked]] = {}
        for pair, start in starts.items():
            if pair not in self._positions or self._starts[pair] != start:
                continue  # lost, or lost and regained, while the fetch ran: it starts anew from its own position
            self.ends[pair] = ends.get(pair, self.ends.get(pair, 0))
            self._positions[pair] = after.get(pair, positions[pair])
            if records := fetched.get(pair):
                linked[pair] = self._link(pair, records)
        return linked

    def _link(self, pair: TP, records: list[Record]) -> list[Linked]:
        previous = self._previous[pair]
        links = []
        for record in records:
            links.append(Linked(previous, record))
            previous = record.offset
        self._previous[pair] = previous
        return links

    def _to_message(self, tp: TP, linked: Linked) -> LinkedMessage:
        record = linked.record
        message = LinkedMessage(
            record.topic,
            record.partition,
            record.offset,
            record.timestamp_ms / 1000,
            1,
            None,
            record.key,
            record.value,
            None,
            tp=tp,
            generation_id=self.app.consumer_generation_id,
        )
        message.linked = linked
        return message

    def highwater(self, tp: TP) -> int:
        """The partition's end as the last fetch saw it."""
        return self.ends.get(tp, 0)

    def on_buffer_full(self, tp: TP) -> None:
        """Nothing: `fetchable` holds a full partition back. Faust would sleep a second where all are full."""

    def on_buffer_drop(self, tp: TP) -> None:
        """Nothing, as above."""

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Nothing: readiness reports progress, and Faust's own check takes an idle partition for a stuck one."""

    # Committing

    def _new_offset(self, tp: TP) -> int | None:
        """The offset after the last acknowledged record.

        Right without looking for gaps, because the runner acknowledges a partition's records in order and all of them.
        """
        acked: list[int] = self._acked[tp]  # type: ignore[attr-defined]  # Faust's base consumer has it
        if not acked:
            return None
        following = max(acked) + 1
        acked.clear()
        self._acked_index[tp].clear()  # type: ignore[attr-defined]  # Faust's base consumer has it
        return following


class SilentProducer(Producer):
    """Faust wants a producer; ours sends nothing, because appending goes through `schemas.log.Log`."""

    async def flush(self) -> None:
        """Nothing is ever buffered."""


class PromptTables(TableManager):
    """There are no tables; without them Faust's manager only orders the start, and need not sleep a second first."""

    async def on_start(self) -> None:
        """Let the consumer subscribe."""
        await self._update_channels()
        await self.recovery.start()


class RunnerApp(App):
    """A Faust app on a transport that is handed in, which leaves no folders behind."""

    transport_class: Any = None
    transport_options: Mapping[str, Any]

    def _new_transport(self) -> Any:
        return self.transport_class(self.conf.broker_consumer, self, **self.transport_options)

    def _new_producer_transport(self) -> Any:
        return self.transport

    def _create_directories(self) -> None:
        pass


__all__ = ["Hooks", "Linked", "LinkedMessage", "PromptTables", "RunnerApp", "RunnerConsumer", "SilentProducer"]
