"""What the operator's page asks of the deployment, and the facts from which the page is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple, Protocol, TypeVar

from portal.timeline import Timeline
from schemas.acknowledgements import Acknowledged
from schemas.bills import BillState
from schemas.dunning import DunningCounts, Recovery
from schemas.duplicates import Duplicate
from schemas.explained import EventExplanation, InvoiceExplanation
from schemas.flat_to_metered import Item, Migration
from schemas.intent_ledger import LedgerIntent
from schemas.invoices import UnfinalizedInvoice
from schemas.plan_changes import Operation
from schemas.reconciliation import RunRow
from schemas.rollup import Counters
from schemas.side_tables import HeldCustomer, Row
from schemas.trials import TrialState


class Away(NamedTuple):
    """A part that did not answer in time, or refused: why."""

    why: str


class FlowFacts(NamedTuple):
    """The way of events. `counters`: of all partitions since the log began. `rates`: events a second by outcome over
    the last minute; None before the second look. `behind`: records that are not folded yet. `counted_ms`: up to when
    the slowest partition has counted; `complete_ms`: up to when ClickHouse has the hours. None: not known yet."""

    counters: Counters
    rates: Mapping[str, Decimal] | None
    behind: int
    counted_ms: int | None
    complete_ms: int | None


class DriftFacts(NamedTuple):
    """The last reconciliation, and how many rows it found by pair and cause."""

    run: RunRow | None
    causes: Sequence[tuple[str, str, int]] = ()


class WebhookFacts(NamedTuple):
    """The way back from Stripe. `behind`: events that are not processed; `walked_ms`: up to when Stripe's list of
    events was read. `canary`: the customer, "" without one; `heard_ms`: when its change last came. Counts are at most
    `COUNT_MAX`."""

    behind: int
    walked_ms: int | None
    canary: str
    heard_ms: int | None
    held: int
    set_aside: int
    due_bindings: int


class SinkFacts(NamedTuple):
    """The reports to Stripe. `waiting`: by hold, how many, and when the first one's invoice is final. `dead`: the first
    reports that Stripe refused; `left`: those of them that somebody acknowledged, by identifier. `unread`: records that
    the sink has not read. `bills`: invoices with something open, by state. `deadlines`: how many drafts become final
    within a day."""

    waiting: Mapping[str, tuple[int, int]]
    dead: Sequence[LedgerIntent]
    left: Mapping[str, Acknowledged]
    unread: int
    bills: Mapping[BillState, int]
    deadlines: int


class ChangeFacts(NamedTuple):
    """Operations that are not done, the oldest first, and how many quotes of the last month differ from invoices."""

    open: Sequence[Operation]
    differing: int


class DunningFacts(NamedTuple):
    """Open cases by state, and what became of those of the last months."""

    counts: DunningCounts
    recoveries: Sequence[Recovery]


class BoughtFacts(NamedTuple):
    """Trials by state, how many have a card that had one before; second subscriptions; drafts that cannot become
    final. `left`: what of these somebody acknowledged, by id."""

    trials: Mapping[TrialState, int]
    flagged: int
    duplicates: Sequence[Duplicate]
    unfinalized: Sequence[UnfinalizedInvoice]
    left: Mapping[str, Acknowledged]


class UnmappedFacts(NamedTuple):
    """Customers of held events without an account, and accounts of held reports without a customer with the number of
    reports, of the first ones that wait."""

    customers: Sequence[HeldCustomer]
    accounts: Sequence[tuple[str, int]]


class MigrationFacts(NamedTuple):
    """Migrations from flat to metered, each with its subscriptions."""

    migrations: Sequence[tuple[Migration, Sequence[Item]]]


class QuarantineFacts(NamedTuple):
    """The newest entries of the quarantine by reason, and how many were looked at."""

    reasons: Sequence[tuple[str, int]]
    looked: int
    newest_ms: int | None


class RedriveLook(NamedTuple):
    """What would become of the quarantined events of one reason. `failing`: the reason now, how many, and the detail of
    one. `arrived` arrived again meanwhile, of `old` the archive decides, and `unmetered` count in no meter. `is_whole`:
    all entries were looked at."""

    cause: str
    passing: int
    failing: Sequence[tuple[str, int, str]]
    cut: int
    arrived: int
    old: int
    unmetered: int
    is_whole: bool


Part = TypeVar("Part")


class OperatorFacts(NamedTuple):
    """The whole deployment at one instant. A part that did not answer is `Away`. `grace_ms`: the span after a period's
    end in which its invoice is a draft."""

    now_ms: int
    grace_ms: int
    flow: FlowFacts | Away
    drift: DriftFacts | Away
    webhooks: WebhookFacts | Away
    sink: SinkFacts | Away
    changes: ChangeFacts | Away
    dunning: DunningFacts | Away
    bought: BoughtFacts | Away
    unmapped: UnmappedFacts | Away
    migrations: MigrationFacts | Away
    quarantine: QuarantineFacts | Away


class AccountFacts(NamedTuple):
    """One account: its past and future, its invoices, and its reports that wait or were refused."""

    account: str
    now_ms: int
    timeline: Timeline | Away
    invoices: Sequence[Row] | Away
    intents: Sequence[LedgerIntent] | Away


class Board(Protocol):
    """Answers the page. Calls may raise `TidemarkError`; `facts` and `account` leave out what does not answer."""

    async def facts(self) -> OperatorFacts:
        """The deployment, at most some seconds old."""
        ...

    async def account(self, account: str, before: int | None) -> AccountFacts:
        """One account; the past behind the number `before` of its audit."""
        ...

    async def owners(self, invoice: str) -> Sequence[str]:
        """The accounts that see an invoice."""
        ...

    async def invoice(self, account: str, invoice: str) -> InvoiceExplanation | None:
        """Why an invoice says what it says."""
        ...

    async def event(self, account: str, event: str) -> EventExplanation:
        """Where an event ended."""
        ...

    async def report(self, identifier: str) -> LedgerIntent | None:
        """One report to Stripe."""
        ...

    async def redrive(self, identifier: str, by: str, reason: str) -> str:
        """Send a report again that Stripe refused, as `tidemark billing redrive` does; returns what was done."""
        ...

    async def quarantined(self, cause: str) -> RedriveLook:
        """What would become of the quarantined events of a reason. Raises `InvalidInput` for no reason."""
        ...

    async def redrive_events(self, cause: str, by: str, reason: str) -> str:
        """Send those events again that pass, as `tidemark quarantine redrive` does, for some seconds; returns what was
        done. The next call goes on."""
        ...

    async def acknowledge(self, account: str, what: str, by: str, reason: str) -> str:
        """Leave a thing of an account as it is, as `tidemark account acknowledge` does; returns what was noted."""
        ...
