"""`SnapshotStore` in this process."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.snapshots import Snapshot


class FakeSnapshots:
    """Keeps snapshots in dictionaries."""

    def __init__(self) -> None:
        self.kept: dict[tuple[int, int, str], dict[int, str]] = {}
        self.heads: dict[tuple[int, int, str], Snapshot] = {}

    async def insert_chunks(self, at: Snapshot, first_number: int, chunks: Sequence[str]) -> None:
        """As `SnapshotStore` says."""
        self.kept.setdefault(at[:3], {}).update(enumerate(chunks, first_number))

    async def complete(self, at: Snapshot) -> None:
        """As `SnapshotStore` says."""
        self.kept.setdefault(at[:3], {})
        self.heads[at[:3]] = at

    async def snapshots(self, partition: int) -> Sequence[Snapshot]:
        """As `SnapshotStore` says."""
        found = [each for each in self.heads.values() if each.partition == partition]
        return sorted((each for each in found if len(self.kept[each[:3]]) == each.chunks), reverse=True)

    async def chunks(self, at: Snapshot, first_number: int, count_max: int) -> Sequence[str]:
        """As `SnapshotStore` says."""
        held = self.kept.get(at[:3], {})
        return [held[number] for number in sorted(held) if number >= first_number][:count_max]

    async def keep(self, partition: int, kept: Sequence[Snapshot]) -> None:
        """As `SnapshotStore` says."""
        newest = max((each.next_offset for each in kept), default=0)
        names = {each[:3] for each in kept}
        for key in [key for key in self.kept if key[0] == partition and key[1] < newest and key not in names]:
            self.kept.pop(key)
            self.heads.pop(key, None)
