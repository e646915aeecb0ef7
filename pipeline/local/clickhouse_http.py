"""Requests and answers of the ClickHouse server: parameters, content encodings and ClickHouse's errors."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from typing import Final, NamedTuple

import lz4.frame  # type: ignore[import-untyped]  # lz4 ships no types
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response

from pipeline.local.clickhouse_statements import NotAllowed

SERVER_NAME: Final = "tidemark"
COMPRESSION_BYTES_MIN: Final = 1_024

# Parameters that are no settings (clickhouse.com/docs/interfaces/http); they do not reach the engine.
TRANSPORT_PARAMETERS: Final = frozenset({
    "add_http_cors_header", "buffer_size", "cancel_http_readonly_queries_on_client_close", "client_protocol_version",
    "close_session", "compress", "database", "decompress", "default_format", "enable_http_compression",
    "http_headers_progress_interval_ms", "http_write_exception_in_output_format", "network_compression_method",
    "password", "query", "query_id", "quota_key", "role", "send_progress_in_http_headers", "session_check",
    "session_id", "session_timeout", "stacktrace", "user", "wait_end_of_query",
})  # fmt: skip

# From exceptionCodeToHTTPStatus in ClickHouse's src/Server/HTTPHandler.cpp.
_STATUS_BY_CODE: Final[Mapping[int, int]] = {
    47: 404, 46: 404, 60: 404, 81: 404, 115: 400, 62: 400, 36: 400, 164: 403, 497: 403, 516: 403, 48: 501,
    159: 408, 202: 503, 307: 413, 396: 500, 241: 500,
}  # fmt: skip

# Formats of the embedded engine that return Python objects.
_FORMATS_REFUSED: Final = frozenset({"arrowtable", "dataframe", "datastore", "debug"})


class Call(NamedTuple):
    """A request: the statement with its rows, and the options for running and answering it."""

    statement: bytes
    database: str
    default_format: str
    settings: dict[str, str]
    parameters: dict[str, str]


async def read_call(request: Request, body_bytes_max: int) -> Call:
    """Read a request. Raises `NotAllowed` if the request is too large or its encoding is not supported."""
    arguments = dict(request.query_params)
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        body = b""
        await _read_form(request, arguments, body_bytes_max)
    else:
        body = _decoded(await _bounded_body(request, body_bytes_max), request, body_bytes_max)
    query = arguments.get("query", "").rstrip().encode()
    statement = query + (b"\n" if query and body else b"") + body
    if not statement.strip():
        raise NotAllowed(62, "Syntax error: empty query; send it as ?query= or as the body of a POST", "SYNTAX_ERROR")
    default_format = arguments.get("default_format") or request.headers.get("x-clickhouse-format") or "TabSeparated"
    if not default_format.isalnum() or default_format.lower() in _FORMATS_REFUSED:
        raise NotAllowed(73, f"Unknown format {default_format}", "UNKNOWN_FORMAT")
    database = arguments.get("database") or request.headers.get("x-clickhouse-database") or "default"
    parameters = {name[6:]: value for name, value in arguments.items() if name.startswith("param_")}
    others = TRANSPORT_PARAMETERS | {f"param_{name}" for name in parameters}
    settings = {name: value for name, value in arguments.items() if name not in others}
    return Call(statement, database, default_format, settings, parameters)


async def _read_form(request: Request, arguments: dict[str, str], body_bytes_max: int) -> None:
    if int(request.headers.get("content-length") or body_bytes_max + 1) > body_bytes_max:
        raise _too_large(body_bytes_max)
    async with request.form(max_files=0, max_fields=1_000, max_part_size=body_bytes_max) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                raise NotAllowed(48, "External tables are not supported here", "NOT_IMPLEMENTED")
            arguments[name] = value


async def _bounded_body(request: Request, body_bytes_max: int) -> bytes:
    if int(request.headers.get("content-length") or 0) > body_bytes_max:
        raise _too_large(body_bytes_max)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > body_bytes_max:
            raise _too_large(body_bytes_max)
        parts.append(part)
    return b"".join(parts)


def _decoded(body: bytes, request: Request, body_bytes_max: int) -> bytes:
    if request.query_params.get("decompress") == "1" or request.query_params.get("compress") == "1":
        raise NotAllowed(48, "Native block compression is not spoken here: use Content-Encoding", "NOT_IMPLEMENTED")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    try:
        if encoding in ("", "identity"):
            return body
        if encoding in ("gzip", "deflate"):
            inflater = zlib.decompressobj(wbits=47 if encoding == "gzip" else 15)
            decoded, whole = inflater.decompress(body, body_bytes_max + 1), inflater.eof
        elif encoding == "lz4":
            unpacker = lz4.frame.LZ4FrameDecompressor()
            decoded, whole = unpacker.decompress(body, body_bytes_max + 1), unpacker.eof
        else:
            raise NotAllowed(48, f"Content-Encoding {encoding} is not spoken here: use lz4 or gzip", "NOT_IMPLEMENTED")
    except (zlib.error, RuntimeError, EOFError) as error:
        raise NotAllowed(354, f"The body is not valid {encoding}", "ZLIB_INFLATE_FAILED") from error
    if len(decoded) > body_bytes_max:
        raise _too_large(body_bytes_max)
    if not whole:
        raise NotAllowed(354, f"The {encoding} body ends early", "ZLIB_INFLATE_FAILED")
    return bytes(decoded)


def encoded(body: bytes, request: Request, headers: dict[str, str]) -> bytes:
    """Compress the body if the client asked for compression, and add the encoding to `headers`."""
    wanted = [part.split(";")[0].strip().lower() for part in request.headers.get("accept-encoding", "").split(",")]
    if request.query_params.get("enable_http_compression") != "1" or len(body) < COMPRESSION_BYTES_MIN:
        return body
    if "lz4" in wanted:
        headers["Content-Encoding"] = "lz4"
        return bytes(lz4.frame.compress(body))
    if "gzip" in wanted:
        headers["Content-Encoding"] = "gzip"
        return gzip.compress(body, compresslevel=1)
    return body


def error_answer(code: int, text: str, query_id: str) -> Response:
    """ClickHouse's error answer: the text, the HTTP status of the code, and the code in a header."""
    headers = {
        "X-ClickHouse-Exception-Code": str(code),
        "X-ClickHouse-Query-Id": query_id,
        "X-ClickHouse-Server-Display-Name": SERVER_NAME,
    }
    status = _STATUS_BY_CODE.get(code, 400 if 0 < code < 100 else 500)
    return Response(text.rstrip() + "\n", status, headers, "text/plain; charset=UTF-8")


def _too_large(body_bytes_max: int) -> NotAllowed:
    return NotAllowed(307, f"The request is larger than {body_bytes_max} bytes: send less at a time", "TOO_MANY_BYTES")
