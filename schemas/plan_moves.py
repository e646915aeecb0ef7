"""Moves of subscriptions from one version of a plan to another, at their renewal, by a schedule at Stripe.

A move is a row in SQL before Stripe is asked for anything, so a process that ends anywhere goes on with it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from schemas.catalog import PlanId


class MoveState(StrEnum):
    """`INTENDED`: Stripe may have the schedule or not. `SCHEDULED`: Stripe has it. `GIVEN_UP`: Stripe refused it, or
    the subscription cannot be moved so."""

    INTENDED = "intended"
    SCHEDULED = "scheduled"
    GIVEN_UP = "given_up"


class SubscribedItem(NamedTuple):
    """A price of a subscription; `quantity` is None if usage is billed."""

    price: str
    quantity: int | None


class Subscribed(NamedTuple):
    """What decides whether and how a subscription can be moved. `schedule` is the id of its open schedule, "" if none.
    `renews_ms` is the last end of its items' periods, in a trial the end of the trial. `has_item_discounts` is known to
    Stripe only, `customer` to the mirror only. `account` is "" in what Stripe says, and for a customer without one."""

    id: str
    status: str
    schedule: str
    renews_ms: int
    is_ending: bool
    is_pending: bool
    has_item_discounts: bool
    items: tuple[SubscribedItem, ...]
    account: str = ""
    customer: str = ""


class Move(NamedTuple):
    """One move of a subscription, with its number among those of the subscription. `sent_ms`: when Stripe was first
    asked for the schedule. `is_over`: the mirror says that its schedule was released, has ended or was canceled."""

    subscription: str
    number: int
    source: PlanId
    target: PlanId
    account: str
    state: MoveState
    made_ms: int
    schedule: str = ""
    sent_ms: int | None = None
    detail: str = ""
    is_over: bool = False

    @property
    def mark(self) -> str:
        """What the schedule at Stripe carries, to be known again."""
        return f"{self.subscription}.{self.number}"


class StripeSchedule(NamedTuple):
    """A schedule with its phases as Stripe's objects. `mark` is that of the move that made it, "" for another one.
    `change`: the last change of its present phase. `ends`: the schedule cancels the subscription when it is over."""

    id: str
    mark: str
    phases: Sequence[Mapping[str, Any]]
    change: str = ""
    ends: bool = False


class PhasesChange(NamedTuple):
    """A change of the present phase of a schedule: its name, and what Stripe prorates, as `proration_behavior`."""

    name: str
    prorations: str


class PlanMoves(Protocol):
    """The moves in SQL. Every call may raise `Transient`; no call holds a lock when it returns."""

    async def subscribed(self, prices: Collection[str], limit: int) -> Sequence[Subscribed]:
        """The subscriptions of the mirror that have not ended and have one of the prices, by id."""
        ...

    async def last(self, subscriptions: Collection[str]) -> Mapping[str, Move]:
        """The last move of each subscription that has one."""
        ...

    async def intend(self, subscribed: Subscribed, source: PlanId, target: PlanId, who: str, why: str, ms: int) -> Move:
        """Note that a subscription is to be moved, with an audit row, at the instant `ms`. A move to the same version
        that is not given up and not over is returned instead. Raises `InvalidInput` for one to another version."""
        ...

    async def sent(self, move: Move, now_ms: int) -> Move:
        """Note that Stripe is being asked for the schedule; the first instant stays."""
        ...

    async def settle(self, move: Move, state: MoveState, schedule: str, detail: str, now_ms: int) -> None:
        """Note how a move ended, with an audit row. The same again changes nothing."""
        ...


class StripeSchedules(Protocol):
    """Subscriptions and their schedules at Stripe. Every call may raise `Transient`, `Refused` and `InvalidInput`."""

    async def subscription(self, identifier: str) -> Subscribed:
        """A subscription as it is now, with all its items."""
        ...

    async def schedule(self, identifier: str) -> StripeSchedule:
        """A schedule."""
        ...

    async def create(self, subscription: str, key: str) -> StripeSchedule:
        """Put a subscription under a schedule that changes nothing. The same key within 23 hours gives the same."""
        ...

    async def plan(
        self,
        schedule: str,
        phases: Sequence[Mapping[str, Any]],
        mark: str,
        key: str,
        end_behavior: str = "release",
        change: PhasesChange | None = None,
    ) -> None:
        """Give a schedule its phases and its mark. After the last phase the subscription goes on, or with
        `end_behavior` "cancel" it ends. Without `change`, the present phase stays as it is."""
        ...

    async def release(self, schedule: str) -> None:
        """Take a subscription out of a schedule; it stays as it is."""
        ...

    async def close(self) -> None:
        """Close all connections. Safe to call twice."""
        ...
