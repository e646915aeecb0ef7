"""The state of the in-memory live view, and its chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from schemas.errors import Fenced
from schemas.measures import MeasuredTo
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
    """The generation that is being built, the token of the rebuild command that claimed last, and how far each
    partition is measured."""

    rebuilding: int | None = None
    rebuilder: str | None = None
    measured: dict[int, MeasuredTo] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """A rebuild command's token, and the notes that hold the token of the last command."""

    notes: Notes
    token: str

    def check(self) -> None:
        """Raise `Fenced` if another command has claimed since."""
        if self.notes.rebuilder != self.token:
            raise Fenced(SUPERSEDED)


@dataclass
class HeldPartition:
    """The state of one generation of a partition."""

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
    levels: dict[TotalKey, int] = field(default_factory=dict)
    dropped_cells: dict[int, int] = field(default_factory=dict)
    dropped_duplicates: int = 0
    restoring: str | None = None

    def due_first(self, count_max: int) -> list[DueTotal]:
        return _first(self.due, count_max)

    def levels_first(self, count_max: int) -> list[DueTotal]:
        return _first(self.levels, count_max)

    def retire(self, key: TotalKey, meters: Sequence[str]) -> None:
        self.due.pop(key, None)
        self.totals.pop(key, None)
        for meter in meters:
            self.uniques.pop(UniqueKey(key.account, meter, key.period_start_ms), None)
            ranking = RankingKey(meter, key.period_start_ms)
            self.rankings.get(ranking, {}).pop(key.account, None)
            if not self.rankings.get(ranking):
                self.rankings.pop(ranking, None)


def _first(index: dict[TotalKey, int], count_max: int) -> list[DueTotal]:
    order = sorted((ms, f"{key.period_start_ms}:{key.account}".encode(), key) for key, ms in index.items())
    return [DueTotal(due_ms, key) for due_ms, _, key in order[:count_max]]


class Chunk(msgspec.Struct):
    """A partition's state as JSON: each dictionary as pairs, because JSON keys can only be text."""

    marks: list[tuple[MarkKey, set[int]]]
    totals: list[tuple[TotalKey, dict[str, str]]]
    rankings: list[tuple[RankingKey, dict[str, int]]]
    cells: list[tuple[BucketField, str]]
    dirty: list[tuple[BucketField, int]]
    reports: list[tuple[BucketField, str]]
    uniques: list[tuple[UniqueKey, set[int]]]
    accounts: list[tuple[str, AccountState]]
    duplicates: list[tuple[int, Duplicate]]
    deferred: list[tuple[int, Deferred]]
    due: list[tuple[TotalKey, int]]
    levels: list[tuple[TotalKey, int]]
    dropped_cells: list[tuple[int, int]]
    dropped_duplicates: int


CHUNK_PAIRS: Final = Chunk.__struct_fields__[:-1]
decode_chunk: Final = msgspec.json.Decoder(
    Chunk, dec_hook=lambda _, text: AccountState.model_validate_json(text)
).decode
