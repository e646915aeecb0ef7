"""The fence as a hash of texts, and the token that is compared at every read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import msgspec

from schemas.errors import OperatorNeeded
from schemas.meters import Catalog
from schemas.rollup import Counters, Fence, MarkSlice

FORMAT = "1"


def token(fence: Fence) -> str:
    """Names one state of a partition: every commit moves `next_offset`, every rebuild the generation."""
    return f"{fence.log_id}:{fence.generation}:{fence.next_offset}:{fence.log_time_ms}"


def encode_fence(fence: Fence) -> dict[str, str]:
    """The hash of a fence."""
    return {
        "format": FORMAT,
        "token": token(fence),
        "log_id": fence.log_id,
        "partitions": str(fence.partitions),
        "livemode": "1" if fence.livemode else "0",
        "stripe_account": fence.stripe_account,
        "generation": str(fence.generation),
        "next_offset": str(fence.next_offset),
        "log_time_ms": str(fence.log_time_ms),
        "secret_fingerprint": fence.secret_fingerprint,
        "catalog": fence.catalog.model_dump_json() if fence.catalog else "",
        "counters": msgspec.json.encode(fence.counters).decode(),
        "slices": msgspec.json.encode(fence.slices).decode(),
    }


def decode_fence(fields: Mapping[str, str]) -> Fence:
    """The inverse of `encode_fence`. Raises `OperatorNeeded` where another version wrote it."""
    if fields.get("format") != FORMAT:
        raise OperatorNeeded(
            f"the fence has format {fields.get('format')!r}, this version reads {FORMAT!r}: run the matching version"
        )
    return Fence(
        log_id=fields["log_id"],
        partitions=int(fields["partitions"]),
        livemode=fields["livemode"] == "1",
        stripe_account=fields["stripe_account"],
        generation=int(fields["generation"]),
        next_offset=int(fields["next_offset"]),
        log_time_ms=int(fields["log_time_ms"]),
        secret_fingerprint=fields["secret_fingerprint"],
        catalog=_catalog(fields["catalog"]) if fields["catalog"] else None,
        counters=Counters(*msgspec.json.decode(fields["counters"])),
        slices=tuple(MarkSlice(*each) for each in msgspec.json.decode(fields["slices"])),
    )


# Reading a catalog takes milliseconds, and whoever asks for an account reads its partition's fence.
@lru_cache(maxsize=16)
def _catalog(text: str) -> Catalog:
    return Catalog.model_validate_json(text)
