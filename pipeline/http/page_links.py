"""`POST /v1/accounts/{account}/page`: a signed link to the page of one account, for the account's own users."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, NamedTuple
from urllib.parse import quote

import msgspec
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from aggregators.instants import format_instant_ms
from pipeline.http.body import Bodies
from pipeline.http.dependencies import Billing, GatewayDependencies
from pipeline.http.errors import ApiError, json_answer
from pipeline.http.models import Answer, Instant
from pipeline.http.queries import AccountInPath
from pipeline.http.watched_file import WatchedFile, load_lines
from pipeline.settings import Settings
from portal.tokens import signed
from schemas.clock import DAY_MS, SECOND_MS
from schemas.errors import InvalidInput
from schemas.events import check_account

BODY_BYTES_MAX: Final = 16 * 1024
LIFE_S: Final = 3_600
LIFE_S_MIN: Final = 60
LIFE_S_MAX: Final = 30 * DAY_MS // SECOND_MS
_SECRET: Final = re.compile(r"[!-\"$-~]{32,256}")


class PageWish(Answer):
    """For how long a link opens the page."""

    expires_in_s: Annotated[int, Field(ge=LIFE_S_MIN, le=LIFE_S_MAX)] = Field(
        default=LIFE_S, description="Seconds until the link ends, up to 30 days."
    )


class PageAnswer(Answer):
    """A signed link. Whoever has it sees the account's page and can change its plan until it ends."""

    account: str
    url: str
    expires_at: Instant


class _Body(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    expires_in_s: int = LIFE_S


class PageLink(NamedTuple):
    """A link, and when it ends."""

    url: str
    expires_ms: int


def load_page_secrets(path: Path) -> tuple[str, ...]:
    """The secrets of a file, the first of which signs. Raises `InvalidInput` for a malformed line."""
    what = "a secret has 32 to 256 characters without spaces and #: make one with `openssl rand -hex 32`"
    return load_lines(path, "page_secrets", _SECRET, what)


class PageSecrets:
    """The secrets of the settings, read again after a change of their file."""

    def __init__(self, settings: Settings) -> None:
        """Raises `InvalidInput` if the file is unreadable or malformed."""
        path = settings.page_secrets
        self._file = WatchedFile("TIDEMARK_PAGE_SECRETS", path, load_page_secrets) if path else None

    def __call__(self) -> Sequence[str]:
        """The secrets; none if no file is set."""
        return self._file.content() if self._file else ()


def page_link(settings: Settings, secrets: Sequence[str], account: str, life_s: int, now_ms: int) -> PageLink:
    """A link to the page of an account. Raises `InvalidInput` with the setting that is missing, or the wrong field."""
    check_account(account)
    address, expires_ms = signing(settings, secrets, life_s, now_ms)
    return PageLink(f"{address}/page/{quote(signed(account, expires_ms, secrets[0]))}/", expires_ms)


def signing(settings: Settings, secrets: Sequence[str], life_s: int, now_ms: int) -> tuple[str, int]:
    """The address before a link's path, and when the link ends. Raises `InvalidInput` as `page_link`."""
    if not LIFE_S_MIN <= life_s <= LIFE_S_MAX:
        raise InvalidInput("expires_in_s", f"must be from {LIFE_S_MIN} to {LIFE_S_MAX}")
    if not settings.page_url:
        raise InvalidInput("TIDEMARK_PAGE_URL", "is not set; name the address at which customers reach the gateway")
    if not secrets:
        raise InvalidInput("TIDEMARK_PAGE_SECRETS", "names no secret; write one with `openssl rand -hex 32`")
    return settings.page_url.rstrip("/"), now_ms - now_ms % SECOND_MS + life_s * SECOND_MS


class PageLinkEndpoint:
    """The handler. An app has one object."""

    def __init__(self, dependencies: GatewayDependencies, secrets: PageSecrets) -> None:
        self._dependencies = dependencies
        self._secrets = secrets
        self._bodies = Bodies(BODY_BYTES_MAX)

    async def make(self, request: Request, account: AccountInPath, _key: Billing) -> Response:
        """Make a link. Changes nothing: a link ends at its time, and cannot be taken back but by another secret."""
        settings = self._dependencies.settings
        if settings.page_secrets is None or not settings.page_url:
            message = "this gateway shows no pages: set TIDEMARK_PAGE_URL and TIDEMARK_PAGE_SECRETS"
            raise ApiError(501, "not_configured", message)
        async with self._bodies.read(request) as body:
            life_s = life_of(body)
        now_ms = self._dependencies.clock.now_ms()
        made = page_link(settings, self._secrets(), account, life_s, now_ms)
        return json_answer(
            PageAnswer(account=account, url=made.url, expires_at=format_instant_ms(made.expires_ms)), 201
        )


def life_of(body: bytes) -> int:
    """The seconds that a body asks for, or the usual ones. Raises `ApiError`."""
    if not body.strip():
        return LIFE_S
    try:
        return msgspec.json.decode(body, type=_Body).expires_in_s
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        message = f'{str(error)[:200]}; send {{"expires_in_s": 3600}}, or nothing'
        raise ApiError(400, "invalid_input", message) from None
