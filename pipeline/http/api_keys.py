"""API keys, which limit who may write and read (I12), and the file of keys that need no database.

A key's text is `tm_<id>_<secret>`, wherever it is kept. A plain BLAKE2b hash is enough, because nobody can guess the
secret's 256 random bits. The file has hashes only, in one JSON object per line: `id`, `role`, `hash`, `created`, and
where they are set `account`, `expires_ms` and `events_per_s`. `pipeline/http/known_keys.py` has the keys in SQL.
"""

from __future__ import annotations

import fcntl
import hmac
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from hashlib import blake2b
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aggregators.instants import format_instant_ms
from pipeline.http.watched_file import WatchedFile
from schemas.clock import DAY_MS, Clock
from schemas.errors import InvalidInput
from schemas.events import NAME_CHARACTERS_MAX
from schemas.keys import KEYS_MAX

FILE_BYTES_MAX: Final = 8 * 1024 * 1024
SECRET_BYTES: Final = 32

_KEY: Final = re.compile(r"tm_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_NOBODY: Final = "0" * 64


class Role(StrEnum):
    """What a key may do: send events, read usage, ask for access and take holds, change plans, grant things to
    accounts, read revenue, or everything."""

    INGEST = "ingest"
    READ = "read"
    CHECK = "check"
    BILLING = "billing"
    OPERATOR = "operator"
    FINANCE = "finance"
    ADMIN = "admin"


class ApiKey(BaseModel):
    """One stored key. A key with an `account` may write and read that account only. From `expires_ms`
    on the key is not valid. `events_per_s`: how many events it may send to one gateway process."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    role: Role
    account: str | None = Field(default=None, min_length=1, max_length=NAME_CHARACTERS_MAX)
    hash: str = Field(pattern=r"^[0-9a-f]{64}$")
    created: str
    expires_ms: int | None = None
    events_per_s: int | None = Field(default=None, ge=1)

    def may(self, *roles: Role) -> bool:
        """Whether the key has one of the roles. `admin` has every role."""
        return self.role in (*roles, Role.ADMIN)

    def reaches(self, account: str) -> bool:
        """Whether the key may write and read the account."""
        return self.account is None or self.account == account


class Keys(Protocol):
    """Verifies the key of a request."""

    def verify(self, key: str) -> ApiKey | None:
        """The stored key with this text, or None. Compares in constant time. May read a file."""
        ...


class KeyFile:
    """The keys of a file, which is read again after a change. A missing file has no keys."""

    def __init__(self, path: Path) -> None:
        """Raises `InvalidInput` if the file is unreadable or malformed."""
        self._file = WatchedFile("TIDEMARK_API_KEYS", path, load_keys)

    @property
    def problem(self) -> str:
        """Why the file's present content is not in force. "" if it is."""
        return self._file.problem

    def verify(self, key: str) -> ApiKey | None:
        return proven(key, self._file.content())


def id_of(key: str) -> str:
    """The id in a key's text; "" if the text is no key's."""
    shape = _KEY.fullmatch(key)
    return shape[1] if shape else ""


def proven(key: str, keys: Mapping[str, ApiKey]) -> ApiKey | None:
    """The stored key with this text, or None."""
    shape = _KEY.fullmatch(key)
    stored = keys.get(shape[1]) if shape else None
    # An unknown id is compared too, so that the duration does not show whether an id exists.
    is_proved = hmac.compare_digest(_hash(shape[2] if shape else ""), stored.hash if stored else _NOBODY)
    return stored if is_proved else None


class NewKey(NamedTuple):
    """A new key: its text, which is stored nowhere, its id, and the hash of its secret part."""

    text: str
    id: str
    hash: str


def new_key() -> NewKey:
    """A key that nobody can guess."""
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(SECRET_BYTES)
    return NewKey(f"tm_{key_id}_{secret}", key_id, _hash(secret))


def check_account(account: str | None) -> None:
    """Raise `InvalidInput` for an account of a key that no event can have."""
    if account is not None and not 1 <= len(account) <= NAME_CHARACTERS_MAX:
        raise InvalidInput("account", f"must have 1 to {NAME_CHARACTERS_MAX} characters")


def load_keys(path: Path) -> dict[str, ApiKey]:
    """The keys by id. Empty if the file is missing. Raises `InvalidInput` with the number of a malformed line."""
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InvalidInput("api_keys", f"{path} cannot be read: {error.strerror}") from error
    keys: dict[str, ApiKey] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            key = ApiKey.model_validate_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise InvalidInput("api_keys", f"{path}, line {number}: {first['loc']}: {first['msg']}") from error
        keys[key.id] = key
    if len(content) > FILE_BYTES_MAX or len(keys) > KEYS_MAX:
        raise InvalidInput("api_keys", f"{path} holds more than {KEYS_MAX} keys: revoke those not used any more")
    return keys


def create_key(
    path: Path, role: Role, clock: Clock, account: str | None = None, *, valid_days: int | None = None,
    events_per_s: int | None = None,
) -> tuple[str, ApiKey]:  # fmt: skip
    """Create a key and add its hash to the file. Return the key's text, which is stored nowhere, and the stored key.

    Creates a missing file with mode 0600. Other processes may change the file at the same time. Raises `InvalidInput`
    if the account or the file is invalid.
    """
    check_account(account)
    made, now_ms = new_key(), clock.now_ms()
    key = ApiKey(
        id=made.id, role=role, account=account, hash=made.hash, created=format_instant_ms(now_ms),
        expires_ms=None if valid_days is None else now_ms + valid_days * DAY_MS, events_per_s=events_per_s,
    )  # fmt: skip
    with _changing(path) as keys:
        if len(keys) >= KEYS_MAX:
            raise InvalidInput("api_keys", f"{path} holds {KEYS_MAX} keys: revoke those not used any more")
        keys[key.id] = key
    return made.text, key


def revoke_key(path: Path, key_id: str) -> ApiKey:
    """Remove a key from the file. Gateways refuse the key from then on. Raises `InvalidInput` for an unknown id."""
    with _changing(path) as keys:
        if key_id not in keys:
            raise InvalidInput("id", f"no key {key_id!r} in {path}; the ids are: {', '.join(keys) or '(none)'}")
        return keys.pop(key_id)


@contextmanager
def _changing(path: Path) -> Iterator[dict[str, ApiKey]]:
    """Lock the file, yield its keys for changes, and then replace the file as a whole, so no reader sees a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path.with_name(path.name + ".lock"), os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        keys = load_keys(path)
        yield keys
        new = path.with_name(path.name + ".new")
        descriptor = os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.writelines(
                json.dumps(key.model_dump(mode="json", exclude_defaults=True)) + "\n" for key in keys.values()
            )
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        os.close(lock)


def _hash(secret: str) -> str:
    return blake2b(secret.encode(), digest_size=32, person=b"tidemark api key").hexdigest()
