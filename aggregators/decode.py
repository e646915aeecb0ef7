"""Decodes the bytes of a record to events. A bad event does not affect the other events of its record.

The fast path decodes a whole batch at once. If that fails, every event is decoded alone, and the contract
(`schemas.events.UsageEvent`) explains what is wrong with the bad ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from functools import cached_property
from typing import Any, Final, NamedTuple, NoReturn

import msgspec
from pydantic import ValidationError

from aggregators.instants import format_instant_ms
from schemas.events import BOTH_PAYLOADS, EventStruct, UsageEvent, object_of, payload_of
from schemas.log import RECORD_EVENTS_MAX
from schemas.reasons import Reason
from schemas.validation import first_problem, json_kind

_DECODE_FAILURES: Final = (msgspec.MsgspecError, InvalidOperation, RecursionError, UnicodeDecodeError, ValueError)

_batch_of_events: Final = msgspec.json.Decoder(list[EventStruct], float_hook=Decimal).decode
_batch_of_raw: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_one_event: Final = msgspec.json.Decoder(EventStruct, float_hook=Decimal).decode
_anything: Final = msgspec.json.Decoder(float_hook=Decimal).decode
_normalised: Final = msgspec.json.Encoder(order="sorted", decimal_format="number").encode


# JSON is decoded recursively. Near Python's recursion limit, the result would depend on the caller's stack. These
# limits are far below it, so the result is the same everywhere (I7).
LEVELS_MAX: Final = 200
RECORD_LEVELS_MAX: Final = 500
# Reads each byte once and never backtracks: a string that is not closed goes to the end of the text.
_STRINGS: Final = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_DIGITS: Final = re.compile(rb"[0-9]++")
# Python's limit for the conversion of texts to integers.
INTEGER_DIGITS_MAX: Final = 4_300
_FIELD_OF_AN_ERROR: Final = re.compile(r"`\$\.([A-Za-z]+)")
_SPACE: Final = re.compile(r"[ \t\r\n]*")
_NO_BRACKETS: Final = bytes(byte for byte in range(256) if byte not in b"{}[]")


class Rejected(NamedTuple):
    """An event that will not be counted: its place in the record, the reason, and its original bytes."""

    place: int
    reason: Reason
    detail: str
    raw: bytes


class Raws:
    """The original bytes of each event of a record. The first request splits the record; later ones do not."""

    def __init__(self, value: bytes) -> None:
        self._value = value

    @cached_property
    def parts(self) -> Sequence[bytes]:
        """The bytes by place. Raises a decoding error if the record looks like a list and is not one."""
        return _elements(self._value) if is_batch(self._value) else (self._value,)


class _BadPayload(ValueError):
    """What is wrong with `data_base64`, in words that tell a producer what to change."""


class Decoded(NamedTuple):
    """A record's valid events by place, and why the others were rejected. `received` counts both.

    `raws` has the bytes of every valid event.
    """

    events: list[tuple[int, EventStruct]]
    rejected: list[Rejected]
    received: int
    raws: Raws


def is_batch(value: bytes) -> bool:
    """Whether a record's value is decoded as a list of events, well-formed or not."""
    return value.lstrip()[:1] == b"["


def decode(value: bytes | None, event_bytes_max: int) -> Decoded:
    """Decode one record value: a CloudEvents JSON object, or a list of them. Never raises."""
    value = value or b""
    batch = is_batch(value)
    if len(value) <= event_bytes_max or batch:
        fast = _decode_fast(value, event_bytes_max, batch=batch)
        if fast is not None:
            return Decoded(fast, [], len(fast), Raws(value))
    return _decode_slowly(value, event_bytes_max)


def decode_again(raw: bytes) -> EventStruct:
    """Decode one event that `decode` has accepted before."""
    return _with_payload(_one_event(raw))


def timed(raw: bytes, event: EventStruct, arrival_ms: int) -> bytes:
    """The bytes of an event, with the time of its arrival if it has none.

    Whoever appends an event to the log a second time must use this function. Without it, the event would get a new time
    from each append, and appends more than a dedup window apart would be counted twice.
    """
    if event.time is not None:
        return raw
    # The last of two equal keys wins, so this time replaces a null.
    return raw.rstrip()[:-1] + b',"time":"' + format_instant_ms(arrival_ms).encode() + b'"}'


def _with_payload(event: EventStruct) -> EventStruct:
    """The event with `data_base64` decoded to `data`. Raises `_BadPayload` if that is not a JSON object."""
    if not event.data_base64:
        return event
    if event.data:
        raise _BadPayload(f"data_base64: {BOTH_PAYLOADS}")
    try:
        payload = payload_of(event.data_base64)
        data = object_of(payload) if levels(payload) <= LEVELS_MAX else None
    except ValueError as error:
        raise _BadPayload(f"data_base64: {error}") from None
    if data is None:
        raise _BadPayload(f"data_base64: nested more than {LEVELS_MAX} levels deep")
    return msgspec.structs.replace(event, data=data, data_base64=None)


def _decode_fast(value: bytes, event_bytes_max: int, *, batch: bool) -> list[tuple[int, EventStruct]] | None:
    try:
        value.decode()
        events = _batch_of_events(value) if batch else [_one_event(value)]
        # A list, because a generator takes twice the time.
        if any([event.data_base64 for event in events]):  # noqa: C419
            return None
        # Only brackets beyond those of flat events can nest. Counting brackets is cheap; measuring levels is not.
        flat = batch + len(events) + sum([bool(event.data) for event in events])
        if value.count(b"{") + value.count(b"[") - flat > LEVELS_MAX - 2 and levels(value) > LEVELS_MAX + batch:
            return None
        # The parts are not kept: most records need them only here, and keeping them costs a tenth of the decoding.
        if (
            len(value) > event_bytes_max
            and max(map(len, map(bytes, _batch_of_raw(value))), default=0) > event_bytes_max
        ):
            return None
    except _DECODE_FAILURES:
        return None
    return list(enumerate(events)) if len(events) <= RECORD_EVENTS_MAX else None


def _decode_slowly(value: bytes, event_bytes_max: int) -> Decoded:
    raws = Raws(value)
    if levels(value) > RECORD_LEVELS_MAX:
        detail = f"nested more than {RECORD_LEVELS_MAX} levels deep"
        return Decoded([], [Rejected(0, Reason.TOO_DEEP, detail, value)], 1, raws)
    try:
        parts = raws.parts
    except _DECODE_FAILURES as error:
        return Decoded([], [_explain(0, value, error)], 1, raws)
    if len(parts) > RECORD_EVENTS_MAX:
        detail = f"{len(parts)} events in one record"
        return Decoded([], [Rejected(0, Reason.TOO_MANY_EVENTS, detail, value)], 1, raws)
    events: list[tuple[int, EventStruct]] = []
    rejected: list[Rejected] = []
    for index, raw in enumerate(parts):
        if len(raw) > event_bytes_max:
            detail = f"{len(raw)} bytes, at most {event_bytes_max}"
            rejected.append(Rejected(index, Reason.TOO_LARGE, detail, raw))
            continue
        if levels(raw) > LEVELS_MAX:
            rejected.append(Rejected(index, Reason.TOO_DEEP, f"nested more than {LEVELS_MAX} levels deep", raw))
            continue
        try:
            raw.decode()
            events.append((index, _with_payload(_one_event(raw))))
        except _BadPayload as error:
            rejected.append(Rejected(index, Reason.BAD_FIELD, str(error), raw))
        except _DECODE_FAILURES as error:
            rejected.append(_explain(index, raw, error))
    return Decoded(events, rejected, len(parts), raws)


def _elements(value: bytes) -> tuple[bytes, ...]:
    """The bytes of each element of a JSON list. Raises a decoding error if the value is not a JSON list.

    The fast decoder rejects half a surrogate pair, which JSON allows. The slow scanner splits such a list, so only the
    event with the half pair is rejected.
    """
    try:
        return tuple(bytes(raw) for raw in _batch_of_raw(value))
    except msgspec.MsgspecError:
        text = value.decode()
        elements, start = list[bytes](), text.index("[") + 1
        while (start := _SPACE.match(text, start).end()) < len(text) and text[start] != "]":  # type: ignore[union-attr]  # matches the empty text
            _, end = _SCANNER.raw_decode(text, start)
            elements.append(text[start:end].encode())
            start = _SPACE.match(text, end).end()  # type: ignore[union-attr]  # as above
            if text[start : start + 1] == ",":
                start += 1
            elif text[start : start + 1] != "]":
                raise
        if text[start:].strip() != "]":
            raise
        return tuple(elements)


def levels(value: bytes) -> int:
    """How deep JSON text nests objects and lists; exact for well-formed JSON, a number for anything else."""
    if value.count(b"{") + value.count(b"[") <= LEVELS_MAX:
        return 0
    level = deepest = 0
    for byte in _STRINGS.sub(b"", value).translate(None, _NO_BRACKETS):
        level += 1 if byte in b"{[" else -1
        deepest = max(deepest, level)
    return deepest


def _explain(index: int, raw: bytes, error: Exception) -> Rejected:
    """Why one event, or a whole record, cannot be decoded, in words that tell a producer what to change."""
    try:
        raw.decode()
    except UnicodeDecodeError as encoding:
        return Rejected(index, Reason.BAD_ENCODING, f"not UTF-8 at byte {encoding.start}", raw)
    try:
        document = _anything(raw)
    except RecursionError:
        return Rejected(index, Reason.TOO_DEEP, "nested too deep", raw)
    except _DECODE_FAILURES as malformed:
        return Rejected(index, Reason.BAD_JSON, _malformed(raw, malformed), raw)
    if not isinstance(document, dict):
        return Rejected(index, Reason.NOT_AN_EVENT, f"a JSON object is needed, not {json_kind(document)}", raw)
    try:
        UsageEvent.model_validate(document)
    except ValidationError as invalid:
        field, message, missing = first_problem(invalid)
        return Rejected(index, Reason.MISSING_FIELD if missing else Reason.BAD_FIELD, f"{field}: {message}", raw)
    # The contract sees the last of equal keys, the decoder all of them.
    repeated = _FIELD_OF_AN_ERROR.search(str(error))
    return Rejected(index, Reason.BAD_FIELD, f"{repeated[1] if repeated else 'the event'}: stands twice", raw)


def _malformed(raw: bytes, error: Exception) -> str:
    """Why bytes cannot be decoded as JSON, without the words of Python."""
    digits = max((len(number[0]) for number in _DIGITS.finditer(_STRINGS.sub(b"", raw))), default=0)
    if digits >= INTEGER_DIGITS_MAX:
        return f"a number has {digits} digits, fewer than {INTEGER_DIGITS_MAX} are read"
    if isinstance(error, InvalidOperation):
        return "a number has an exponent that is too large to be read"
    # The decoder's words for a text that ends too early.
    return str(error)[:200].replace("Input data was truncated", "the JSON text ends too early")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


# Numbers stay text: the slow scanner only looks for the end of each element.
_SCANNER: Final = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_refuse_constant)


def normalised(data: dict[str, Any]) -> str:
    """The event's data as JSON text: keys sorted, numbers exact. `decode` has kept the last of equal keys."""
    return _normalised(data).decode()
