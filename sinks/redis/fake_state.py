"""What the in-memory fake of the rollup store holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from schemas.errors import Fenced
from schemas.periods import AccountState
from schemas.rebuild import SUPERSEDED
from schemas.rollup import (
    BucketField,
    Checkpoint,
    Deferred,
    DueTotal,
    Duplicate,
    MarkKey,
    RankingKey,
    TotalKey,
    UniqueKey,
)


@dataclass
class Notes:
    """Which generation is being built, and the token of the last rebuild command that claimed."""

    rebuilding: int | None = None
    rebuilder: str | None = None


@dataclass(frozen=True)
class Claim:
    """A rebuild command's token, and where the last one stands."""

    notes: Notes
    token: str

    def check(self) -> None:
        """Raise `Fenced` where another command has claimed since."""
        if self.notes.rebuilder != self.token:
            raise Fenced(SUPERSEDED)


@dataclass
class HeldPartition:
    """What one generation of a partition holds, as dictionaries."""

    checkpoint: Checkpoint | None = None
    marks: dict[MarkKey, set[int]] = field(default_factory=dict)
    totals: dict[TotalKey, dict[str, str]] = field(default_factory=dict)
    rankings: dict[RankingKey, dict[str, int]] = field(default_factory=dict)
    cells: dict[BucketField, str] = field(default_factory=dict)
    dirty: dict[BucketField, int] = field(default_factory=dict)
    reports: dict[BucketField, str] = field(default_factory=dict)
    uniques: dict[UniqueKey, set[int]] = field(default_factory=dict)
    accounts: dict[str, AccountState] = field(default_factory=dict)
    duplicates: dict[int, Duplicate] = field(default_factory=dict)
    deferred: dict[int, Deferred] = field(default_factory=dict)
    due: dict[TotalKey, int] = field(default_factory=dict)
    dropped_cells: dict[int, int] = field(default_factory=dict)
    dropped_duplicates: int = 0
    restoring: str | None = None

    def due_first(self, count_max: int) -> list[DueTotal]:
        order = sorted((at, f"{key.period_start_ms}:{key.account}".encode(), key) for key, at in self.due.items())
        return [DueTotal(at, key) for at, _, key in order[:count_max]]

    def retire(self, key: TotalKey, meters: Sequence[str]) -> None:
        self.due.pop(key, None)
        self.totals.pop(key, None)
        for meter in meters:
            self.uniques.pop(UniqueKey(key.account, meter, key.period_start_ms), None)
            ranking = RankingKey(meter, key.period_start_ms)
            self.rankings.get(ranking, {}).pop(key.account, None)
            if not self.rankings.get(ranking):
                self.rankings.pop(ranking, None)


class Chunk(msgspec.Struct):
    """A partition's state as one chunk; keys that are no text stand in pairs."""

    marks: list[tuple[MarkKey, list[int]]]
    totals: list[tuple[TotalKey, dict[str, str]]]
    rankings: list[tuple[RankingKey, dict[str, int]]]
    cells: list[tuple[BucketField, str]]
    dirty: list[tuple[BucketField, int]]
    reports: list[tuple[BucketField, str]]
    uniques: list[tuple[UniqueKey, list[int]]]
    accounts: dict[str, str]
    duplicates: list[Duplicate]
    deferred: list[Deferred]
    due: list[tuple[TotalKey, int]]
    dropped_cells: list[tuple[int, int]]
    dropped_duplicates: int
