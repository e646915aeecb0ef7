"""The checkpoint as named texts, for Redis and for snapshots, and the token that every read and commit compares.

The meter set is much larger than the other fields and rarely changes. A commit writes the meter set only if it changed,
and readers fetch it only if they do not know its digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final

import msgspec

from schemas.errors import OperatorNeeded
from schemas.meters import MeterSet
from schemas.rollup import Checkpoint, Counters, MarkSlice

FORMAT: Final = "2"
DIGEST: Final = "meter_set_digest"
METER_SET: Final = "meter_set"


@lru_cache(maxsize=16)
def _meter_set_text(meter_set: MeterSet) -> str:
    return meter_set.model_dump_json()


@lru_cache(maxsize=16)
def _digest(meter_set: MeterSet) -> str:
    # Without defaults: a version that adds a field with a default still finds the digests of this version.
    return hashlib.sha256(meter_set.model_dump_json(exclude_defaults=True).encode()).hexdigest()[:32]


def _digest_of(checkpoint: Checkpoint) -> str:
    return _digest(checkpoint.meter_set) if checkpoint.meter_set else ""


def token(checkpoint: Checkpoint) -> str:
    """A text that differs for every state of a partition: a commit changes `next_offset`, a rebuild the generation."""
    position = f"{checkpoint.log_id}:{checkpoint.generation}:{checkpoint.next_offset}:{checkpoint.stream_time_ms}"
    return f"{position}:{_digest_of(checkpoint)}"


FIELDS: Final[Mapping[str, Callable[[Checkpoint], str]]] = {
    "format": lambda _: FORMAT,
    "token": token,
    "log_id": lambda checkpoint: checkpoint.log_id,
    "partitions": lambda checkpoint: str(checkpoint.partitions),
    "livemode": lambda checkpoint: "1" if checkpoint.livemode else "0",
    "stripe_account": lambda checkpoint: checkpoint.stripe_account,
    "generation": lambda checkpoint: str(checkpoint.generation),
    "next_offset": lambda checkpoint: str(checkpoint.next_offset),
    "stream_time_ms": lambda checkpoint: str(checkpoint.stream_time_ms),
    "secret_fingerprint": lambda checkpoint: checkpoint.secret_fingerprint,
    "counters": lambda checkpoint: msgspec.json.encode(checkpoint.counters).decode(),
    "slices": lambda checkpoint: msgspec.json.encode(checkpoint.slices).decode(),
    DIGEST: _digest_of,
}


def encode_checkpoint(checkpoint: Checkpoint, believed: Checkpoint | None = None) -> dict[str, str]:
    """The fields to write over the stored checkpoint `believed`; all fields without `believed`."""
    fields = {name: text_of(checkpoint) for name, text_of in FIELDS.items()}
    if believed is None or _digest_of(believed) != fields[DIGEST]:
        fields[METER_SET] = _meter_set_text(checkpoint.meter_set) if checkpoint.meter_set else ""
    return fields


def decode_checkpoint(fields: Mapping[str, str], meter_set: MeterSet | None = None) -> Checkpoint:
    """The inverse of `encode_checkpoint`. The fields may lack the meter set if `meter_set` is given.

    Raises `OperatorNeeded` if another version of Tidemark wrote the checkpoint.
    """
    check_format(fields)
    if meter_set is None and fields[DIGEST]:
        meter_set = _meter_set(fields[METER_SET])
    return Checkpoint(
        log_id=fields["log_id"],
        partitions=int(fields["partitions"]),
        livemode=fields["livemode"] == "1",
        stripe_account=fields["stripe_account"],
        generation=int(fields["generation"]),
        next_offset=int(fields["next_offset"]),
        stream_time_ms=int(fields["stream_time_ms"]),
        secret_fingerprint=fields["secret_fingerprint"],
        meter_set=meter_set,
        counters=Counters(*msgspec.json.decode(fields["counters"])),
        slices=tuple(MarkSlice(*mark_slice) for mark_slice in msgspec.json.decode(fields["slices"])),
    )


def check_format(fields: Mapping[str, str]) -> None:
    """Raise `OperatorNeeded` if another version of Tidemark wrote the checkpoint."""
    if fields.get("format") != FORMAT:
        raise OperatorNeeded(
            f"the checkpoint has format {fields.get('format')!r}, this version reads {FORMAT!r}: "
            "run the matching version"
        )


@lru_cache(maxsize=16)
def _meter_set(text: str) -> MeterSet:
    return MeterSet.model_validate_json(text)
