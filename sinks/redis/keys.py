"""Names of the keys. All keys of a partition share its hash tag, so a cluster keeps them on one node."""

from __future__ import annotations

from typing import Final

from schemas.rollup import MarkKey, RankingKey, TotalKey, UniqueKey

# No key of generation 0 begins with this word.
GENERATIONS: Final = "generation"


class Keys:
    """The keys of one partition in one generation. Keys of generation 0 do not contain the generation.

    The key `live` holds the number of the live generation; it does not exist before the first swap.
    """

    def __init__(self, namespace: str, partition: int, generation: int = 0) -> None:
        self.generation = generation
        self.root = f"{namespace}:{{p{partition}}}:"
        self.live = f"{self.root}{GENERATIONS}-live"
        self.prefix = f"{self.root}{GENERATIONS}:{generation}:" if generation else self.root
        self.checkpoint = self.prefix + "checkpoint"
        self.total_index = self.prefix + "totals"
        self.levels = self.prefix + "levels"
        self.cell_buckets = self.prefix + "cell-buckets"
        self.report_buckets = self.prefix + "report-buckets"
        self.duplicates = self.prefix + "duplicates"
        self.dropped = self.prefix + "dropped"
        self.deferred = self.prefix + "deferred"
        self.deferred_order = self.prefix + "deferred-order"
        self.restating = self.prefix + "restating"
        self.restoring = self.prefix + "restoring"

    def mark(self, key: MarkKey) -> str:
        return f"{self.prefix}m:{key.slice_start_ms}:{key.bucket}"

    def total(self, key: TotalKey) -> str:
        return f"{self.prefix}t:{total_member(key)}"

    def unique(self, key: UniqueKey) -> str:
        return f"{self.prefix}u:{key.meter}:{key.period_start_ms}:{key.account}"

    def ranking(self, key: RankingKey) -> str:
        return f"{self.prefix}r:{key.meter}:{key.period_start_ms}"

    def cells(self, bucket_ms: int) -> str:
        return f"{self.prefix}cells:{bucket_ms}"

    def dirty(self, bucket_ms: int) -> str:
        return f"{self.prefix}dirty:{bucket_ms}"

    def reports(self, bucket_ms: int) -> str:
        return f"{self.prefix}reports:{bucket_ms}"

    def deferred_of(self, account: str) -> str:
        return f"{self.prefix}deferred:{account}"

    def account(self, account: str) -> str:
        return f"{self.prefix}a:{account}"


def literal(text: str) -> str:
    """A SCAN pattern that matches exactly this text."""
    return "".join(f"\\{character}" if character in "*?[]\\^" else character for character in text)


def deferred_member(position: int) -> str:
    """The member that names a deferred event. Zero-padded, because sorted sets order equal scores by text."""
    return f"{position:017d}"


def total_member(key: TotalKey) -> str:
    """The member that names a total in the index of totals."""
    return f"{key.period_start_ms}:{key.account}"


def parse_total_member(text: str) -> TotalKey:
    """The inverse of `total_member`."""
    start, account = text.split(":", 1)
    return TotalKey(account, int(start))
