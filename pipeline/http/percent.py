"""Percent-encoding, read strictly: a name that is not what its sender meant is refused, not repaired."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote_to_bytes

# Stands for a slash of a name while a path is routed. UTF-8 has no lone surrogate, so no name has this character.
SLASH: Final = "\udc2f"
_BROKEN: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def routed(raw_path: bytes) -> str | None:
    """The text of a path, in which an encoded slash is `SLASH`: `a%2Fusage` is one name, and `a/usage` a name and a
    word. None if the path is not percent-encoded UTF-8."""
    parts = [decoded(part) for part in raw_path.split(b"/")]
    return None if None in parts else "/".join(part.replace("/", SLASH) for part in parts if part is not None)


def decoded(raw: bytes) -> str | None:
    """The text of percent-encoded UTF-8. None if a `%` is not followed by two hexadecimal digits, or the bytes are not
    UTF-8."""
    if _BROKEN.search(raw):
        return None
    try:
        return unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        return None
