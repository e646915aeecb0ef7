"""Plan changes: what an account has, what somebody wants, what Stripe is to be called for, and why not.

A change is a *quote*, then its acceptance, then an *operation*, which is in SQL before Stripe is asked for anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from schemas.catalog import OverLimit, PlanId
from schemas.periods import Interval
from schemas.trials import TrialTerms, TrialWish
from schemas.upgrades import Money


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


class WantedItem(NamedTuple):
    """An item after a change; see `HeldItem`."""

    component: str
    price: str
    quantity: int | None


class Pending(NamedTuple):
    """The open schedule of a subscription. `ends`: the schedule cancels the subscription when the schedule is over.
    `later`: the items of the one phase after the present period; none if there is no such phase, or another one.
    `is_over`: nothing is to come, and the schedule is open only until its last phase ends."""

    schedule: str
    owner: Owner
    ends: bool = False
    later: tuple[WantedItem, ...] = ()
    is_over: bool = False


class HeldItem(NamedTuple):
    """An item of a subscription. `component`: that of the plan; `addon NAME`; the price, if no catalog made the price.
    `quantity` None: usage is billed. `paid`: how many are billed for the present period, which are more than `quantity`
    after some were given back without a credit; None if that was not read."""

    id: str
    component: str
    price: str
    quantity: int | None
    interval: str
    start_ms: int
    end_ms: int
    paid: int | None = None


class SubscriptionView(NamedTuple):
    """What an account has now, as Stripe said it at one instant. `id` "": no subscription.

    `family`: that of the plan's trial. `is_contract`: a person granted terms of a contract. `pay_url`: where the open
    invoice is paid, "" if none is known. `anchor_ms`: from when the periods are counted.
    `ends_with_period`: the cancellation follows the period, and is at no instant of its own. `early_percent`: what is
    taken off once if the trial ends now, as decimal text, or "". `discounts`: the ids of those it has.
    `pending_minor`: what waits for the next invoice.
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
    ends_with_period: bool = False
    is_update_pending: bool = False
    pay_url: str = ""
    anchor_ms: int = 0
    is_discounted: bool = False
    has_item_discounts: bool = False
    is_taxed: bool = False
    latest_invoice: str = ""
    early_percent: str = ""
    discounts: tuple[str, ...] = ()
    pending_minor: int = 0


class Excess(NamedTuple):
    """A feature of which an account uses more than the wanted plan allows, and what the catalog says of that."""

    feature: str
    used: str
    allowed: str
    policy: OverLimit


class Wanted(NamedTuple):
    """What somebody wants. For a plan, `items` are all items after the change, and `later` those of the later phase of
    a pending schedule."""

    kind: ChangeKind
    plan: PlanId | None = None
    rank: int = 0
    interval: Interval | None = None
    currency: str = ""
    family: str = ""
    items: tuple[WantedItem, ...] = ()
    excess: tuple[Excess, ...] = ()
    trial: TrialTerms | None = None
    by_operator: bool = False
    by_page: bool = False
    later: tuple[WantedItem, ...] = ()


class CallKind(StrEnum):
    """What Stripe is called for. `PHASES` are those of the subscription's schedule, which `SCHEDULE` makes. `INVOICE`:
    the customer pays the open invoice. `PAY`: the card pays the open invoices, oldest first. `GIVE_UP` closes invoices
    that nobody pays. `PROMOTION` makes the code of a discount for this customer alone. `FLUSH` is no call of Stripe:
    the usage until now is reported first."""

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
    PAY = "pay"
    GIVE_UP = "give_up"
    PROMOTION = "promotion"
    FLUSH = "flush"


class Call(NamedTuple):
    """One call with its parameters. Those of `PHASES` are `items`, the items of the last phase, or None for no phase
    after the present one, and `end_behavior`. If the present phase changes too, they are also its items as `now`, the
    same as a change of the subscription as `changes`, and `proration_behavior`."""

    kind: CallKind
    params: Mapping[str, Any] = {}


class When(StrEnum):
    """When a change takes effect."""

    NOW = "now"
    PERIOD_END = "period_end"
    TRIAL_END = "trial_end"


class Calls(NamedTuple):
    """How a change is made: the calls in their order. `row`: of the table in docs/plan-changes.md. `excess`: what the
    account has too much of when the change takes effect. `trial`: the one that begins."""

    row: int
    when: When
    calls: tuple[Call, ...]
    excess: tuple[Excess, ...] = ()
    trial: TrialTerms | None = None

    @property
    def opens_checkout(self) -> bool:
        """Whether the customer goes on at a page of Stripe."""
        return any(call.kind is CallKind.CHECKOUT for call in self.calls)


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
    NO_QUOTE = "no_quote"
    QUOTE_EXPIRED = "quote_expired"
    CHANGED = "changed"
    IN_FLIGHT = "in_flight"
    CHECKOUT = "checkout"
    TRIAL_USED = "trial_used"


class Refusal(NamedTuple):
    """That a change is not made. `field`: of the request; `message` has the remedy."""

    row: int
    code: RefusalCode
    field: str
    message: str


class ChangeRequest(NamedTuple):
    """A wanted change in the words of the catalog. `plan` is a name, with or without a version. `interval` and
    `currency` None or "": those that the account has. `quantities` are paid and `used` are in use, by seat feature.
    `by_page`: a first invoice is paid at Stripe's page also if there is a card, which the bank may ask about.
    `held`: how many holders the quantity has to cover, of the features whose holders are kept here."""

    kind: ChangeKind
    plan: str = ""
    interval: Interval | None = None
    currency: str = ""
    quantities: Mapping[str, int] = {}
    used: Mapping[str, Decimal] = {}
    by_operator: bool = False
    by_page: bool = False
    held: Mapping[str, int] = {}


class PreviewLine(NamedTuple):
    """A line of an invoice to come, as Stripe says it. `quantity`: decimal text, "" if the line has none."""

    text: str
    amount_minor: int
    is_proration: bool
    start_ms: int
    end_ms: int
    price: str = ""
    quantity: str = ""


class InvoicePreview(NamedTuple):
    """An invoice to come. `due_minor` is what is charged: the total less the customer's balance. `subtotal_minor` is
    before discounts and taxes."""

    currency: str
    subtotal_minor: int
    total_minor: int
    due_minor: int
    tax_minor: int
    lines: tuple[PreviewLine, ...]


class Quote(NamedTuple):
    """What a change costs, and all that its acceptance needs.

    `base` is what the account had, `total` what the invoice of the change will be (with tax), `due_minor` what is
    charged now: of that invoice, and of the open ones that the change pays first; `next_minor` the invoice after it at
    `next_ms`. `drift_minor`: by how much the total may differ because seconds pass between quote and acceptance; 0
    where Stripe is told the instant. `subtotal_minor` is before discounts and taxes, and `ours_minor` the same by our
    own rating, None if nothing can be compared. `charged_minor`: what the invoice was.
    """

    id: str
    account: str
    request: str
    base: SubscriptionView
    decided: Calls
    lines: tuple[PreviewLine, ...]
    total: Money
    due_minor: int
    tax_minor: int
    drift_minor: int
    subtotal_minor: int
    ours_minor: int | None
    next_minor: int | None
    next_ms: int | None
    words: str
    made_ms: int
    expires_ms: int
    made_by: str
    accepted_ms: int | None = None
    accepted_by: str = ""
    invoice: str = ""
    charged_minor: int | None = None

    @property
    def is_differing(self) -> bool:
        """Whether the invoice differs from the quote."""
        charged = self.charged_minor
        return charged is not None and abs(charged - self.total.minor) > self.drift_minor


class OperationState(StrEnum):
    """`PLANNED`: Stripe was not asked. `SENT`: Stripe was asked, and may have answered. `UNKNOWN`: Stripe may have
    forgotten the key of a call without an answer, so the call is looked for and not sent again."""

    PLANNED = "planned"
    SENT = "sent"
    UNKNOWN = "unknown"
    DONE = "done"
    FAILED = "failed"


OPEN_STATES = (OperationState.PLANNED, OperationState.SENT, OperationState.UNKNOWN)


class Operation(NamedTuple):
    """The carrying out of an accepted quote.

    `step`: the number of calls that are done. `sent_ms`: when Stripe was first asked for the next one. `subscription`:
    the one that is changed, also one that the operation makes. `return_url`: where the customer comes back to from the
    page of checkout; `session` and `url` are that page's, "" before it is made.
    """

    id: str
    account: str
    quote: str
    state: OperationState
    step: int
    made_ms: int
    touched_ms: int
    by: str
    sent_ms: int | None = None
    subscription: str = ""
    detail: str = ""
    return_url: str = ""
    session: str = ""
    url: str = ""


class PlanChanges(Protocol):
    """Quotes and operations in SQL. Every call may raise `Transient`; no call holds a lock when it returns."""

    async def add_quote(self, quote: Quote) -> Quote:
        """Keep a quote. One with the same id stays, and is returned. Raises `InvalidInput` if that is for another
        request."""
        ...

    async def quote(self, account: str, identifier: str) -> Quote | None:
        """A quote of an account."""
        ...

    async def intend(
        self, quote: Quote, by: str, now_ms: int, return_url: str = "", trial: TrialWish | None = None
    ) -> Operation:
        """Accept a quote: note the operation that is to be carried out, with an audit row, and reserve its trial. Of
        the same quote again, the operation is returned. If another one of the account is open, that one is.

        Raises `TrialTaken` if a key of the trial is another account's, or the account's own trial has begun: then
        nothing is noted. A trial that the account reserved and did not begin goes over to this operation."""
        ...

    async def trial_taken(self, account: str, trial: TrialWish) -> str:
        """The kind of a key by which an account cannot have a trial now, or ""."""
        ...

    async def operation(self, quote: str) -> Operation | None:
        """The operation of a quote."""
        ...

    async def sent(self, operation: Operation, now_ms: int) -> Operation:
        """Note that Stripe is being asked for the next call; the first instant stays."""
        ...

    async def stepped(
        self, operation: Operation, subscription: str, now_ms: int, session: str = "", url: str = ""
    ) -> Operation:
        """Note that the next call is done, and the page that it made. The same again changes nothing."""
        ...

    async def doubt(self, operation: Operation, now_ms: int) -> Operation:
        """Note that the next call is looked for at Stripe."""
        ...

    async def settle(
        self, operation: Operation, state: OperationState, detail: str, invoice: str, charged_minor: int | None, ms: int
    ) -> Operation:
        """Note how an operation ended, and what its invoice is, with an audit row. A reserved trial begins with the
        operation's subscription, waits for its page, or is released if the operation failed. The same again changes
        nothing."""
        ...

    async def open_before(self, touched_ms: int, limit: int) -> Sequence[Operation]:
        """Open operations that nobody touched since an instant, oldest first."""
        ...

    async def oldest_open_ms(self) -> int | None:
        """When the oldest open operation was made; None if none is open."""
        ...

    async def differing(self, since_ms: int) -> int:
        """How many quotes that were accepted since an instant differ from their invoices."""
        ...
