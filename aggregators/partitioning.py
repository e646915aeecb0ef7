"""The partition of an account: murmur2 of its UTF-8 bytes, as in Kafka's Java client (S1)."""

from __future__ import annotations

from functools import lru_cache
from struct import unpack_from
from typing import Final

_M: Final = 0x5BD1E995
_SEED: Final = 0x9747B28C
_MASK: Final = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """Austin Appleby's MurmurHash2, 32 bit, with Kafka's seed (org.apache.kafka.common.utils.Utils.murmur2)."""
    length = len(data)
    words = length // 4
    h = _SEED ^ length
    for word in unpack_from(f"<{words}I", data):
        k = word * _M & _MASK
        h = (h * _M & _MASK) ^ ((k ^ k >> 24) * _M & _MASK)
    tail = data[words * 4 :]
    if tail:
        h = (h ^ int.from_bytes(tail, "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15


@lru_cache(maxsize=262_144)
def partition_of(account: str, partitions: int) -> int:
    """The account's partition of `usage.events`."""
    return (murmur2(account.encode()) & 0x7FFFFFFF) % partitions
