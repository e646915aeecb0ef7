"""Delivers notices by HTTP as Standard Webhooks says: github.com/standard-webhooks/standard-webhooks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

import httpx

from aggregators.notices import signature
from schemas.errors import Transient
from schemas.notices import Notice

TIMEOUT_S: Final = 15.0


class WebhookChannel:
    """Posts notices to one address. Any answer 2xx means that the receiver has the notice; its body is not read.

    `keys` returns the signing keys, asked at each attempt. `now_s` is the receiver's time, not that of a simulation.
    """

    def __init__(self, url: str, keys: Callable[[], Sequence[bytes]], now_s: Callable[[], int]) -> None:
        self._url = url
        self._keys = keys
        self._now_s = now_s
        # A redirect is not followed: what is signed for one receiver goes to no other.
        self._client = httpx.AsyncClient(
            timeout=TIMEOUT_S, follow_redirects=False, headers={"user-agent": "tidemark", "accept": "*/*"}
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def send(self, notice: Notice) -> bool:
        """See `schemas.notices.Channel`."""
        keys = self._keys()
        if not keys:
            raise Transient("TIDEMARK_NOTICES_WEBHOOK_SECRETS has no secret, so nothing can be signed")
        body, now_s = notice.body.encode(), self._now_s()
        headers = {
            "content-type": "application/json",
            "webhook-id": notice.id,
            "webhook-timestamp": str(now_s),
            "webhook-signature": signature(notice.id, now_s, body, keys),
        }
        try:
            # The timeout of the client is for each step; a receiver may take many.
            async with asyncio.timeout(TIMEOUT_S):
                async with self._client.stream("POST", self._url, content=body, headers=headers) as answer:
                    status = answer.status_code
        except TimeoutError as error:
            raise Transient(f"the webhook did not answer in {TIMEOUT_S:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            raise Transient(f"the webhook cannot be called: {error or type(error).__name__}") from error
        if not 200 <= status < 300:
            raise Transient(f"the webhook answered {status}")
        return True
