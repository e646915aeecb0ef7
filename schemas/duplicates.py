"""Subscriptions that are one too many: two checkouts were completed, and both are billed.

The newer one of a checkout of ours is canceled with a credit, and a person decides on the refund. A subscription that
somebody made otherwise stays as it is, and is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol


class DuplicateState(StrEnum):
    """How far a second subscription has come. The list is closed.

    - `found`: it is to be canceled at Stripe.
    - `refund_proposed`: it is canceled, what was paid for it is a credit, and a person decides on the refund.
    - `foreign`: no checkout of ours made it, so it is left alone; a person decides.
    - `settled`: a person decided, or it has ended and nothing was paid for it.
    """

    FOUND = "found"
    REFUND_PROPOSED = "refund_proposed"
    FOREIGN = "foreign"
    SETTLED = "settled"


class Duplicate(NamedTuple):
    """A subscription beside the older one that is `kept`. `amount_minor`: what was paid for it, and `invoice` the one
    that was paid, 0 and "" before it is canceled."""

    subscription: str
    kept: str
    account: str
    customer: str
    state: DuplicateState
    found_ms: int
    invoice: str = ""
    amount_minor: int = 0
    currency: str = ""
    exponent: int = 2
    settled_by: str = ""
    reason: str = ""
    settled_ms: int | None = None


class DuplicateStore(Protocol):
    """Second subscriptions in SQL. Every call may raise `Transient`; all are repeatable."""

    async def suspects(self, now_ms: int, limit: int) -> Sequence[Duplicate]:
        """Subscriptions to plans that the mirror has beside an older one of the same account, and that are not known;
        as `FOUND`, and not noted yet."""
        ...

    async def note(self, duplicate: Duplicate, now_ms: int) -> None:
        """Note a second subscription, or how far it has come, with an audit row."""
        ...

    async def listed(self, states: Sequence[DuplicateState] = (), limit: int = 100) -> Sequence[Duplicate]:
        """The newest ones, in any state or in these."""
        ...

    async def settle(self, subscription: str, by: str, reason: str, now_ms: int) -> Duplicate:
        """Note that a person decided. Raises `InvalidInput` for an unknown one, and without a reason."""
        ...

    async def counts(self) -> Mapping[DuplicateState, int]:
        """How many there are in each state."""
        ...
