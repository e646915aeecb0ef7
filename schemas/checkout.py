"""Stripe's hosted pages: checkout, on which a first payment is made, and the portal, on which a card is replaced.

A session of checkout carries who it is for in its metadata, and so does the subscription that it makes: a session of
another program is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import urlsplit

from schemas.errors import InvalidInput

ACCOUNT_KEY: Final = "tidemark_account"
OPERATION_KEY: Final = "tidemark_operation"
URL_CHARACTERS_MAX: Final = 2048


class StripeSession(NamedTuple):
    """A session of checkout. `status`: `open`, `complete` or `expired`. `url` is "" unless it is open. `account` and
    `operation` are "" of a session that Tidemark did not make, `subscription` and `invoice` until it is complete."""

    id: str
    status: str
    url: str
    expires_ms: int
    account: str = ""
    operation: str = ""
    subscription: str = ""
    invoice: str = ""


class StripeSessions(Protocol):
    """Makes and reads sessions. Every call may raise `Transient`, `Refused` and `InvalidInput`."""

    async def open_sessions(self, customer: str) -> Sequence[StripeSession]:
        """The open sessions of a customer."""
        ...

    async def session(self, identifier: str) -> StripeSession:
        """A session."""
        ...

    async def expire_session(self, identifier: str) -> None:
        """End an open session: nobody can pay there any more. A session that is not open stays as it is."""
        ...

    async def open_checkout(self, params: Mapping[str, Any], key: str) -> StripeSession | None:
        """Make a session. The same key gives the same session within 23 hours; None if Stripe has stored that it failed
        by itself (5xx)."""
        ...

    async def open_portal(self, params: Mapping[str, Any]) -> str:
        """Make a session of the portal; returns the address of its page. It is good for minutes."""
        ...

    async def portal_configuration(self, features: Mapping[str, Any], name: str) -> str:
        """The portal's configuration of a name with these features, which is made if Stripe has none."""
        ...


def check_return_url(url: str) -> None:
    """Raise `InvalidInput` unless a browser can be sent to an address."""
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("https", "http") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good or len(url) > URL_CHARACTERS_MAX or not url.isascii() or any(ord(each) <= 32 for each in url):
        message = "say to which page the customer comes back, such as https://app.example/billing"
        raise InvalidInput("return_url", message)
