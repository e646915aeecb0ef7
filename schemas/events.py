"""The usage event: CloudEvents 1.0 in JSON.

`UsageEvent` (pydantic) is the contract and explains what is wrong with an event. `EventStruct` (msgspec) is the fast
decoder of the same contract. A property test checks that both accept and reject the same bytes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field

ID_CHARACTERS_MAX = 128
NAME_CHARACTERS_MAX = 256
TIME_CHARACTERS_MAX = 40

# Earlier times are a producer's mistake: no machine metered usage before 1970.
TIME_MIN_US = 0

_Id = Annotated[str, Field(min_length=1, max_length=ID_CHARACTERS_MAX)]
_Name = Annotated[str, Field(min_length=1, max_length=NAME_CHARACTERS_MAX)]
_Time = Annotated[str, Field(min_length=1, max_length=TIME_CHARACTERS_MAX)]


class UsageEvent(BaseModel):
    """One usage event. Extension attributes are allowed and ignored.

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
