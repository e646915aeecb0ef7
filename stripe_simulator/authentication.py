"""API keys (docs.stripe.com/api/authentication)."""

from __future__ import annotations

import base64
import re
from typing import Final

from stripe_simulator.errors import unauthorized

_KEY: Final = re.compile(r"^(sk|rk)_(test|live)_[A-Za-z0-9_]{1,200}$")


def livemode_of(authorization: str, keys: frozenset[str] | None) -> bool:
    """The mode of the key in an `Authorization` header, as a bearer token or a basic user name.

    `keys` are the valid keys; None accepts every well-formed key. Raises `ApiError` (401).
    """
    scheme, _, key = authorization.partition(" ")
    if scheme.lower() == "basic":
        try:
            key = base64.b64decode(key, validate=True).decode("ascii").partition(":")[0]
        except ValueError:
            key = ""
    elif scheme.lower() != "bearer":
        key = ""
    if not key:
        raise unauthorized("You did not provide an API key.")
    match = _KEY.match(key)
    if match is None or (keys is not None and key not in keys):
        raise unauthorized(f"Invalid API Key provided: {key[:8]}****")
    return match[2] == "live"
