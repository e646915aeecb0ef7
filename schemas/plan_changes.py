"""Plan changes: what an account has, what somebody wants, what Stripe is to be called for, and why not.

A change is a *quote*, then its acceptance, then an *operation*, which is in SQL before Stripe is asked for anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from schemas.catalog import OverLimit, PlanId
from schemas.periods import Interval


class ChangeKind(StrEnum):
    """What is wanted: a plan with its quantities; a trial of a plan; the end with what is paid; the end now; that a
    pending change does not happen. `SEEN`: somebody changed the subscription in Stripe's dashboard or portal."""

    PLAN = "plan"
    TRIAL = "trial"
    CANCEL = "cancel"
    CANCEL_NOW = "cancel_now"
    UNDO = "undo"
    SEEN = "seen"


class Owner(StrEnum):
    """Who made a schedule: an operation, `catalog migrate`, or somebody else."""

    OPERATION = "operation"
    MOVE = "move"
    OTHER = "other"


class Pending(NamedTuple):
    """The open schedule of a subscription. `ends`: the schedule cancels the subscription when the schedule is over."""

    schedule: str
    owner: Owner
    ends: bool = False


class HeldItem(NamedTuple):
    """An item of a subscription. `component`: that of the plan; `addon NAME`; the price, if no catalog made the price.
    `quantity` None: usage is billed."""

    id: str
    component: str
    price: str
    quantity: int | None
    interval: str
    start_ms: int
    end_ms: int


class WantedItem(NamedTuple):
    """An item after a change; see `HeldItem`."""

    component: str
    price: str
    quantity: int | None


class SubscriptionView(NamedTuple):
    """What an account has now, as Stripe said it at one instant. `id` "": no subscription.

    `family`: that of the plan's trial. `is_contract`: a person granted terms of a contract. `pay_url`: where the open
    invoice is paid, "" if none is known.
    """

    customer: str = ""
    has_card: bool = False
    is_contract: bool = False
    id: str = ""
    status: str = ""
    currency: str = ""
    collection: str = "charge_automatically"
    plan: PlanId | None = None
    rank: int = 0
    interval: Interval | None = None
    family: str = ""
    items: tuple[HeldItem, ...] = ()
    pending: Pending | None = None
    cancel_at_ms: int | None = None
    is_update_pending: bool = False
    pay_url: str = ""


class Excess(NamedTuple):
    """A feature of which an account uses more than the wanted plan allows, and what the catalog says of that."""

    feature: str
    used: str
    allowed: str
    policy: OverLimit


class Wanted(NamedTuple):
    """What somebody wants. For a plan, `items` are all items after the change."""

    kind: ChangeKind
    plan: PlanId | None = None
    rank: int = 0
    interval: Interval | None = None
    currency: str = ""
    family: str = ""
    items: tuple[WantedItem, ...] = ()
    excess: tuple[Excess, ...] = ()
    trial_days: int = 0
    by_operator: bool = False


class CallKind(StrEnum):
    """What Stripe is called for. `PHASES` are those of the subscription's schedule, which `SCHEDULE` makes. `INVOICE`:
    the customer pays the open invoice. `FLUSH` is no call of Stripe: the usage until now is reported first."""

    EXPIRE_CHECKOUT = "expire_checkout"
    CHECKOUT = "checkout"
    CREATE = "create"
    UPDATE = "update"
    CANCEL = "cancel"
    RESUME = "resume"
    SCHEDULE = "schedule"
    PHASES = "phases"
    RELEASE = "release"
    INVOICE = "invoice"
    FLUSH = "flush"


class Call(NamedTuple):
    """One call with its parameters. Those of `PHASES` are `items`, the items of the last phase, or None for no phase
    after the present one, and `end_behavior`."""

    kind: CallKind
    params: Mapping[str, Any] = {}


class When(StrEnum):
    """When a change takes effect."""

    NOW = "now"
    PERIOD_END = "period_end"
    TRIAL_END = "trial_end"


class Calls(NamedTuple):
    """How a change is made: the calls in their order. `row`: of the table in docs/plan-changes.md. `excess`: what the
    account has too much of when the change takes effect."""

    row: int
    when: When
    calls: tuple[Call, ...]
    excess: tuple[Excess, ...] = ()


class RefusalCode(StrEnum):
    """Why a change is not made. The list is closed."""

    PAY_FIRST = "pay_first"
    UPDATE_PENDING = "update_pending"
    CANCEL_PENDING = "cancel_pending"
    NOTHING_PENDING = "nothing_pending"
    NOTHING_CHANGES = "nothing_changes"
    NO_SUBSCRIPTION = "no_subscription"
    NO_CUSTOMER = "no_customer"
    CONTRACT = "contract"
    OTHER_CURRENCY = "other_currency"
    OTHERS_SCHEDULE = "others_schedule"
    OPERATOR_ONLY = "operator_only"
    OVER_LIMIT = "over_limit"
    NOT_OFFERED = "not_offered"


class Refusal(NamedTuple):
    """That a change is not made. `field`: of the request; `message` has the remedy."""

    row: int
    code: RefusalCode
    field: str
    message: str
