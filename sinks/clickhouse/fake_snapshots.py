"""`SnapshotStore` in this process."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.snapshots import Snapshot


class FakeSnapshots:
    """Stores snapshots in dictionaries."""

    def __init__(self) -> None:
        self.kept: dict[tuple[int, int, str], dict[int, str]] = {}
        self.heads: dict[tuple[int, int, str], Snapshot] = {}

    async def insert_chunks(self, at: Snapshot, first_number: int, chunks: Sequence[str]) -> None:
        self.kept.setdefault(at[:3], {}).update(enumerate(chunks, first_number))

    async def complete(self, at: Snapshot) -> None:
        self.kept.setdefault(at[:3], {})
        self.heads[at[:3]] = at

    async def snapshots(self, partition: int) -> Sequence[Snapshot]:
        heads = [head for head in self.heads.values() if head.partition == partition]
        return sorted((head for head in heads if len(self.kept[head[:3]]) == head.chunks), reverse=True)

    async def chunks(self, at: Snapshot, first_number: int, count_max: int) -> Sequence[str]:
        chunks = self.kept.get(at[:3], {})
        return [chunks[number] for number in sorted(chunks) if number >= first_number][:count_max]

    async def keep(self, partition: int, kept: Sequence[Snapshot]) -> None:
        newest = max((snapshot.next_offset for snapshot in kept), default=0)
        names = {snapshot[:3] for snapshot in kept}
        for key in [key for key in self.kept if key[0] == partition and key[1] < newest and key not in names]:
            self.kept.pop(key)
            self.heads.pop(key, None)
