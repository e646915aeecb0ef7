"""CloudEvents' binary mode: headers carry an event's attributes, and the body is its `data` as JSON.

The gateway (HTTP binding, 3.1) and the inbox (Kafka binding, 3.2) share these rules.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Final

import msgspec

_ATTRIBUTE: Final = re.compile(r"[a-z0-9]{1,64}")
# The body is the data, and the content type says what the body is.
_NO_ATTRIBUTES: Final = frozenset({"data", "datacontenttype"})

_value: Final = msgspec.json.Decoder(msgspec.Raw).decode


def structured(headers: Iterable[tuple[str, bytes]], body: bytes) -> bytes:
    """The event as one JSON object. `headers` are attributes without prefix, in UTF-8. An empty body is no data.

    The decoder rejects an event that cannot be built: bytes that are not UTF-8 stay, an attribute that was sent twice
    becomes a list, and a body that is not one JSON value becomes text.
    """
    attributes: dict[str, str | list[str]] = {}
    for name, raw in headers:
        text = raw.decode("utf-8", "surrogateescape")
        if not _ATTRIBUTE.fullmatch(name) or name in _NO_ATTRIBUTES:
            continue
        before = attributes.get(name)
        attributes[name] = text if before is None else [*([before] if isinstance(before, str) else before), text]
    head = _json(attributes)
    if not body.strip():
        return head
    try:
        body.decode()
        data = bytes(_value(body))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        data = _json(body.decode("utf-8", "surrogateescape"))
    return head[:-1] + (b"," if attributes else b"") + b'"data":' + data + b"}"


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogateescape")
