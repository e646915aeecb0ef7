"""A partition's whole state copied out of its keys and into those of another generation.

A chunk is a JSON list of (type, key within the generation, items): whatever is stored under the prefix is in it, so a
kind of state that is added later cannot be forgotten.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, Final

import msgspec

from schemas.errors import Fenced
from schemas.rollup import Fence
from sinks.redis.client import Command, Connection, checked, pairs
from sinks.redis.fences import encode_fence, token
from sinks.redis.generations import Read, RedisGenerations
from sinks.redis.keys import GENERATIONS, Keys

_Entry = tuple[str, str, list[str]]

_PAGE_KEYS: Final = 500
_PAGE_ITEMS: Final = 5_000
_CHUNK_ITEMS: Final = 5_000
_ARGUMENTS_MAX: Final = 10_000
_SCANS: Final = {"hash": "HSCAN", "set": "SSCAN", "zset": "ZSCAN"}
_WRITES: Final = {"hash": "HSET", "set": "SADD", "zset": "ZADD"}
_CELLS: Final = "cells:"
_DIRTY: Final = "dirty:"
_REPORTS: Final = "reports:"

_decode: Final = msgspec.json.Decoder(list[_Entry]).decode


class RedisSnapshots(RedisGenerations):
    """`schemas.checkpoints.SnapshotStore` on the keys of a generation."""

    async def snapshot(self, partition: int, believed: Fence) -> AsyncIterator[str]:
        keys = await self._believe(partition, believed)
        cursor, gathered = "0", list[_Entry]()
        # One connection for all: a cursor says nothing to a server that was started again, or that took over, and
        # nothing but a connection that breaks tells that it is another one.
        connection = self.server.connection()
        try:
            while True:
                cursor, found = await self._run(self._page, connection, keys, cursor)
                gathered += found
                if gathered and sum(len(items) for _, _, items in gathered) >= _CHUNK_ITEMS:
                    yield msgspec.json.encode(gathered).decode()
                    gathered = []
                if cursor == "0":
                    break
        finally:
            connection.release()
        if gathered:
            yield msgspec.json.encode(gathered).decode()
        await self._believe(partition, believed)

    async def _believe(self, partition: int, believed: Fence) -> Keys:
        keys, (held,) = await self._read_live(partition, lambda keys: [("HGET", keys.fence, "token")])
        if held != token(believed):
            raise Fenced(f"partition {partition}: the fence is {held}, a copy was to be made at {token(believed)}")
        return keys

    def _page(self, connection: Connection, keys: Keys, cursor: str) -> tuple[str, list[_Entry]]:
        """The next cursor, and the contents of some keys in entries of bounded size."""

        def run(commands: list[Command]) -> list[Any]:
            return checked(connection.run(commands), self.server.where)

        ((cursor, names),) = run([("SCAN", cursor, "MATCH", keys.literal + "*", "COUNT", _PAGE_KEYS)])
        apart = (keys.fence, keys.live, keys.restoring)
        wanted = [name for name in names if name not in apart and not self._is_named(keys, name)]
        if not wanted:
            return cursor, []
        kinds = dict(zip(wanted, run([("TYPE", name) for name in wanted]), strict=True))
        entries: list[_Entry] = []
        texts = [name for name, kind in kinds.items() if kind == "string"]
        if texts:
            (values,) = run([("MGET", *texts)])
            entries += [
                ("string", name.removeprefix(keys.prefix), [text])
                for name, text in zip(texts, values, strict=True)
                if text is not None
            ]
        left = {name: "0" for name, kind in kinds.items() if kind in _SCANS}
        while left:
            reads: list[Command] = [
                (_SCANS[kinds[name]], name, at, "COUNT", _PAGE_ITEMS) for name, at in left.items()
            ]  # fmt: skip
            answers = run(reads)
            pages = dict(zip(left, answers, strict=True))
            entries += [(kinds[name], name.removeprefix(keys.prefix), page[1]) for name, page in pages.items()]
            left = {name: page[0] for name, page in pages.items() if page[0] != "0"}
        return cursor, [entry for entry in entries if entry[2]]

    @staticmethod
    def _is_named(keys: Keys, name: str) -> bool:
        """Whether a key is of a named generation, while these are of the one without a name."""
        return not keys.generation and name.startswith(keys.root + GENERATIONS)

    async def begin_restore(self, partition: int, owner: str) -> None:
        keys = self.keys(partition)

        def claim(read: Read) -> list[Command]:
            (exists,) = read([("EXISTS", keys.fence)])
            if exists:
                raise Fenced(f"partition {partition} has a fence already: another process has restored it")
            return [("SET", keys.restoring, owner)]

        await self._restoring(keys, claim)
        async for found in self._pages(keys):
            left = [
                key
                for key in found
                if key.startswith(keys.prefix)
                and key not in (keys.live, keys.fence, keys.restoring)
                and not self._is_named(keys, key)
            ]
            if left:
                # Not what another process has restored since it took the claim over.
                await self._owned(keys, owner, [("UNLINK", *left)])

    async def take_in(self, partition: int, owner: str, chunks: Sequence[str]) -> None:
        keys = self.keys(partition)
        writes = [write for chunk in chunks for entry in _decode(chunk) for write in _restored(keys, entry)]
        await self._owned(keys, owner, writes)

    async def end_restore(self, partition: int, owner: str, fence: Fence) -> None:
        keys = self.keys(partition)
        writes: list[Command] = []
        (buckets,) = await self._commands([("SMEMBERS", keys.cell_buckets)])
        for bucket in map(int, buckets):
            cells, dirty = await self._commands([("HKEYS", keys.cells(bucket)), ("HKEYS", keys.dirty(bucket))])
            # Drained and dropped during the copy: what is left of it would be waited for without end.
            gone = sorted(set(dirty) - set(cells))
            writes += [
                ("HDEL", keys.dirty(bucket), *gone[start : start + _ARGUMENTS_MAX])
                for start in range(0, len(gone), _ARGUMENTS_MAX)
            ]
        writes.append(("HSET", keys.fence, *pairs(encode_fence(fence).items())))
        await self._owned(keys, owner, [*writes, ("UNLINK", keys.restoring)])

    async def _owned(self, keys: Keys, owner: str, writes: Sequence[Command]) -> None:
        def claimed(read: Read) -> Sequence[Command]:
            held, exists = read([("GET", keys.restoring), ("EXISTS", keys.fence)])
            if held != owner or exists:
                raise Fenced(f"{keys.root}: another process restores this partition")
            return writes

        await self._restoring(keys, claimed)

    async def _restoring(self, keys: Keys, decide: Callable[[Read], Sequence[Command]]) -> None:
        """Write what `decide` says after its reads, if nobody has claimed or finished the restore meanwhile."""
        if await self._run(self._watching, [keys.fence, keys.restoring], decide) is None:
            raise Fenced(f"{keys.root}: another process restores this partition")


def _restored(keys: Keys, entry: _Entry) -> Iterator[Command]:
    kind, name, items = entry
    key = keys.prefix + name
    if kind == "string":
        yield ("SET", key, items[0])
        return
    if kind == "zset":
        items = pairs(zip(items[1::2], items[::2], strict=True))
    for start in range(0, len(items), _ARGUMENTS_MAX):
        yield (_WRITES[kind], key, *items[start : start + _ARGUMENTS_MAX])
    # A bucket that was dropped during the copy is named again, so that it is dropped again.
    for prefix, index in ((_CELLS, keys.cell_buckets), (_DIRTY, keys.cell_buckets), (_REPORTS, keys.report_buckets)):
        if name.startswith(prefix):
            yield ("SADD", index, name.removeprefix(prefix))
