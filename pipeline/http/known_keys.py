"""The API keys in SQL, as a gateway knows them: all valid ones, in memory, read again and again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from typing import Final

from pydantic import ValidationError

from aggregators.instants import format_instant_ms
from pipeline.http.api_keys import ApiKey, id_of, proven
from pipeline.http.errors import ApiError, retry_after
from schemas.clock import DAY_MS, HOUR_MS, Clock
from schemas.errors import TidemarkError, Transient
from schemas.keys import KeyStore, StoredKey

REFRESH_INTERVAL_S: Final = 1.0
# Requests with unknown keys make reads, which forged keys must not make without end.
PAUSE_S: Final = 0.1
# How long a request with an unknown key waits for a read that begins after the request.
ANSWER_TIMEOUT_S: Final = 3.0
# How long the known keys go on while PostgreSQL does not answer.
TRUSTED_MS: Final = 24 * HOUR_MS
ENDING_MS: Final = 14 * DAY_MS

_log: Final = logging.getLogger(__name__)


class KnownKeys:
    """The keys of a store. A key that is not among them is looked for at once, before anybody is refused."""

    def __init__(
        self, store: Callable[[], KeyStore | None], clock: Clock, on_read: Callable[[int], None] = lambda _: None
    ) -> None:
        """`store` gives None while it is not open. `on_read` gets the number of keys that end soon, after each read
        that the store answered."""
        self._store = store
        self._clock = clock
        self._on_read = on_read
        self._stored: dict[str, StoredKey] = {}
        self._keys: dict[str, ApiKey] = {}
        self._version: int | None = None
        self._read_ms: int | None = None
        self._failure = ""
        self._seen: set[str] = set()
        self._asked = asyncio.Event()
        # Whether the store answers the read that begins next.
        self._next: asyncio.Future[bool] | None = None

    async def verify(self, key: str) -> ApiKey | None:
        """The stored key with this text, or None. Waits for up to `ANSWER_TIMEOUT_S` if its id is not known.

        Raises `ApiError` 503 if PostgreSQL does not answer for an unknown key, or has not answered for `TRUSTED_MS`.
        """
        key_id = id_of(key)
        if not key_id:
            return None
        if key_id not in self._keys and not await self._read_again():
            raise self._away("the key is not known to this gateway yet, and PostgreSQL does not answer")
        now_ms = self._clock.now_ms()
        if self._read_ms is None or now_ms - self._read_ms > TRUSTED_MS:
            raise self._away(f"PostgreSQL has not answered for {TRUSTED_MS // HOUR_MS} hours")
        found = proven(key, self._keys)
        if found is not None and (self._stored[key_id].used_ms or 0) < now_ms // DAY_MS * DAY_MS:
            self._seen.add(key_id)
        return found

    async def run(self) -> None:
        """Read the keys again and again, for ever."""
        while True:
            await self.read()
            await asyncio.sleep(PAUSE_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_INTERVAL_S - PAUSE_S):
                    await self._asked.wait()

    async def read(self) -> None:
        """Read the keys once, if they changed, and note which were used. After a failure, which is logged once, the
        keys stay."""
        self._asked.clear()
        waiting, self._next = self._next, None
        failure = "the read was cancelled"
        try:
            await self._turn()
            failure = ""
        # Any error, such as a table that a newer version changed: the gateway must go on with the keys it knows.
        except Exception as error:  # noqa: BLE001
            failure = str(error) or type(error).__name__
            if failure != self._failure:
                level = logging.WARNING if isinstance(error, TidemarkError) else logging.ERROR
                _log.log(level, "API keys cannot be read, the known ones go on: %s", error)
        finally:
            self._failure = failure
            if waiting is not None and not waiting.done():
                waiting.set_result(not failure)

    async def _turn(self) -> None:
        store, now_ms = self._store(), self._clock.now_ms()
        if store is None:
            raise Transient("PostgreSQL has not answered yet")
        known = await store.known(now_ms, self._version)
        if known is not None:
            self._stored = {key.id: key for key in known.keys}
            self._keys = dict(_usable(known.keys))
            self._version = known.version
        self._read_ms = now_ms
        self._on_read(ending(self._stored.values(), now_ms))
        await self._note_used(store, now_ms // DAY_MS * DAY_MS)

    async def _note_used(self, store: KeyStore, day_ms: int) -> None:
        seen, self._seen = self._seen & self._stored.keys(), set()
        if seen:
            await store.used(seen, day_ms)
            for key_id in seen:
                self._stored[key_id] = self._stored[key_id]._replace(used_ms=day_ms)

    async def _read_again(self) -> bool:
        """Whether the store answers a read that begins now."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        self._asked.set()
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await asyncio.shield(self._next)
        except TimeoutError:
            return False

    def _away(self, why: str) -> ApiError:
        return ApiError(503, "unavailable", f"{why}: send the request again later", headers=retry_after(1.0))


def ending(keys: Iterable[StoredKey], now_ms: int) -> int:
    """How many valid keys end within `ENDING_MS` and have no successor."""
    return sum(
        key.is_valid(now_ms)
        and not key.successor
        and key.expires_ms is not None
        and key.expires_ms - now_ms < ENDING_MS
        for key in keys
    )


def _usable(keys: Iterable[StoredKey]) -> Iterable[tuple[str, ApiKey]]:
    """The keys of roles that this version knows."""
    for key in keys:
        try:
            yield key.id, ApiKey.model_validate({
                "id": key.id, "role": key.role, "account": key.account or None, "hash": key.hash,
                "created": format_instant_ms(key.created_ms), "expires_ms": key.expires_ms,
                "events_per_s": key.events_per_s,
            })  # fmt: skip
        except ValidationError:
            _log.warning("the API key %s is not of this version of Tidemark, and opens nothing", key.id)
