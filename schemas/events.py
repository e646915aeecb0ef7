"""The usage event: CloudEvents 1.0 in JSON.

`UsageEvent` (pydantic) is the contract and explains what is wrong with an event. `EventStruct` (msgspec) is the fast
decoder of the same contract. A property test checks that both accept and reject the same bytes.
"""

from __future__ import annotations

import base64
import re
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Final, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from schemas.errors import InvalidInput

ID_CHARACTERS_MAX = 128
NAME_CHARACTERS_MAX = 256
TIME_CHARACTERS_MAX = 40
BOTH_PAYLOADS = "an event has `data` or `data_base64`, not both"

# NUL, and halves of surrogate pairs.
_NOT_IN_NAMES: Final = re.compile("[\0\ud800-\udfff]")

# Earlier times are a producer's mistake: no machine metered usage before 1970.
TIME_MIN_US = 0

_Id = Annotated[str, Field(min_length=1, max_length=ID_CHARACTERS_MAX)]
_Name = Annotated[str, Field(min_length=1, max_length=NAME_CHARACTERS_MAX)]
_Time = Annotated[str, Field(min_length=1, max_length=TIME_CHARACTERS_MAX, json_schema_extra={"format": "date-time"})]


def check_account(account: str) -> None:
    """Raise `InvalidInput` for a name that no account can have in the side tables."""
    if not 1 <= len(account) <= NAME_CHARACTERS_MAX:
        message = f"an account's name has 1 to {NAME_CHARACTERS_MAX} characters, this has {len(account)}"
        raise InvalidInput("account", message)
    if _NOT_IN_NAMES.search(account):
        raise InvalidInput("account", "an account's name has no NUL and no half of a surrogate pair")


class UsageEvent(BaseModel):
    """One usage event. Extension attributes are allowed and ignored.

    `data_base64` is the base64 of a JSON object, which is then the data.

    `id` identifies the event within its account (`subject`): a UUID, or any other text of up to 128
    characters, compared character by character. `time` is RFC 3339 with an offset; it is cut to microseconds. The time
    of an event without `time` is its arrival in the log: the stream time at its record in `usage.events`. `time` and
    `data` may be null, which means the same as absent.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    specversion: Literal["1.0"]
    id: _Id
    source: _Name
    type: _Name
    subject: _Name
    time: _Time | None = None
    data: dict[str, Any] | None = None
    data_base64: str | None = None

    @field_validator("data_base64")
    @classmethod
    def _payload_is_an_object(cls, value: str | None, info: ValidationInfo) -> str | None:
        problem = ""
        try:
            if value and info.data.get("data"):
                problem = BOTH_PAYLOADS
            elif value:
                object_of(payload_of(value))
        except RecursionError:
            # The decoder limits the levels; here the result would depend on the caller's stack.
            pass
        except ValueError as error:
            problem = str(error)
        if problem:
            raise PydanticCustomError("payload", "{problem}", {"problem": problem})
        return value


_StructId = Annotated[str, msgspec.Meta(min_length=1, max_length=ID_CHARACTERS_MAX)]
_StructName = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_CHARACTERS_MAX)]
_StructTime = Annotated[str, msgspec.Meta(min_length=1, max_length=TIME_CHARACTERS_MAX)]


class EventStruct(msgspec.Struct, gc=False, frozen=True):
    """The same event for the hot path; numbers with a fraction in `data` arrive as Decimal, never float."""

    specversion: Literal["1.0"]
    id: _StructId
    source: _StructName
    type: _StructName
    subject: _StructName
    time: _StructTime | None = None
    data: dict[str, Any] | None = None
    data_base64: str | None = None


_any_object: Final = msgspec.json.Decoder(dict[str, Any], float_hook=Decimal).decode


def payload_of(data_base64: str) -> bytes:
    """The bytes of `data_base64`. Raises `ValueError` if the text is not base64 (RFC 4648, 4)."""
    try:
        return base64.b64decode(data_base64, validate=True)
    except ValueError:
        raise ValueError("must be base64 (RFC 4648, section 4)") from None


def object_of(payload: bytes) -> dict[str, Any]:
    """The JSON object in the bytes of `data_base64`. Raises `ValueError` if the bytes are something else, and
    `RecursionError` if they are nested too deep for the caller's stack."""
    try:
        payload.decode()
        return _any_object(payload)
    except (msgspec.MsgspecError, InvalidOperation, UnicodeDecodeError):
        raise ValueError("must be the base64 of a JSON object: quantities are read from JSON") from None
