"""The first checkpoint of a partition, and the checks of a checkpoint's log and secret."""

from __future__ import annotations

from aggregators.signing import fingerprint
from schemas.control import Genesis
from schemas.errors import OperatorNeeded
from schemas.rollup import Checkpoint, Counters


def first_checkpoint(genesis: Genesis, secret: bytes, generation: int = 1) -> Checkpoint:
    """The checkpoint before a partition's first record."""
    return Checkpoint(
        log_id=genesis.log_id,
        partitions=genesis.partitions,
        livemode=genesis.livemode,
        stripe_account=genesis.stripe_account,
        generation=generation,
        next_offset=0,
        stream_time_ms=0,
        secret_fingerprint=fingerprint(secret),
        meter_set=None,
        counters=Counters(),
        slices=(),
    )


def check_secret(partition: int, checkpoint: Checkpoint, secret: bytes) -> None:
    """Raise `OperatorNeeded` if the checkpoint was made with another secret."""
    if checkpoint.secret_fingerprint != fingerprint(secret):
        raise OperatorNeeded(
            f"partition {partition}: the live view was made with another TIDEMARK_SECRET; set that one, or "
            "control records would be refused and duplicates counted"
        )


def check_log(partition: int, checkpoint: Checkpoint, log_id: str) -> None:
    """Raise `OperatorNeeded` if the checkpoint was made from another log."""
    if checkpoint.log_id != log_id:
        raise OperatorNeeded(
            f"partition {partition}: the store belongs to log {checkpoint.log_id}, this log is {log_id}. Point "
            "TIDEMARK_REDIS_URL or TIDEMARK_LOG_URL at the pair that belongs together."
        )
