"""Reads the body of a request within limits and splits the body into the JSON of single events."""

from __future__ import annotations

import asyncio
import re
import sys
import zlib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from starlette.requests import Request

from aggregators.binary_mode import structured
from aggregators.decode import Rejected
from pipeline.http.errors import ApiError, overloaded
from pipeline.http.percent import decoded
from schemas.reasons import Reason

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

REQUEST_EVENTS_MAX: Final = 10_000
BODIES_BYTES_MAX: Final = 256 * 1024 * 1024
BODY_TIMEOUT_S: Final = 30.0
DISCARD_S: Final = 1.0
ZSTD: Final = "zstd"
# The first two names mean the same (RFC 9110, 8.4.1.3).
COMPRESSED: Final = ("gzip", "x-gzip", ZSTD)
# Each member copies the rest of the body.
MEMBERS_MAX: Final = 1_000
# A frame may ask for as much memory as it names. This is what a receiver should take (RFC 8878, 3.1.1.1.2).
ZSTD_WINDOW_LOG_MAX: Final = 23

SINGLE: Final = "application/cloudevents+json"
BATCH: Final = "application/cloudevents-batch+json"
PLAIN: Final = "application/json"
LINES: Final = ("application/x-ndjson", "application/ndjson")
STRUCTURED: Final = "application/cloudevents"
SUPPORTED: Final = (SINGLE, BATCH, PLAIN, LINES[0])

_raws: Final = msgspec.json.Decoder(Annotated[list[msgspec.Raw], msgspec.Meta(max_length=REQUEST_EVENTS_MAX)]).decode
_raw: Final = msgspec.json.Decoder(msgspec.Raw).decode
_JSON_TYPE: Final = re.compile(r"(application|text)/([\w.+-]+\+)?json")
_PREFIX: Final = b"ce-"
# What is wrong with a header, and its remedy.
_TWICE: Final = ("is sent twice", "send the header once")
_NOT_ENCODED: Final = (
    "is not percent-encoded UTF-8",
    "percent-encode the header's value as UTF-8 (in JavaScript: encodeURIComponent), or use the structured mode",
)
_QUOTED: Final = re.compile(rb'"((?:[^"\\]|\\.)*)"')


def _gzip() -> Any:
    return zlib.decompressobj(wbits=31)


def _zstd() -> Any:
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG_MAX})


def _bad(is_zstd: bool, what: str) -> ApiError:
    if is_zstd:
        return ApiError(400, "bad_zstd", f"the zstd body {what}", "content-encoding")
    return ApiError(400, "bad_gzip", f"the gzip body {what}", "content-encoding")


class Bodies:
    """Reads bodies of up to `body_bytes_max` bytes, before and after decompression. All bodies that are in use together
    have up to `bodies_bytes_max` bytes."""

    def __init__(self, body_bytes_max: int, bodies_bytes_max: int = BODIES_BYTES_MAX) -> None:
        self._body_bytes_max = body_bytes_max
        self._bodies_bytes_max = bodies_bytes_max
        self._bytes_in_use = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The decompressed body. The bytes count towards the common limit until the end of the block.

        Raises `ApiError`: 413 too large, 415 unknown encoding, 400 invalid gzip or zstd, 408 too slow, 503 no room.
        """
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity", *COMPRESSED):
            raise ApiError(
                415, "unsupported_encoding", "send the body as it is or with Content-Encoding: gzip or zstd",
                "content-encoding", {"Accept-Encoding": "gzip, zstd, identity"},
            )  # fmt: skip
        announced = request.headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > self._body_bytes_max:
            # With "Expect: 100-continue" the client has not sent the body yet.
            if "expect" not in request.headers:
                await _discard(request.stream())
            raise self._too_large()
        size, stream = 0, request.stream()
        parts: list[bytes] = []
        try:
            try:
                async with asyncio.timeout(BODY_TIMEOUT_S):
                    async for part in stream:
                        size += len(part)
                        self._bytes_in_use += len(part)
                        if size > self._body_bytes_max:
                            parts.clear()
                            await _discard(stream)
                            raise self._too_large()
                        if self._bytes_in_use > self._bodies_bytes_max:
                            raise overloaded("the gateway is busy with other requests; send the request again")
                        parts.append(part)
            except TimeoutError:
                message = f"the body did not arrive within {BODY_TIMEOUT_S:.0f} s: send less at a time"
                raise ApiError(408, "too_slow", message) from None
            body = b"".join(parts)
            parts.clear()
            if encoding in COMPRESSED:
                body = self._decompressed(body, encoding)
                size += len(body)
                self._bytes_in_use += len(body)
            yield body
        finally:
            self._bytes_in_use -= size

    def _decompressed(self, body: bytes, encoding: str) -> bytes:
        """The content of a body, which may have several members (RFC 1952, 2.2) or frames (RFC 8878, 3)."""
        is_zstd = encoding == ZSTD
        parts: list[bytes] = []
        room = self._body_bytes_max
        while body or not parts:
            part = _zstd() if is_zstd else _gzip()
            try:
                parts.append(part.decompress(body, room + 1))
            except (zlib.error, zstd.ZstdError):
                raise _bad(is_zstd, "has something behind it" if parts else "is not valid") from None
            room -= len(parts[-1])
            if room < 0:
                raise self._too_large()
            if not part.eof:
                raise _bad(is_zstd, "ends early")
            if len(parts) >= MEMBERS_MAX and part.unused_data:
                raise _bad(is_zstd, f"has more than {MEMBERS_MAX} members")
            body = part.unused_data
        return b"".join(parts)

    def _too_large(self) -> ApiError:
        message = f"the body is larger than {self._body_bytes_max} bytes: send fewer events at a time"
        return ApiError(413, "body_too_large", message, headers={"Connection": "close"})


async def _discard(stream: AsyncIterator[bytes]) -> None:
    """Read on for up to `DISCARD_S`: a client whose connection closes during the upload may not see the answer."""
    try:
        async with asyncio.timeout(DISCARD_S):
            async for _ in stream:
                pass
    except TimeoutError:
        pass


class Entries(NamedTuple):
    """The JSON of a request's events. `unreadable` has the reason if the body could not be split into events. In binary
    mode, `id` is then the text of the header `ce-id`, and `remedy` says how to repair a header."""

    raws: list[bytes]
    unreadable: Rejected | None = None
    id: str | None = None
    remedy: str = ""


def entries(request: Request, body: bytes) -> Entries:
    """Split a body into events by the content type, without a check of the events.

    Raises `ApiError`: 415 for another content type, 413 for more than `REQUEST_EVENTS_MAX` events, 400 for none.
    """
    media_type, _, parameters = request.headers.get("content-type", "").partition(";")
    media_type = media_type.strip().lower()
    charset = re.search(r"charset\s*=\s*\"?([\w-]+)", parameters.lower())
    if charset and charset[1] not in ("utf-8", "utf8", "us-ascii"):
        raise ApiError(415, "unsupported_charset", "send UTF-8", "content-type")
    if "ce-specversion" in request.headers and not media_type.startswith(STRUCTURED):
        if media_type and not _JSON_TYPE.fullmatch(media_type):
            raise _unsupported(f"the data of an event in binary mode must be JSON, not {media_type[:100]!r}")
        return _binary(request.headers.raw, body)
    if media_type not in (SINGLE, BATCH, PLAIN, *LINES):
        raise _unsupported(f"content type {media_type[:100] or '(none)'!r} is not one of {', '.join(SUPPORTED)}")
    if not body.strip():
        raise ApiError(400, "empty_body", "the body is empty: send at least one event")
    if media_type in LINES:
        raws = [stripped for line in body.split(b"\n") if (stripped := line.strip(b" \t\r"))]
        if len(raws) > REQUEST_EVENTS_MAX:
            raise _too_many()
        return Entries(raws)
    if media_type == BATCH or (media_type == PLAIN and body.lstrip()[:1] == b"["):
        return _list(body)
    return Entries([body.strip(b" \t\r\n")])


def _list(body: bytes) -> Entries:
    try:
        body.decode()
        return Entries([bytes(raw) for raw in _raws(body)])
    except UnicodeDecodeError as error:
        return Entries([], Rejected(0, Reason.BAD_ENCODING, f"not UTF-8 at byte {error.start}", body))
    except RecursionError:
        return Entries([], Rejected(0, Reason.TOO_DEEP, "nested too deep", body))
    except msgspec.ValidationError as error:
        if "length" in str(error):
            raise _too_many() from None
        return Entries([], Rejected(0, Reason.NOT_AN_EVENT, "the body of a batch must be a JSON list", body))
    except msgspec.DecodeError as error:
        return Entries([], Rejected(0, Reason.BAD_JSON, str(error)[:200], body))


def _binary(headers: Iterable[tuple[bytes, bytes]], body: bytes) -> Entries:
    """One event in CloudEvents' binary mode (HTTP binding 1.0.2, 3.1): `ce-` headers and a body that is `data`."""
    attributes: dict[str, bytes] = {}
    broken: list[tuple[Rejected, str]] = []
    for header, raw in headers:
        if not header.startswith(_PREFIX):
            continue
        name = header.removeprefix(_PREFIX).decode("latin-1")
        text = decoded(_unquoted(raw))
        if text is not None and name not in attributes:
            attributes[name] = text.encode()
            continue
        problem, remedy = _TWICE if name in attributes else _NOT_ENCODED
        detail = f"{name[:64]}: the header ce-{name[:64]} {problem}"
        broken.append((Rejected(0, Reason.BAD_FIELD, detail, b"%s: %s" % (header, raw)), remedy))
    event_id = attributes["id"].decode() if "id" in attributes else None
    if broken:
        unreadable, remedy = broken[0]
        return Entries([], unreadable, event_id, remedy)
    if (bad_data := _unreadable_data(body)) is not None:
        return Entries([], bad_data, event_id)
    return Entries([structured(attributes.items(), body)])


def _unreadable_data(body: bytes) -> Rejected | None:
    """Why the body is no `data` of an event in binary mode. None if the body is JSON or empty."""
    try:
        body.decode()
        _raw(body or b"null")
    except UnicodeDecodeError as error:
        return Rejected(0, Reason.BAD_ENCODING, f"data: not UTF-8 at byte {error.start}", body)
    except RecursionError:
        return Rejected(0, Reason.TOO_DEEP, "data: nested too deep", body)
    except msgspec.MsgspecError as error:
        if body.strip():
            return Rejected(0, Reason.BAD_JSON, f"data: {str(error)[:200]}", body)
    return None


def _unquoted(value: bytes) -> bytes:
    """A header's value without the double quotes that may surround it (RFC 9110, 5.6.4)."""
    quoted = _QUOTED.fullmatch(value)
    return re.sub(rb"\\(.)", rb"\1", quoted[1]) if quoted else value


def _unsupported(message: str) -> ApiError:
    return ApiError(415, "unsupported_media_type", message, "content-type", {"Accept-Post": ", ".join(SUPPORTED)})


def _too_many() -> ApiError:
    message = f"more than {REQUEST_EVENTS_MAX} events in one request: send them in several"
    return ApiError(413, "too_many_events", message)
