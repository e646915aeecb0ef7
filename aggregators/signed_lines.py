"""A file of JSON lines in which each line has a keyed hash of itself and of the line before.

Without the key nobody can change, add, leave out or move a line unseen. The key of a file is made of the deployment's
secret and the file's salt, so that the key of one file can be shown to an arbiter without the secret.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final

import msgspec

_PURPOSE: Final = b"tidemark explanation 1\n"
_MAC_BYTES: Final = 16
_TAIL: Final = re.compile(rb',"mac":"([0-9a-f]{32})"\}\n\Z')
_encode: Final = msgspec.json.Encoder(order="sorted").encode


def file_key(secret: bytes, salt: str) -> bytes:
    """The key of a file."""
    return hmac.new(secret, _PURPOSE + salt.encode(), sha256).digest()


class LineSigner:
    """Writes the lines of one file, in order."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._last = b""

    def line(self, document: Mapping[str, Any]) -> bytes:
        """A JSON object, which has a member at least, as a signed line."""
        content = _encode(document)
        self._last = _mac(self._key, self._last, content)
        return content[:-1] + b',"mac":"' + self._last + b'"}\n'


class LineVerifier:
    """Reads the lines of one file, in order."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._last = b""

    def holds(self, line: bytes) -> bool:
        """Whether a line is as it was written, behind the line before. A changed line does not make the next one
        wrong; a missing line does."""
        tail = _TAIL.search(line)
        if tail is None:
            return False
        content, mac = line[: tail.start()] + b"}", tail[1]
        expected = _mac(self._key, self._last, content)
        self._last = mac
        return hmac.compare_digest(expected, mac)


def _mac(key: bytes, last: bytes, content: bytes) -> bytes:
    return hmac.new(key, last + b"\n" + content, sha256).digest()[:_MAC_BYTES].hex().encode()
