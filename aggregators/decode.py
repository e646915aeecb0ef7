"""From the bytes of a record to events, one by one; a bad event never costs its neighbours.

The fast path decodes a whole batch at once. Only where that fails is every event looked at alone and, where
it is bad, explained by the contract (`schemas.events.UsageEvent`).
"""

from __future__ import annotations

import json
from decimal import Decimal, InvalidOperation
from typing import Any, Final, NamedTuple, NoReturn

import msgspec
from pydantic import ValidationError

from schemas.events import EventStruct, UsageEvent
from schemas.log import RECORD_EVENTS_MAX
from schemas.reasons import Reason

_DECODE_FAILURES: Final = (msgspec.MsgspecError, InvalidOperation, RecursionError, UnicodeDecodeError, ValueError)

_batch_of_events: Final = msgspec.json.Decoder(list[EventStruct], float_hook=Decimal).decode
_batch_of_raw: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_one_event: Final = msgspec.json.Decoder(EventStruct, float_hook=Decimal).decode
_anything: Final = msgspec.json.Decoder(float_hook=Decimal).decode
_normalised: Final = msgspec.json.Encoder(order="sorted", decimal_format="number").encode


class Rejected(NamedTuple):
    """An event that will not be counted: its place in the record, why, and its bytes as they came."""

    place: int
    reason: Reason
    detail: str
    raw: bytes


class Decoded(NamedTuple):
    """A record's events by index, and what was wrong with the others. `received` counts both."""

    events: list[tuple[int, EventStruct]]
    rejected: list[Rejected]
    received: int


def decode(value: bytes | None, event_bytes_max: int) -> Decoded:
    """Decode one record value: a CloudEvents JSON object, or a list of them. Never raises."""
    value = value or b""
    batch = value.lstrip()[:1] == b"["
    if len(value) <= event_bytes_max or batch:
        fast = _decode_fast(value, event_bytes_max, batch=batch)
        if fast is not None:
            return Decoded(fast, [], len(fast))
    return _decode_slowly(value, event_bytes_max, batch=batch)


def _decode_fast(value: bytes, event_bytes_max: int, *, batch: bool) -> list[tuple[int, EventStruct]] | None:
    try:
        value.decode()
        if not batch:
            return [(0, _one_event(value))]
        events = _batch_of_events(value)
        if (
            len(value) > event_bytes_max
            and max(map(len, map(bytes, _batch_of_raw(value))), default=0) > event_bytes_max
        ):
            return None
    except _DECODE_FAILURES:
        return None
    return list(enumerate(events)) if len(events) <= RECORD_EVENTS_MAX else None


def _decode_slowly(value: bytes, event_bytes_max: int, *, batch: bool) -> Decoded:
    raws = [value]
    if batch:
        try:
            raws = [bytes(raw) for raw in _batch_of_raw(value)]
        except _DECODE_FAILURES as error:
            return Decoded([], [_explain(0, value, error)], 1)
        if len(raws) > RECORD_EVENTS_MAX:
            detail = f"{len(raws)} events in one record"
            return Decoded([], [Rejected(0, Reason.TOO_MANY_EVENTS, detail, value)], 1)
    events: list[tuple[int, EventStruct]] = []
    rejected: list[Rejected] = []
    for index, raw in enumerate(raws):
        if len(raw) > event_bytes_max:
            detail = f"{len(raw)} bytes, at most {event_bytes_max}"
            rejected.append(Rejected(index, Reason.TOO_LARGE, detail, raw))
            continue
        try:
            raw.decode()
            events.append((index, _one_event(raw)))
        except _DECODE_FAILURES as error:
            rejected.append(_explain(index, raw, error))
    return Decoded(events, rejected, len(raws))


def raw_event(value: bytes | None, index: int) -> bytes:
    """The bytes of one event of a record that decodes, as they came."""
    value = value or b""
    return bytes(_batch_of_raw(value)[index]) if value.lstrip()[:1] == b"[" else value


def _explain(index: int, raw: bytes, error: Exception) -> Rejected:
    """Why one event, or a whole record, cannot be decoded, in terms a producer can act on."""
    try:
        raw.decode()
    except UnicodeDecodeError as encoding:
        return Rejected(index, Reason.BAD_ENCODING, f"not UTF-8 at byte {encoding.start}", raw)
    try:
        document = _anything(raw)
    except RecursionError:
        return Rejected(index, Reason.TOO_DEEP, "nested too deep", raw)
    except _DECODE_FAILURES as malformed:
        return Rejected(index, Reason.BAD_JSON, str(malformed)[:200], raw)
    if not isinstance(document, dict):
        return Rejected(index, Reason.NOT_AN_EVENT, f"a JSON {type(document).__name__}, not an object", raw)
    try:
        UsageEvent.model_validate(document)
    except ValidationError as invalid:
        first = invalid.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])[:100]
        reason = Reason.MISSING_FIELD if first["type"] == "missing" else Reason.BAD_FIELD
        return Rejected(index, reason, f"{field}: {first['msg']}", raw)
    return Rejected(index, Reason.BAD_FIELD, str(error)[:200], raw)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def contract_accepts(raw: bytes) -> bool:
    """Whether the contract, on its own and without the fast decoder, accepts these bytes as one event."""
    try:
        document = json.loads(raw.decode(), parse_float=Decimal, parse_constant=_refuse_constant)
        UsageEvent.model_validate(document)
    except (ValidationError, RecursionError, InvalidOperation, ValueError):
        return False
    return True


def normalised(data: dict[str, Any]) -> str:
    """The event's data as JSON text: keys sorted, numbers exact, of two equal keys the last."""
    return _normalised(data).decode()
