"""Credits that pay for usage before Stripe bills it: grants, what was drawn of them, and what is owed.

Credits are whole numbers. Quantities of usage are whole numbers of 10^-12 units of a meter, unless a name says
`_minor`: those are in units of 10^-scale, as in an intent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from fractions import Fraction
from typing import Final, Literal, NamedTuple, Protocol

from schemas.upgrades import Billed

# A grant is a whole number up to this, so that any sum fits into 64 bits.
CREDITS_MAX: Final = 10**15
# Grants of one account that can still be drawn; more are refused, because each draw reads them all.
GRANTS_MAX: Final = 1_000
PRIORITY_USUAL: Final = 50


class Category(StrEnum):
    """Where a grant comes from. Among equals, what cost nothing is drawn first."""

    PROMOTIONAL = "promotional"
    INCLUDED = "included"
    PAID = "paid"


class EntryKind(StrEnum):
    """What moved credits: they were granted, drawn by usage, returned by a correction, voided, or paid a debt."""

    GRANT = "grant"
    DRAW = "draw"
    RETURN = "return"
    VOID = "void"
    DEBT = "debt"


class Money(NamedTuple):
    """What was paid for a grant, in minor units."""

    minor: int
    currency: str
    exponent: int


class CreditGrant(NamedTuple):
    """Credits of an account in a pool. `source_key` names the cause: an account gets one grant for each.

    Usage of instants in `[effective_ms, expires_ms)` may draw them; `expires_ms` None: for ever. After the end, at most
    `rollover_max` more may be drawn until `rolls_until_ms`, of which `rolled` were; None: the next period has not begun
    yet. The lowest `priority` is drawn first.
    """

    id: str
    account: str
    pool: str
    category: Category
    credits: int
    remaining: int
    priority: int
    effective_ms: int
    expires_ms: int | None
    source_key: str
    made_ms: int
    rollover_max: int = 0
    rolls_until_ms: int | None = None
    rolled: int = 0
    voided_ms: int | None = None
    paid: Money | None = None


class NewGrant(NamedTuple):
    """A grant to be made. Fields as in `CreditGrant`."""

    account: str
    pool: str
    category: Category
    credits: int
    effective_ms: int
    source_key: str
    expires_ms: int | None = None
    priority: int = PRIORITY_USUAL
    rollover_max: int = 0
    rolls_until_ms: int | None = None
    paid: Money | None = None


class Granted(NamedTuple):
    """A grant, and whether it was made just now."""

    grant: CreditGrant
    is_new: bool


class CreditEntry(NamedTuple):
    """A row of the ledger. `credits` is what the grant gained; negative: lost. `number` orders an account's rows.

    `source_key`: of the grant, the identifier of the intent that drew or returned, or the debt that was paid. `meter`
    and `period_start_ms` are those of the intent.
    """

    account: str
    number: int
    grant: str
    kind: EntryKind
    credits: int
    source_key: str
    at_ms: int
    meter: str = ""
    period_start_ms: int | None = None


class Debt(NamedTuple):
    """Credits that were used and then taken back, such as those of a purchase that was refunded. The next grants of the
    pool pay what is `open`."""

    account: str
    source_key: str
    pool: str
    credits: int
    open: int
    made_ms: int
    settled_ms: int | None = None


class Pool(NamedTuple):
    """A pool of the catalog in ledger mode. `rates`: credits for one unit of each meter that it covers."""

    name: str
    unit: str
    order: int
    overdraft: Literal["next", "bill", "block"]
    rates: Mapping[str, Fraction]


class Included(NamedTuple):
    """What an account's plans give of a pool each period, at the earliest since `since_ms`."""

    credits: int
    rollover_max: int = 0
    since_ms: int = 0


class Coverage(NamedTuple):
    """How much of the usage of a meter and period a pool has paid for, at a rate. The pool "" stands for Stripe."""

    pool: str
    rate: Fraction
    covered: int


class Usage(NamedTuple):
    """The usage of an intent that credits are to pay for. `identifier` is that of the intent's first revision.
    `period_end_ms` is the end of its period as it is known now."""

    identifier: str
    account: str
    meter: str
    period_start_ms: int
    period_end_ms: int
    instant_ms: int
    delta_minor: int
    scale: int


class Allocated(NamedTuple):
    """How an intent's change is paid: `drawn_minor` by credits, `remainder_minor` by Stripe; their sum is the change.
    `draws`: what each grant lost; negative: got back."""

    drawn_minor: int
    remainder_minor: int
    draws: Mapping[str, int]


class KeptAllocation(NamedTuple):
    """What the ledger has of an intent, by the identifier of its first revision. `drawn_minor` is what credits paid,
    which counts no more if `is_taken_back`."""

    identifier: str
    drawn_minor: int
    is_taken_back: bool


class AccountCredits(NamedTuple):
    """All that the ledger has of an account. `coverage` is that of each meter and the start of its period."""

    grants: Sequence[CreditGrant]
    debts: Sequence[Debt]
    coverage: Mapping[tuple[str, int], Sequence[Coverage]]


class Terms(NamedTuple):
    """The pools of the active catalog in ledger mode, and what an account's plans give of them each period.

    `catalog_sha256`: of the catalog. `included`: by pool, of what the account pays now."""

    catalog_sha256: str
    pools: Sequence[Pool]
    included: Callable[[Billed], Mapping[str, Included]]

    def covers(self, meter: str) -> bool:
        """Whether a pool pays for the usage of a meter."""
        return any(meter in pool.rates for pool in self.pools)


class Credits(Protocol):
    """The ledger of credits. Each call is one transaction under the account's lock, and may raise `Transient`."""

    async def allocate(self, usage: Usage, terms: Terms, now_ms: int) -> Allocated:
        """Draw credits for an intent, once: a repetition, also by another revision, gets the same answer.

        Makes the grants that the account's plans include in the intent's period, if they are missing. Raises `Fenced`
        if another catalog is active than that of `terms`.
        """
        ...

    async def take_back(self, usage: Usage, now_ms: int) -> None:
        """Undo what an intent drew, because other intents report its usage. It draws nothing any more. Repeatable."""
        ...

    async def include(self, account: str, start_ms: int, end_ms: int, terms: Terms, now_ms: int) -> None:
        """Make the grants that the account's plans include in a period, if they are missing. Raises as `allocate`."""
        ...

    async def grant(self, new: NewGrant, actor: str, reason: str, now_ms: int) -> Granted:
        """Make a grant, which first pays what the account owes in the pool. The same `source_key` changes nothing.

        Raises `InvalidInput` if the fields make no sense, if the key was given with another pool or number of credits,
        or if the account has `GRANTS_MAX` grants that can be drawn.
        """
        ...

    async def void(self, account: str, grant: str, actor: str, reason: str, now_ms: int, *, owes: bool) -> CreditGrant:
        """Take back what is left of a grant, with `owes` also what was used, as a debt. The same again changes nothing.

        Raises `InvalidInput` if the account has no such grant.
        """
        ...

    async def lacks_included(self, account: str, pool: str, terms: Terms, now_ms: int) -> bool:
        """Whether the account's plans give credits of a pool, and no grant has those of the running period yet: the
        period's first usage, or a look at the balance, makes the grant."""
        ...

    async def of_account(self, account: str) -> AccountCredits:
        """The grants, debts and running totals of an account. Grants and debts are in the order in which they came."""
        ...

    async def entries(self, account: str, limit: int, *, after: int = 0, newest: bool = False) -> Sequence[CreditEntry]:
        """The account's rows of the ledger behind the number `after`, in their order; `newest`: the last ones."""
        ...

    async def allocations(self, after: str, limit: int) -> Sequence[KeptAllocation]:
        """One page of the allocations of all accounts, in the store's order of identifiers, behind `after`."""
        ...

    async def wrong(self, limit: int = 100, account: str = "") -> Sequence[str]:
        """What does not add up: grants whose remaining credits are not the sum of their rows. Reads the whole ledger,
        or that of one account."""
        ...
