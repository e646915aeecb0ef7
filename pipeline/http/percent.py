"""Percent-encoding, read strictly: a name that is not what its sender meant is refused, not repaired."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote_to_bytes

_BROKEN: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def decoded(raw: bytes) -> str | None:
    """The text of percent-encoded UTF-8. None if a `%` is not followed by two hexadecimal digits, or the bytes are not
    UTF-8."""
    if _BROKEN.search(raw):
        return None
    try:
        return unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        return None
