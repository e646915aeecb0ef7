"""API keys in SQL: who may use the gateway, until when, and what replaces a key. The secret part is stored nowhere."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple, Protocol

# So many keys may be valid at once. A gateway has all of them in memory.
KEYS_MAX: Final = 10_000
# The entity of a key's rows in the audit of no account.
KEY_ENTITY: Final = "api_key"


class StoredKey(NamedTuple):
    """A key. Instants are ms UTC.

    `hash` is that of the secret part. `account` is "" if the key reaches every account. `events_per_s` limits what one
    gateway process takes; None is no limit. `successor` is the id of the key that replaces this one, or "". `used_ms`
    is the start of the last UTC day on which a gateway saw the key.
    """

    id: str
    hash: str
    role: str
    account: str = ""
    events_per_s: int | None = None
    created_ms: int = 0
    created_by: str = ""
    note: str = ""
    expires_ms: int | None = None
    revoked_ms: int | None = None
    successor: str = ""
    used_ms: int | None = None

    def is_valid(self, now_ms: int) -> bool:
        """Whether the key is neither revoked nor expired."""
        return self.revoked_ms is None and (self.expires_ms is None or now_ms < self.expires_ms)


class ValidKeys(NamedTuple):
    """All keys that were valid at an instant. `version` changes with every change of a key."""

    version: int
    keys: Sequence[StoredKey]


class KeyStore(Protocol):
    """The keys. Every change is audited in the same transaction. Every call may raise `Transient`."""

    async def add(self, key: StoredKey) -> None:
        """Add a key. Raises `InvalidInput` if there are `KEYS_MAX` valid ones, or a text cannot be kept."""
        ...

    async def rotate(self, key_id: str, successor: StoredKey, ends_ms: int) -> StoredKey:
        """Add a key that replaces another one, which ends at `ends_ms` if it does not end before; return that one.

        Both are in one transaction, and the actor is who created the successor. Raises `InvalidInput` if the key is
        unknown, revoked or replaced already, and as `add`.
        """
        ...

    async def revoke(self, key_id: str, actor: str, reason: str, now_ms: int) -> StoredKey:
        """Revoke a key. A key that is revoked already stays as it is. Raises `InvalidInput` for an unknown key."""
        ...

    async def key(self, key_id: str) -> StoredKey | None:
        """A key, valid or not."""
        ...

    async def listed(self, limit: int) -> Sequence[StoredKey]:
        """The newest keys, valid or not, oldest first."""
        ...

    async def known(self, now_ms: int, version: int | None) -> ValidKeys | None:
        """The valid keys; None if they are still those of `version`, apart from what has expired since."""
        ...

    async def used(self, key_ids: Collection[str], day_ms: int) -> None:
        """Note that gateways saw the keys on a day. A day before the noted one changes nothing. Not audited."""
        ...
