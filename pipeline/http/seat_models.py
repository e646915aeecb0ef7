"""The bodies of the paths that give seats and take them back."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.http.models import Answer, Instant
from schemas.events import NAME_CHARACTERS_MAX


class SeatBodyWish(Answer):
    """A holder who is to have a seat."""

    feature: str = Field(description="A feature of type seat.")
    holder: str = Field(
        min_length=1,
        max_length=NAME_CHARACTERS_MAX,
        description="Your own id of the user or location, of 1 to 256 characters; no name of a person.",
    )
    reserve: bool = Field(default=False, description="Reserve the seat for an invitation, until that expires.")
    by: str = Field(default="", description="Who asks, for the audit, which names the key too.")


class SeatMoveWish(Answer):
    """Who activates or releases a seat."""

    by: str = Field(default="", description="For the audit, which names the key too.")


class SeatAnswer(Answer):
    """A seat and its holder."""

    id: str
    account: str
    feature: str
    holder: str
    state: Literal["reserved", "active", "released"]
    made_at: Instant
    changed_at: Instant
    expires_at: Instant | None = Field(description="When the reservation ends; null if the seat is none.")


class SeatStandingAnswer(Answer):
    """The seats of one feature."""

    feature: str
    held: int = Field(description="Reserved and active seats together: these are paid.")
    reserved: int
    active: int
    allowed: str = Field(description="How many the account is allowed now: a number, or `unlimited`.")
    quantity: int = Field(description="The quantity that the subscription has, as the mirror saw it last; 0 without.")
    can_grow: bool = Field(description="More are given than are allowed now, and paid, because they are sold singly.")


class SeatsAnswer(Answer):
    """The seats of an account that are held."""

    account: str
    features: list[SeatStandingAnswer]
    seats: list[SeatAnswer]
    next_cursor: str | None = Field(default=None, description="Absent on the last page.")
