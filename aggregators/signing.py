"""Keyed hashes: signatures of control records, marks of events, members of distinct sets."""

from __future__ import annotations

import hmac
from functools import lru_cache
from hashlib import blake2b, sha256
from struct import Struct, unpack
from typing import Final

_MARK: Final = Struct(">Iq")


def sign(secret: bytes, topic: str, partition: int, kind: str, value: bytes) -> bytes:
    """Hex HMAC-SHA256 over a control record's topic, partition, kind and value."""
    message = b"\n".join((topic.encode(), str(partition).encode(), kind.encode(), value))
    return hmac.new(secret, message, sha256).hexdigest().encode()


def signature_holds(secret: bytes, topic: str, partition: int, kind: str, value: bytes, signature: bytes) -> bool:
    """Whether the signature is that of `sign`; takes constant time."""
    return hmac.compare_digest(sign(secret, topic, partition, kind, value), signature)


def fingerprint(secret: bytes) -> str:
    """Identifies a secret without revealing it. The checkpoint has this text, as the secret is the key of the marks."""
    return blake2b(b"tidemark fingerprint", key=hash_key(secret), digest_size=8).hexdigest()


def hash_key(secret: bytes) -> bytes:
    """The secret as a blake2b key (at most 64 bytes)."""
    return sha256(secret).digest()


def mark(key: bytes, account: str, event_id: str) -> tuple[int, int]:
    """(bucket hash of 32 bits, member of 64 bits) of an event's identity (I3).

    Keyed by the deployment's secret, so that nobody can craft a collision. The account's length keeps
    ("ab", "c") and ("a", "bc") apart.
    """
    digest = marker(key, account)
    digest.update(event_id.encode())
    bucket_hash, member = _MARK.unpack(digest.digest())
    return bucket_hash, member


def marker(key: bytes, account: str) -> blake2b:
    """The hash of an event's identity up to the event's id: copy it, update it with the id, and `marks_of` the digest.

    All events of an account share it, so that an event costs no hash of the account's name.
    """
    digest = _keyed(key).copy()
    digest.update(f"{len(account)}:{account}".encode())
    return digest


def marks_of(digests: list[bytes]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The bucket hashes and the members of many digests, in order."""
    numbers = unpack(">" + "Iq" * len(digests), b"".join(digests))
    return numbers[::2], numbers[1::2]


@lru_cache(maxsize=8)
def _keyed(key: bytes) -> blake2b:
    # Copying a keyed hash costs half as much as setting one up.
    return blake2b(key=key, digest_size=_MARK.size)


def distinct_member(key: bytes, text: str) -> int:
    """The 64-bit member that stands for a distinct value."""
    digest = blake2b(text.encode(), digest_size=8, key=key, person=b"distinct").digest()
    return int.from_bytes(digest, "big", signed=True)
