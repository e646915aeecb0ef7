"""The segments of an account as JSON, and back: what SQL keeps of each version of its entitlements."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import msgspec

from schemas.entitlements import UNLIMITED, Grant, Operation, Resolved, Segment, SourceKind, Value


class _Grant(msgspec.Struct, array_like=True):
    kind: str
    source: str
    operation: str
    value: bool | str
    starts_ms: int
    ends_ms: int | None
    rank: int
    cause: str
    reason: str


class _Resolved(msgspec.Struct, omit_defaults=True):
    value: bool | str
    gives: list[_Grant] = []
    denied: bool = False
    lost: list[_Grant] = []


class _Segment(msgspec.Struct):
    from_ms: int
    features: dict[str, _Resolved]


_decode = msgspec.json.Decoder(list[_Segment]).decode


def encode(segments: Sequence[Segment]) -> str:
    """The segments as JSON. Equal segments give equal text."""
    written = [
        _Segment(
            segment.from_ms,
            {
                name: _Resolved(
                    _written(found.value),
                    [_write(grant) for grant in found.gives],
                    found.is_denied,
                    [_write(grant) for grant in found.lost],
                )
                for name, found in sorted(segment.features.items())
            },
        )
        for segment in segments
    ]
    return msgspec.json.encode(written).decode()


def decode(text: str) -> tuple[Segment, ...]:
    """The segments of a text that `encode` wrote. Raises `msgspec.ValidationError` for another text."""
    return tuple(
        Segment(
            each.from_ms,
            {
                name: Resolved(
                    _read(found.value),
                    tuple(_grant(name, made) for made in found.gives),
                    found.denied,
                    tuple(_grant(name, made) for made in found.lost),
                )
                for name, found in each.features.items()
            },
        )
        for each in _decode(text)
    )


def encode_value(value: Value) -> str:
    """One value as JSON."""
    return msgspec.json.encode(_written(value)).decode()


def decode_value(text: str) -> Value:
    """The value of a text that `encode_value` wrote."""
    return _read(msgspec.json.decode(text, type=bool | str))


def _written(value: Value) -> bool | str:
    """A config keeps its JSON behind a colon, so that no config is taken for a number."""
    if isinstance(value, bool):
        return value
    if value is UNLIMITED:
        return UNLIMITED.value
    return f"{value:f}" if isinstance(value, Decimal) else f":{value}"


def _read(value: bool | str) -> Value:
    if isinstance(value, bool):
        return value
    if value == UNLIMITED.value:
        return UNLIMITED
    return value[1:] if value.startswith(":") else Decimal(value)


def _write(grant: Grant) -> _Grant:
    return _Grant(
        grant.kind, grant.source, grant.operation, _written(grant.value), grant.starts_ms, grant.ends_ms, grant.rank,
        grant.cause, grant.reason,
    )  # fmt: skip


def _grant(feature: str, made: _Grant) -> Grant:
    return Grant(
        feature, SourceKind(made.kind), made.source, Operation(made.operation), _read(made.value), made.starts_ms,
        made.ends_ms, made.rank, made.cause, made.reason,
    )  # fmt: skip
