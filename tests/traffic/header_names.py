"""Names of record headers that are not text, as any producer in C may write them."""

from __future__ import annotations


class RawName(str):
    """A header's name that the library's builder writes as these bytes."""

    __slots__ = ("raw",)
    raw: bytes

    def encode(self, *_: object) -> bytes:
        return self.raw


def raw_name(raw: bytes) -> RawName:
    name = RawName()
    name.raw = raw
    return name
