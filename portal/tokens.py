"""The signed token of a link: it names one account and the instant at which the link ends.

Whoever has the link has the page; there is no other login. A token is `CONTENT.SIGNATURE` in base64url: the content is
the JSON text of the account and the end, the signature its HMAC-SHA256. Several secrets may be valid at once: the first
one signs, each of them opens, so a secret is replaced by writing the new one above the old one.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from hashlib import sha256
from typing import Final

import msgspec

from schemas.clock import SECOND_MS

# An account has up to 256 characters, each of up to four bytes, or six in JSON.
TOKEN_CHARACTERS_MAX: Final = 4_096
# What the same secret signs for something else is no token.
CUSTOMER: Final = b"tidemark page link 1\n"
FINANCE: Final = b"tidemark finance link 1\n"
OPERATOR: Final = b"tidemark operator link 1\n"


class _Content(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    account: str
    expires_s: int


def signed(account: str, expires_ms: int, secret: str, purpose: bytes = CUSTOMER) -> str:
    """A token for an account that opens its page until `expires_ms`, rounded down to a second. The pages of `FINANCE`
    belong to no account: ""; those of `OPERATOR` name the person who asked for the link."""
    content = _encoded(msgspec.json.encode(_Content(account, expires_ms // SECOND_MS)))
    return f"{content}.{_encoded(_signature(content, secret, purpose))}"


def account_of(token: str, secrets: Sequence[str], now_ms: int, purpose: bytes = CUSTOMER) -> str | None:
    """The account that a token opens. None for a token that has ended, that none of the secrets signed as it is, or
    that is for another purpose."""
    content, _, signature = token.partition(".")
    if len(token) > TOKEN_CHARACTERS_MAX or not token.isascii():
        return None
    # Each one is compared, so that the duration does not show which secret is valid.
    matches = [hmac.compare_digest(_encoded(_signature(content, secret, purpose)), signature) for secret in secrets]
    if not any(matches):
        return None
    try:
        found = msgspec.json.decode(urlsafe_b64decode(content + "=" * (-len(content) % 4)), type=_Content)
    except (ValueError, msgspec.MsgspecError):
        return None
    return found.account if now_ms < found.expires_s * SECOND_MS else None


def _signature(content: str, secret: str, purpose: bytes) -> bytes:
    return hmac.new(secret.encode(), purpose + content.encode(), sha256).digest()


def _encoded(content: bytes) -> str:
    return urlsafe_b64encode(content).decode().rstrip("=")
