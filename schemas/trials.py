"""Trials: who has one, and by which keys nobody gets a second one.

A key is an account, a customer, an e-mail address or a card, as a keyed hash, and is taken once in a family of plans.
The keys are taken in the transaction that intends the trial, before anything is asked of Stripe; the card's key follows
as soon as the card is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple, Protocol

from schemas.clock import DAY_MS

# Keys are kept for two years; then the same person may try again.
KEYS_KEPT_MS: Final = 730 * DAY_MS


class TrialState(StrEnum):
    """How far a trial has come. The list is closed.

    - `reserved`: its keys are taken, and nobody has begun it.
    - `running`: a subscription is in it.
    - `ending`: its card or its mailbox had a trial before, and Stripe is asked to end it.
    - `refused`: it was ended for that.
    - `converted`: it was followed by a plan that is paid.
    - `expired`: it was not.
    - `released`: it was never begun, and its keys are free.
    """

    RESERVED = "reserved"
    RUNNING = "running"
    ENDING = "ending"
    REFUSED = "refused"
    CONVERTED = "converted"
    EXPIRED = "expired"
    RELEASED = "released"


class TrialTerms(NamedTuple):
    """What the catalog says of the trial of a plan. `no_card`: what follows without a card, `card`: what with one.
    `repeated_card`: what becomes of a trial of which the checkout shows that its card or mailbox had one before."""

    plan: str
    family: str
    days: int
    once_per: tuple[str, ...] = ("account", "email", "card")
    no_card: str = "free"
    card: str = "convert"
    is_card_required: bool = False
    repeated_card: str = "end"


class Trial(NamedTuple):
    """One trial. `look_ms`: when it is looked at without being asked to, None if never. `is_flagged`: its card or
    its mailbox had a trial before, and the catalog lets it run. `session`: of checkout, "" without one."""

    id: str
    account: str
    customer: str
    operation: str
    terms: TrialTerms
    state: TrialState
    made_ms: int
    look_ms: int | None = None
    session: str = ""
    subscription: str = ""
    ends_ms: int | None = None
    is_flagged: bool = False


class TrialWish(NamedTuple):
    """A trial that is to be reserved, with the hashes of its keys by kind."""

    terms: TrialTerms
    customer: str
    keys: Mapping[str, str]


class TrialTaken(Exception):
    """A key of a trial is taken. `kind`: of the key."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class Begun(NamedTuple):
    """A trial at Stripe. `card`: the fingerprint of its card; `email`: of its customer; each "" if there is none.
    `is_ending`: the customer canceled."""

    subscription: str
    status: str
    trial_end_ms: int | None
    card: str
    email: str = ""
    is_ending: bool = False


class TrialStore(Protocol):
    """Trials in SQL. `PlanChanges.intend` reserves them. Every call may raise `Transient`; all are repeatable."""

    async def due(self, now_ms: int, limit: int) -> Sequence[Trial]:
        """Trials to look at: reserved ones whose checkout is over or whose customer has a trial by the mirror, and
        those that Stripe is to end."""
        ...

    async def begin(self, trial: Trial, begun: Begun, keys: Mapping[str, str], now_ms: int) -> Trial:
        """Note that a reserved trial has begun, and take the keys that are known only now. Returns it as it is then:
        `ENDING`, or flagged, if one of them has a trial already."""
        ...

    async def release(self, trial: Trial, now_ms: int) -> None:
        """Note that a reserved trial was never begun, and free its keys."""
        ...

    async def postpone(self, trial: Trial, look_ms: int) -> None:
        """Look at a trial again later."""
        ...

    async def refuse(self, trial: Trial, now_ms: int) -> None:
        """Note that Stripe ended a trial whose card had one before."""
        ...

    async def settle(self, now_ms: int) -> int:
        """Note of running trials what the mirror says became of them, and forget old keys. Returns how many changed."""
        ...

    async def listed(self, account: str = "", limit: int = 100) -> Sequence[Trial]:
        """The newest trials, of all accounts or of one."""
        ...

    async def flagged(self) -> int:
        """How many running trials have a card that had one before."""
        ...

    async def counts(self) -> Mapping[TrialState, int]:
        """How many trials there are in each state."""
        ...


class StripeTrials(Protocol):
    """What trials need of Stripe. Every call may raise `Transient`, `Refused` and `InvalidInput`."""

    async def coupon(self, percent: str) -> str:
        """The id of the coupon that takes a percentage off once, which is made if Stripe has none. Nobody can redeem
        a coupon without a code."""
        ...

    async def promote(self, params: Mapping[str, Any], key: str) -> str | None:
        """Make a promotion code."""
        ...

    async def promotion(self, code: str) -> str | None:
        """The id of the promotion code of a text, also of one that was redeemed; None if there is none."""
        ...

    async def email_and_card(self, customer: str) -> tuple[str, str]:
        """The e-mail address of a customer and the fingerprint of the card that pays, each "" if there is none."""
        ...

    async def begun(self, subscription: str) -> Begun:
        """A subscription that began with a trial, with the card that will pay it."""
        ...
