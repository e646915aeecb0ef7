"""Checkpoints, and commits with some of every kind of state, for the suites of the rollup store."""

from __future__ import annotations

from schemas.clock import HOUR_MS
from schemas.live_view import LiveView
from schemas.meters import MeterSet
from schemas.periods import AccountState, Billing, Customer
from schemas.rollup import (
    BucketField,
    Changes,
    Checkpoint,
    Counters,
    Duplicate,
    MarkKey,
    MarkSlice,
    RankingKey,
    TotalKey,
    UniqueKey,
)

METER_SET = MeterSet.model_validate({"version": 3, "meters": []})
ODD_ACCOUNTS = ["a|b", "a:b:c", "{p0}", "nul\x00", "line\nbreak", "\x1f", "ü 🙂", "x" * 256]
BUCKET = 1_000 * HOUR_MS


def checkpoint(next_offset: int = 0, stream_time_ms: int = BUCKET) -> Checkpoint:
    """A checkpoint at this offset."""
    return Checkpoint(
        log_id="log",
        partitions=4,
        livemode=False,
        stripe_account="acct_1",
        generation=1,
        next_offset=next_offset,
        stream_time_ms=stream_time_ms,
        secret_fingerprint="f",
        meter_set=METER_SET,
        counters=Counters(received=3, counted=2, duplicate=1),
        slices=(MarkSlice(0, 10, 64, 2),),
    )


async def started(store: LiveView) -> Checkpoint:
    """Writes the first checkpoint of partition 0."""
    first = checkpoint()
    await store.state.create_checkpoint(0, first)
    return first


def changes(next_offset: int, account: str = "acme", total: str = "7") -> Changes:
    """A commit with every kind of change."""
    cell = BucketField(BUCKET, f"cell\x1f{account}")
    return Changes(
        checkpoint=checkpoint(next_offset),
        marks={MarkKey(0, 5): [1, -(2**63), 2**63 - 1]},
        totals={TotalKey(account, 0): {"tokens": total, "peak": "-3"}},
        rankings={RankingKey("tokens", 0): {account: 7}},
        cells={cell: "s0:1:7"},
        dirty={cell: 1 << 60},
        reports={BucketField(BUCKET, f"report\x1f{account}"): "0:7:1:0:name"},
        uniques={UniqueKey(account, "users", 0): [11, 12]},
        accounts={account: AccountState(customers=(Customer(0, Billing.MAPPED, "cus_1"),))},
        duplicates=[Duplicate(9, account, "id", "type", "source", -5, '{"a":1}', 6)],
    )
