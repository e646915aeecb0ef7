"""Copies a partition's whole state out of its keys and into the keys of another generation.

A chunk is a JSON list of (type, key without the generation's prefix, items). A copy contains every key under the
prefix, so state that a later version adds is copied too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from schemas.errors import Fenced
from schemas.rollup import Checkpoint
from schemas.snapshots import BYTES_AT_ONCE
from sinks.redis.checkpoints import token, write_checkpoint
from sinks.redis.client import Command, Connection, checked, chunked, pairs
from sinks.redis.keys import GENERATIONS, Keys, literal
from sinks.redis.keyspace import Read, Store

_Entry = tuple[str, str, list[str]]

_PAGE_KEYS: Final = 500
# Items per round trip. Small keys are read together; a large key is read alone, page by page.
_PAGE_ITEMS: Final = 5_000
# Without the characters that JSON adds to escape others.
CHUNK_CHARACTERS: Final = 100_000
# Characters that JSON adds to an item and to an entry.
_ITEM_CHARACTERS: Final = 3
_ENTRY_CHARACTERS: Final = 20
_SCANS: Final = {"hash": "HSCAN", "set": "SSCAN", "zset": "ZSCAN"}
_COUNTS: Final = {"hash": "HLEN", "set": "SCARD", "zset": "ZCARD"}
# An item of a hash may be a whole event, so a page has few items. Redis returns a small hash in one page.
_PAGES: Final = {"hash": 200, "set": _PAGE_ITEMS, "zset": _PAGE_ITEMS}
_TEXT_ITEMS: Final = 50
_WIDTHS: Final = {"hash": 2, "zset": 2}
_WRITES: Final = {"hash": "HSET", "set": "SADD", "zset": "ZADD"}

_decode: Final = msgspec.json.Decoder(list[_Entry]).decode


class RedisCopies(Store):
    """Copies a partition's state out of a generation and into another one (`schemas.snapshots.CopyableState`)."""

    async def snapshot(self, partition: int, believed: Checkpoint) -> AsyncIterator[str]:
        keys = await self._believe(partition, believed)
        # One connection for the whole walk: a restarted or promoted server does not know the cursor, and the broken
        # connection reveals the restart.
        connection = self._space.server.connection()
        try:
            walk = _chunks(self._entries(connection, keys))
            while chunk := await self._space.run(next, walk, ""):
                yield chunk
        finally:
            connection.release()
        await self._believe(partition, believed)

    async def _believe(self, partition: int, believed: Checkpoint) -> Keys:
        keys, (stored,) = await self._space.read_live(partition, lambda keys: [("HGET", keys.checkpoint, "token")])
        if stored != token(believed):
            raise Fenced(f"partition {partition}: the checkpoint is {stored}, but the copy is for {token(believed)}")
        return keys

    def _entries(self, connection: Connection, keys: Keys) -> Iterator[_Entry]:
        """The contents of all keys, page by page. Nothing is kept in memory between two round trips."""

        def run(commands: list[Command]) -> list[Any]:
            return checked(connection.run(commands), self._space.server.where) if commands else []

        apart = (keys.checkpoint, keys.live, keys.restoring)
        cursor = ""
        while cursor != "0":
            page: Command = ("SCAN", cursor or "0", "MATCH", literal(keys.prefix) + "*", "COUNT", _PAGE_KEYS)
            ((cursor, names),) = run([page])
            wanted = [name for name in names if name not in apart and not self._is_named(keys, name)]
            kinds = dict(zip(wanted, run([("TYPE", name) for name in wanted]), strict=True))
            for together in _together(kinds, run):
                yield from _contents(keys, together, run)

    @staticmethod
    def _is_named(keys: Keys, name: str) -> bool:
        """Whether the key belongs to another generation than `keys`, which are of generation 0."""
        return not keys.generation and name.startswith(keys.root + GENERATIONS)

    async def begin_restore(self, partition: int, owner: str) -> None:
        keys = self._space.keys(partition)

        def claim(read: Read) -> list[Command]:
            (exists,) = read([("EXISTS", keys.checkpoint)])
            if exists:
                raise Fenced(f"partition {partition} has a checkpoint already: another process has restored it")
            return [("SET", keys.restoring, owner)]

        await self._restoring(keys, claim)
        async for page in self._space.pages(keys):
            left = [
                key
                for key in page
                if key.startswith(keys.prefix)
                and key not in (keys.live, keys.checkpoint, keys.restoring)
                and not self._is_named(keys, key)
            ]
            if left:
                # Raises `Fenced` if another process has claimed meanwhile: the keys that it restored must stay.
                await self._owned(keys, owner, [("UNLINK", *left)])

    async def take_in(self, partition: int, owner: str, chunks: Sequence[str]) -> None:
        keys = self._space.keys(partition)
        writes, size = list[Command](), 0
        for chunk in chunks:
            for entry in _decode(chunk):
                for write in _restored(keys, entry):
                    if size >= BYTES_AT_ONCE:
                        await self._owned(keys, owner, writes)
                        writes, size = [], 0
                    writes.append(write)
                    size += sum(len(str(part)) for part in write)
        # Also without writes, to check the claim.
        await self._owned(keys, owner, writes)

    async def end_restore(self, partition: int, owner: str, checkpoint: Checkpoint) -> None:
        keys = self._space.keys(partition)
        writes: list[Command] = []
        (buckets,) = await self._space.commands([("SMEMBERS", keys.cell_buckets)])
        for bucket in map(int, buckets):
            cells, dirty = await self._space.commands([("HKEYS", keys.cells(bucket)), ("HKEYS", keys.dirty(bucket))])
            # These cells were relayed and dropped during the copy: relays would wait for them for ever.
            writes += chunked(("HDEL", keys.dirty(bucket)), sorted(set(dirty) - set(cells)))
        writes.append(write_checkpoint(keys.checkpoint, checkpoint))
        await self._owned(keys, owner, [*writes, ("UNLINK", keys.restoring)])

    async def _owned(self, keys: Keys, owner: str, writes: Sequence[Command]) -> None:
        def claimed(read: Read) -> Sequence[Command]:
            holder, exists = read([("GET", keys.restoring), ("EXISTS", keys.checkpoint)])
            if holder != owner or exists:
                raise Fenced(f"{keys.root}: another process restores this partition")
            return writes

        await self._restoring(keys, claimed)

    async def _restoring(self, keys: Keys, decide: Callable[[Read], Sequence[Command]]) -> None:
        """Write what `decide` returns. Raises `Fenced` if another process claimed or finished the restore meanwhile."""
        if await self._space.write_watching([keys.checkpoint, keys.restoring], decide) is None:
            raise Fenced(f"{keys.root}: another process restores this partition")


def _together(kinds: Mapping[str, str], run: Read) -> Iterator[dict[str, str]]:
    """Keys with their types, in groups that are read in one round trip. Skips deleted keys."""
    scanned = [name for name, kind in kinds.items() if kind in _SCANS]
    counts = dict(zip(scanned, run([(_COUNTS[kinds[name]], name) for name in scanned]), strict=True))
    together, items = dict[str, str](), 0
    for name, kind in kinds.items():
        if kind != "string" and kind not in _SCANS:
            continue
        # Redis returns a set of integers in one page.
        count = int(counts.get(name, _TEXT_ITEMS))
        if together and items + count > _PAGE_ITEMS:
            yield together
            together, items = {}, 0
        together[name] = kind
        items += count
    if together:
        yield together


def _contents(keys: Keys, kinds: Mapping[str, str], run: Read) -> Iterator[_Entry]:
    """The contents of these keys: one page of each key, then the next page of each."""
    texts = [name for name, kind in kinds.items() if kind == "string"]
    values = run([("MGET", *texts)])[0] if texts else []
    for name, text in zip(texts, values, strict=True):
        if text is not None:
            yield "string", name.removeprefix(keys.prefix), [text]
    left = {name: "0" for name, kind in kinds.items() if kind in _SCANS}
    while left:
        reads: list[Command] = [
            (_SCANS[kinds[name]], name, cursor, "COUNT", _PAGES[kinds[name]]) for name, cursor in left.items()
        ]  # fmt: skip
        pages = dict(zip(left, run(reads), strict=True))
        for name, (_, items) in pages.items():
            yield kinds[name], name.removeprefix(keys.prefix), items
        left = {name: cursor for name, (cursor, _) in pages.items() if cursor != "0"}


def _chunks(entries: Iterable[_Entry]) -> Iterator[str]:
    """The entries as chunks of up to `CHUNK_CHARACTERS`; a larger item has a chunk of its own."""
    gathered, size = list[_Entry](), 0
    for kind, name, items in entries:
        for part in _parts(items, _WIDTHS.get(kind, 1)):
            more = _characters(part) + len(name) + _ENTRY_CHARACTERS
            if gathered and size + more > CHUNK_CHARACTERS:
                yield msgspec.json.encode(gathered).decode()
                gathered, size = [], 0
            gathered.append((kind, name, part))
            size += more
    if gathered:
        yield msgspec.json.encode(gathered).decode()


def _parts(items: list[str], width: int) -> Iterator[list[str]]:
    """The items, halved until each part fits into a chunk or is one item of `width` texts. No part is empty."""
    if len(items) > width and _characters(items) > CHUNK_CHARACTERS // 2:
        middle = (len(items) // width + 1) // 2 * width
        yield from _parts(items[:middle], width)
        yield from _parts(items[middle:], width)
    elif items:
        yield items


def _characters(items: list[str]) -> int:
    return sum(map(len, items)) + _ITEM_CHARACTERS * len(items)


def _restored(keys: Keys, entry: _Entry) -> Iterator[Command]:
    kind, name, items = entry
    key = keys.prefix + name
    if kind == "string":
        yield ("SET", key, items[0])
        return
    if kind == "zset":
        items = pairs(zip(items[1::2], items[::2], strict=True))
    yield from chunked((_WRITES[kind], key), items)
    # A bucket that was dropped during the copy is listed again: otherwise nothing would drop its copied keys.
    family, _, bucket = name.partition(":")
    index = {"cells": keys.cell_buckets, "dirty": keys.cell_buckets, "reports": keys.report_buckets}.get(family)
    if index and bucket:
        yield ("SADD", index, bucket)
