"""The checkpoint as a hash of texts, and the token that is compared at every read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import msgspec

from schemas.errors import OperatorNeeded
from schemas.meters import MeterSet
from schemas.rollup import Checkpoint, Counters, MarkSlice

FORMAT = "1"


def token(checkpoint: Checkpoint) -> str:
    """Names one state of a partition: every commit moves `next_offset`, every rebuild the generation."""
    return f"{checkpoint.log_id}:{checkpoint.generation}:{checkpoint.next_offset}:{checkpoint.stream_time_ms}"


def encode_checkpoint(checkpoint: Checkpoint) -> dict[str, str]:
    """The hash of a checkpoint."""
    return {
        "format": FORMAT,
        "token": token(checkpoint),
        "log_id": checkpoint.log_id,
        "partitions": str(checkpoint.partitions),
        "livemode": "1" if checkpoint.livemode else "0",
        "stripe_account": checkpoint.stripe_account,
        "generation": str(checkpoint.generation),
        "next_offset": str(checkpoint.next_offset),
        "stream_time_ms": str(checkpoint.stream_time_ms),
        "secret_fingerprint": checkpoint.secret_fingerprint,
        "meter_set": checkpoint.meter_set.model_dump_json() if checkpoint.meter_set else "",
        "counters": msgspec.json.encode(checkpoint.counters).decode(),
        "slices": msgspec.json.encode(checkpoint.slices).decode(),
    }


def decode_checkpoint(fields: Mapping[str, str]) -> Checkpoint:
    """The inverse of `encode_checkpoint`. Raises `OperatorNeeded` where another version wrote it."""
    if fields.get("format") != FORMAT:
        raise OperatorNeeded(
            f"the checkpoint has format {fields.get('format')!r}, this version reads {FORMAT!r}: "
            "run the matching version"
        )
    return Checkpoint(
        log_id=fields["log_id"],
        partitions=int(fields["partitions"]),
        livemode=fields["livemode"] == "1",
        stripe_account=fields["stripe_account"],
        generation=int(fields["generation"]),
        next_offset=int(fields["next_offset"]),
        stream_time_ms=int(fields["stream_time_ms"]),
        secret_fingerprint=fields["secret_fingerprint"],
        meter_set=_meter_set(fields["meter_set"]) if fields["meter_set"] else None,
        counters=Counters(*msgspec.json.decode(fields["counters"])),
        slices=tuple(MarkSlice(*each) for each in msgspec.json.decode(fields["slices"])),
    )


# Reading a meter set takes milliseconds, and whoever asks for an account reads its partition's checkpoint.
@lru_cache(maxsize=16)
def _meter_set(text: str) -> MeterSet:
    return MeterSet.model_validate_json(text)
